"""From a task's name or a file to a Dataset and its folds."""
