"""The kit of all reports: document, tables, numbers, progress."""
