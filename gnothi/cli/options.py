"""What verbs share: options, the settings they stand for, and the printing of one object or of text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import click

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one machine-readable object.")
SET = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A dotted setting, such as training.epochs=20; may be repeated.")
DATA_SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting of data, such as data.labels=FILE; may be repeated."
)
DEVICE = click.option("--device", metavar="D", help="cpu, cuda or mps; by default cuda where there is one.")


def told(as_json: bool, value: Any, text: Callable[[], str]) -> None:
    """Print one object or plain text; once for all processes of ``torchrun``."""
    if os.environ.get("RANK", "0") != "0":
        return
    click.echo(json.dumps(value, ensure_ascii=False, default=str) if as_json else text())


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
