"""What runs where, and what came out."""

from orchestrator import _environment  # noqa: F401  before anything imports ray
