"""A group of verbs that helps who mistypes one."""

from __future__ import annotations

import click


class Verbs(click.Group):
    """Commands in the order of use, the nearest one named where there is no such command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they are written below."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a helpful error."""
        import difflib

        if args and args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.4)
            rule = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.commands)}"
            ctx.fail(f"no such command {args[0]!r}; {rule}")
        return super().resolve_command(ctx, args)
