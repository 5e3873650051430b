"""Predictions of new structures with the folds of a run."""
