"""A run: every fold of a task trained, tested and scored."""
