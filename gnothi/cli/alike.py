"""What all verbs have alike, whoever wrote them: the order of options, the words for values, and paths that the shell completes."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

LAST = ("device", "assignments", "as_json")
"""Options of nearly all verbs, which stand behind a verb's own."""
PATHS = {"DATA", "ENCODER", "TEACHER", "IMAGE", "FEATURES|DATA", "RUN", "FOLDER", "DIR", "FILE", "PAGE"}
"""Words of the help that stand for something that may be a path."""


class Place(click.types.StringParamType):
    """Text that may be a path."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Let the shell complete it as a path."""
        return [CompletionItem(incomplete, type="file")]


def alike(command: click.Command) -> None:
    """Bring a command and those below it to the same form."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            alike(below)
    command.params.sort(key=lambda p: LAST.index(p.name) + 1 if p.name in LAST else 0)
    for parameter in command.params:
        word = (parameter.metavar or (parameter.name or "").upper()).removesuffix("...")
        if word in PATHS and parameter.type is click.STRING:
            parameter.type = Place()
        if isinstance(parameter, click.Option) and parameter.show_default:
            parameter.help, parameter.show_default = f"{(parameter.help or '').removesuffix('.')}; {parameter.default} by default.", False
        if isinstance(parameter, click.Option) and parameter.metavar is None and not parameter.is_flag:
            parameter.metavar = {"integer": "N", "integer range": "N", "float": "X", "float range": "X"}.get(parameter.type.name)
