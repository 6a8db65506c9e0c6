"""What verbs share: options, the settings they stand for, and the printing of one object or of text."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one machine-readable object.")
SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A dotted setting, such as training.epochs=20; may be repeated.")
DATA_SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting of data, such as data.labels=FILE; may be repeated."
)
DEVICE = click.option("--device", metavar="D", help="cpu, cuda or mps; by default cuda where there is one.")


class Lists(click.Command):
    """A command whose list options take further words: ``--methods a b`` is ``--methods a --methods b``.

    Args:
        args: as for a command.
        lists: the names of these options.
        more: as for a command.
    """

    def __init__(self, *args: Any, lists: tuple[str, ...], **more: Any) -> None:
        super().__init__(*args, **more)
        self.lists = lists

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the list again before each further word; the last of them is the argument where there must be one and stands nowhere else."""
        spread: list[str] = []
        again: list[int] = []
        current = ""
        for word in args:
            if word.startswith("-"):
                current = word if word in self.lists else ""
            elif current and spread[-1] != current:
                again.append(len(spread))
                spread.append(current)
            spread.append(word)
        needs = sum(isinstance(p, click.Argument) and p.required for p in self.params)
        if again and needs and len(self.make_parser(ctx).parse_args(list(args))[1]) + needs == len(again):
            del spread[again[-1]]
        return super().parse_args(ctx, spread)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """DATA first: behind a list it would be one of its words."""
        return super().collect_usage_pieces(ctx)[::-1]


def told(as_json: bool, value: Any, text: Callable[[], str]) -> None:
    """Print one object or plain text; once for all processes of ``torchrun``."""
    if os.environ.get("RANK", "0") != "0":
        return
    click.echo(json.dumps(value, ensure_ascii=False, default=str) if as_json else text())


def onward(folder: Path) -> str:
    """What to do next with a run, as it can be typed: measure it where there are labels, else look something up."""
    from gnothi.data.open import words
    from gnothi.training import twice

    record = twice.read(folder)
    run, images = shlex.quote(str(folder)), " ".join(words(record["settings"]["data"]))
    if record["source"].get("labelled") == 0:
        return f"next    gnothi neighbours {run} IMAGE --in {images}"
    return f"next    gnothi evaluate knn {run} {run}@untrained pixels colour --data {images}"


def data_settings(data: str, assignments: tuple[str, ...]) -> Any:
    """The data settings of --set, for verbs that take no others."""
    from gnothi.contracts import SettingError
    from gnothi.recipes.spec import flat, load, merge, parse

    given = parse(assignments)
    settings = load(merge({"data": {"name": data}}, given)).data
    other = next((key for key in flat(given) if not key.startswith("data.") or key == "data.name"), None)
    if other is not None:
        raise SettingError(f"{other} has no effect here; of all settings this command takes those of data, such as data.labels=FILE")
    return settings
