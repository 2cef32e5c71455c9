"""The command line: a file for each group of verbs, gathered in program.py."""

from rwkvseg.cli.program import app, main

__all__ = ["app", "main"]
