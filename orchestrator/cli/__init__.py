"""The command line: the only room that names commands and options."""
