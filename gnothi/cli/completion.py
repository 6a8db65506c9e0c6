"""What the shell completes: files wherever images, encoders, runs or files may stand."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

PATHS = {"DATA", "ENCODER", "TEACHER", "IMAGE", "FEATURES|DATA", "RUN", "FOLDER", "DIR", "FILE", "PAGE"}
"""Words of the help that stand for something that may be a path."""


class Place(click.ParamType):
    """Text that may be a path."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete it as a path."""
        return [CompletionItem(incomplete, type="file")]


def complete_paths(command: click.Command) -> None:
    """Give every parameter of a command and of those below it that may be a path the completion of one."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            complete_paths(below)
    for parameter in command.params:
        word = (parameter.metavar or (parameter.name or "").upper()).removesuffix("...")
        if word in PATHS and parameter.type is click.STRING:
            parameter.type = Place()
