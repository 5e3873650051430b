"""The `crystaltune` program: Ctrl-C is answered from the first instant on, while the commands are still imported."""

from orchestrator.cli.interrupts import handle_interrupts


def main() -> None:
    """Run the command."""
    handle_interrupts()
    from orchestrator.cli.main import main as run  # takes longer than the way from a key to this process

    run()
