"""Ctrl-C before, during and after what there is to put in order."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


SWALLOWING = """
    import os, signal, sys
    from orchestrator.cli.interrupts import {names}
    handle_interrupts()
    with {around}:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000): pass
        except KeyboardInterrupt:
            print("swallowed")
        print("goes on")
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "jdft2d"), "stopped; what is finished is kept. Continue with: crystaltune train jdft2d"),
        (("predict", "a", "b"), "stopped"),
        ((), "stopped"),
    ],
)
def test_what_swallows_an_interrupt_before_work_begins_does_not_keep_the_command_going(
    arguments: tuple[str, ...], said: str
) -> None:
    """As some packages do while they are imported."""
    code = SWALLOWING.format(names="handle_interrupts", around="open(os.devnull)")
    told = run(code, *arguments)
    assert (told.returncode, told.stdout, told.stderr) == (130, "", f"\n{said}\n")


def test_work_gets_an_exception_and_can_put_things_in_order() -> None:
    told = run(SWALLOWING.format(names="handle_interrupts, interruptible", around="interruptible()"), "train", "x")
    assert (told.returncode, told.stdout) == (0, "swallowed\ngoes on\n")


def test_another_command_that_continues_is_told_once_on_either_way() -> None:
    code = """
        import os, signal, sys
        from orchestrator.cli.interrupts import continued_by, handle_interrupts, interruptible
        handle_interrupts()
        with continued_by(lambda: ["crystaltune", "search", "--resume"]):
            if sys.argv[1] == "working":
                with interruptible():
                    os.kill(os.getpid(), signal.SIGINT)
                    for _ in range(1000): pass
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000): pass
    """
    for way in ("working", "before"):
        told = run(code, way)
        assert told.returncode == 130
        assert told.stderr == "\nstopped; what is finished is kept. Continue with: crystaltune search --resume\n"


def test_a_second_interrupt_waits_for_nothing() -> None:
    code = """
        import os, signal, time
        from orchestrator.cli.interrupts import handle_interrupts, interruptible
        handle_interrupts()
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
    """
    told = run(code)
    assert told.returncode == 130
    assert told.stderr.startswith("\nstopped at once; rerun the command to continue")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nothing of it here
