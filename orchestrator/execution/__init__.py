"""Runs as jobs over processes, and what becomes of them."""
