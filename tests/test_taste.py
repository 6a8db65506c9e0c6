"""Every help text as one eye reads it: the same order, the same words for the same things, whole sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from gnothi.cli import cli
from gnothi.cli.alike import LAST
from gnothi.cli.group import clauses


def paths(group: click.Group, front: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*front, name), command
        if isinstance(command, click.Group):
            yield from paths(command, (*front, name))


ALL = [((), cli), *paths(cli)]


def shown(path: tuple[str, ...], width: int) -> str:
    return CliRunner().invoke(cli, [*path, "--help"], prog_name="gnothi", terminal_width=width).output


@pytest.mark.parametrize(("path", "command"), ALL, ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_options_of_all_verbs_stand_last_and_say_the_same(path: tuple[str, ...], command: click.Command) -> None:
    common = [p.name for p in command.params if p.name in LAST]
    assert [p.name for p in command.params][len(command.params) - len(common) :] == common == [n for n in LAST if n in common]
    for option in (p for p in command.params if isinstance(p, click.Option)):
        assert option.help and option.help[-1] == ".", option.name
        assert option.metavar or option.is_flag or isinstance(option.type, click.Choice), f"{option.name}: a word for its value"
    wanted = {"as_json": "Print one machine-readable object.", "device": "cpu, cuda or mps; by default cuda where there is one."}
    assert all(p.help == wanted[str(p.name)] for p in command.params if isinstance(p, click.Option) and p.name in wanted)


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_help_shows_no_type_of_a_program_and_breaks_nothing_off(path: tuple[str, ...]) -> None:
    for width in (80, 110):
        text = shown(path, width)
        assert not re.search(r"\b(INTEGER|FLOAT|TEXT|RANGE)\b|\[default: ", text)
        assert "..." not in text.partition("\nCommands:\n")[2]


def test_clauses_end_where_they_fit() -> None:
    sentence = "Accuracy of every block, before and after the norm: and more; all."
    assert clauses(sentence, 100) == sentence
    assert clauses(sentence, 62) == "Accuracy of every block, before and after the norm: and more."
    assert clauses(sentence, 30) == clauses(sentence, 3) == "Accuracy of every block."
    assert clauses("No end", 3) == "No end."
