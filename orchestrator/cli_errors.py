"""How the command ends where it does not succeed: mistakes in one line, and what Ctrl-C left."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from orchestrator.interrupts import INTERRUPTED

_CONTINUED = ("train", "ablate", "quickstart", "prepare")  # by the same command


def explained(error: Any) -> str:
    """What typer says of a mistyped line, with the option that was meant and the value that came."""
    from orchestrator.option_hints import option_hint, typed_value

    message, context, words = error.format_message().strip(), getattr(error, "ctx", None), sys.argv[1:]
    if not message:  # no arguments: the help has been shown
        sys.exit(2)
    missing_value = "requires an argument" in message
    unknown = None if missing_value else getattr(error, "option_name", None)
    if hint := option_hint(str(unknown), words) if unknown else None:
        return f"no such option {unknown}: {hint}"
    option = next(iter(getattr(getattr(error, "param", None), "opts", [])), "")
    reason = str(error.message).removeprefix("Value error, ").rstrip(".")
    if option.startswith("--") and (value := typed_value(option, words)):
        message = f"{option} {value}: {reason[:1].lower()}{reason[1:]}"
    return f"{message} (see `{context.command_path if context else 'crystaltune'} --help`)"


def end(message: str) -> NoReturn:
    """Tell a mistake in one line."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def end_interrupted(command: Sequence[str] | None = None) -> NoReturn:
    """Say how to continue what Ctrl-C has stopped.

    Args:
        command: what continues it; by default the same command, where it is one that resumes.
    """
    words = ["crystaltune", *sys.argv[1:]]
    name = next((word for word in words[1:] if not word.startswith("-")), "")
    again = command or (words if name in _CONTINUED else None)
    told = "stopped" if again is None else f"stopped; what is finished is kept. Continue with: {shlex.join(again)}"
    print(f"\n{told}", file=sys.stderr)
    sys.exit(INTERRUPTED)
