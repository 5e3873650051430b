"""How the command ends where it does not succeed: mistakes in one line, and what Ctrl-C left."""

import re
import sys
from functools import cache
from typing import Any, NoReturn

import typer

from orchestrator.cli.interrupts import exit_code, told_interrupted

_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")
# Options that are not named as the parameter is.
_NAMED = {"auxiliary": "--aux", "compiled": "--compile", "settings": "--set", "cpus": "--cpus-per-trial"}
_NAMED |= {"gpus": "--gpus-per-trial", "top": "--check-top"}


@cache
def _options() -> frozenset[str]:
    """Return every option of every command."""
    from orchestrator.cli.main import app  # imports this module

    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    return frozenset(option for command in commands for parameter in command.params for option in parameter.opts)


def as_options(text: str) -> str:
    """Return a message with the parameters that it names (see trainables.errors) spelled as options.

    For example "`folds=7`: folds are 0 to 4" becomes "--folds 7: folds are 0 to 4", and "use `resume=True`" becomes
    "use --resume".
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        spelled = _NAMED.get(name, f"--{name.replace('_', '-')}")
        if spelled not in _options():
            return found.group()
        return spelled if value in (None, "True") else f"{spelled} {value}"

    return _PARAMETER.sub(option, text)


def explained(error: Any) -> str:
    """Return what typer says of a mistyped line, with the option that was meant and the value that came."""
    from orchestrator.cli.option_hints import option_hint, typed_value

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
    print(f"error: {' '.join(as_options(message).split())}", file=sys.stderr)
    sys.exit(2)


def end_interrupted() -> NoReturn:
    """Say how to continue what Ctrl-C or SIGTERM has stopped."""
    told_interrupted()
    sys.exit(exit_code())
