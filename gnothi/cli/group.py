"""A group of verbs that helps who mistypes one."""

from __future__ import annotations

import re

import click


class Verbs(click.Group):
    """Commands in the order of use, the nearest one named where there is no such command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they are written below."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A line each: the first sentence, or as many of its clauses as fit."""
        room = formatter.width - 6 - max(map(len, self.commands))
        with formatter.section("Commands"):
            formatter.write_dl([(name, clauses(command.get_short_help_str(limit=1000), room)) for name, command in self.commands.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a helpful error."""
        import difflib

        if args and args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.4)
            rule = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.commands)}"
            ctx.fail(f"no such command {args[0]!r}; {rule}")
        return super().resolve_command(ctx, args)


def clauses(sentence: str, room: int) -> str:
    """The first clauses of a sentence that fit into so many characters; at least one."""
    ends = [m.start() for m in re.finditer(r"[;:,.](?= |$)", sentence)] or [len(sentence)]
    end = max([e for e in ends if e < room], default=ends[0])
    return sentence[:end] + "."
