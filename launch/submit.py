"""Any crystaltune command on the Ray cluster that this machine belongs to.

    ray submit CLUSTER.yaml launch/submit.py -- train jdft2d --out /mnt/shared/runs/jdft2d
    ray job submit --working-dir . -- python launch/submit.py train jdft2d --out /mnt/shared/runs/jdft2d
    ray symmetric-run --address HOST:PORT --min-nodes 4 -- python launch/submit.py train jdft2d

A command that can use a cluster gets `--address auto`, unless it says itself where it runs. All others are passed on as
they are. crystaltune is the one that is installed on the cluster's nodes; launch/README.md has the routes.
"""

import sys
from collections.abc import Sequence


def on_cluster(words: Sequence[str]) -> list[str]:
    """Return the words of a command with the cluster's address, where the command takes one and has none."""
    place = next((place for place, word in enumerate(words) if not word.startswith("-")), None)
    if place is None or not _takes_address(words[place]):
        return list(words)
    told = (word.split("=", 1)[0] for word in words)
    if not {"--address", "--ray"}.isdisjoint(told):
        return list(words)
    # At once behind the command's name: what follows may end in `--` and names that look like options.
    return [*words[: place + 1], "--address", "auto", *words[place + 1 :]]


def _takes_address(name: str) -> bool:
    from typer.main import get_command

    from orchestrator.cli.main import app

    command = getattr(get_command(app), "commands", {}).get(name)
    return command is not None and any("--address" in parameter.opts for parameter in command.params)


def main() -> None:
    """Run the command; its exit code is this program's."""
    if len(sys.argv) < 2:
        print("usage: submit.py COMMAND ... (any crystaltune command, for example: train jdft2d)", file=sys.stderr)
        sys.exit(2)
    try:
        from orchestrator.cli.entry import main as run
        from orchestrator.cli.interrupts import handle_interrupts
    except ImportError as error:
        print(f"{sys.executable} has no crystaltune ({error}): install it on every node", file=sys.stderr)
        sys.exit(2)
    handle_interrupts()
    # What crystaltune shows for continuing is its own command, which works on the head.
    sys.argv = ["crystaltune", *on_cluster(sys.argv[1:])]
    run()


if __name__ == "__main__":
    main()
