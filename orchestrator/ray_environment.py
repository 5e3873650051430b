"""What Ray finds around it: an address that may be stale, and a folder for its sockets. Ray itself is not imported."""

import os
import tempfile
from pathlib import Path

from orchestrator.grpc_knock import listens, speaks_grpc
from trainables.errors import UserError

_SECONDS_TO_ANSWER = 3.0
# A socket's path may have 107 bytes, of which Ray takes these below its own folder (the process number at its longest).
_BELOW = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.10")
_LONGEST = 107 - _BELOW


def asked_address(address: str | None) -> tuple[str, str | None]:
    """Where Ray is to be joined and who says so: an option's value, or the environment's.

    Returns:
        The name of what says so, for messages, and the address; None for a Ray of one's own.
    """
    if address is not None:
        return f"`address={address}`", None if address == "local" else address
    address = os.environ.get("RAY_ADDRESS") or None
    return f"the environment variable RAY_ADDRESS={address}", None if address == "local" else address


def cure(address: str | None, *, answers: bool = False) -> str:
    """Return what to do about an address that cannot be joined, by who gave it.

    Args:
        answers: something listens there. A token that is missing or wrong looks like any other failure to Ray.
    """
    if answers:
        has = os.environ.get("RAY_AUTH_MODE") == "token"
        token = "its token must be in ~/.ray/auth_token" if has else "set RAY_AUTH_MODE=token if it asks for a token"
        return f"{token}; its Ray and Python must have this machine's versions"
    if address is None:
        return "unset RAY_ADDRESS to start Ray on this machine, or set it to a running cluster"
    return "start a cluster there (ray start --head), or leave out `address` to start Ray on this machine"


def check_address(address: str | None) -> None:
    """Knock at a cluster's address: Ray itself would try for a minute before it says a word.

    Raises:
        UserError: it is no HOST:PORT, or nothing listens there.
    """
    told, where = asked_address(address)
    if where is None or where == "auto":
        return
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"{told}: HOST:PORT or auto was expected; {cure(address)}")
    try:
        answers = listens if _uses_tls() else speaks_grpc
        reason = (
            "" if answers(host.strip("[]"), int(port), _SECONDS_TO_ANSWER) else "something other than Ray listens there"
        )
    except OSError as error:
        reason = error.strerror or "no answer"
    if reason:
        raise UserError(f"{told}: no Ray answers there ({reason}); {cure(address)}")


def _uses_tls() -> bool:
    """Return True where Ray encrypts, so that nothing more can be asked without its certificates."""
    return os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false")


def temporary_folder() -> Path:
    """Return a folder for Ray's sessions that is ours to write and short enough for its sockets' paths.

    Ray's own choice is /tmp/ray or TMPDIR/ray, which may be too long, or may belong to another user of the machine.

    Raises:
        UserError: there is none, with what was tried.
    """
    named = [os.environ[name] for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)]
    bases = [Path(base) for base in dict.fromkeys([*named, tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"])]
    own = f"ray-{os.getuid()}"
    for base in bases:
        for folder in (base / "ray", base / own):
            if len(os.fsencode(folder)) <= _LONGEST and _is_usable(folder):
                return folder
    tried = ", ".join(str(base / "ray") for base in bases)
    raise UserError(
        f"Ray finds no folder for its sockets (tried {tried}): set RAY_TMPDIR to a folder of yours whose path has at "
        f"most {_LONGEST - len('/ray')} characters"
    )


def _is_usable(folder: Path) -> bool:
    """Return True where sessions can be begun in it: it is ours to write, or can be made."""
    try:
        folder.mkdir(parents=False, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
