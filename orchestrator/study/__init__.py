"""A search: trials, their journal, what stops them, and the reports."""
