"""A process that is about to be taken away (a spot machine, a job whose time ends) is asked to stop.

Training then writes a checkpoint after the step it is in and raises Preempted; whoever trains the same model again goes
on from there with the numbers of a run that was never stopped.
"""

import threading


class Preempted(Exception):
    """Training has stopped because the process was asked to; its checkpoint is written."""


_asked = threading.Event()


def ask_to_stop() -> None:
    """Let whatever trains in this process stop after its step. Safe in a signal handler."""
    _asked.set()


def asked_to_stop() -> bool:
    """Return True where this process was asked to stop."""
    return _asked.is_set()


def forget() -> None:
    """Take the request back, for a process that goes on."""
    _asked.clear()
