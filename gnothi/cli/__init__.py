"""The command line: each verb is a few lines over one library function. Nothing heavy is imported before a verb runs."""

from gnothi.cli.root import cli, main

__all__ = ["cli", "main"]
