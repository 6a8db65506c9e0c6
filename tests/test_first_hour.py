"""The first hour is written down only where all of it went well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import first_hour


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one photograph; results lie in a folder of the test's own."""
    (tmp_path / "photographs" / "val" / "a").mkdir(parents=True)
    (tmp_path / "photographs" / "val" / "a" / "0.jpg").touch()
    monkeypatch.setattr(first_hour, "RESULTS", tmp_path / "found.json")
    return tmp_path / "photographs"


def test_a_command_that_fails_ends_the_hour_and_leaves_what_was_written(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: dict[str, int] = {}
    ran: list[str] = []

    def typed(command: str, folder: Path) -> dict[str, Any]:
        ran.append(" ".join(command.split()[:2]))
        return {"command": command, "code": codes.get(ran[-1], 0), "seconds": 1.0, "output": []}

    monkeypatch.setattr(first_hour, "typed", typed)
    first_hour.main([str(flowers)])
    before = first_hour.RESULTS.read_text()
    assert len(json.loads(before)["commands"]) == len(ran) == len(first_hour.commands("x", 1))
    codes["gnothi train"] = 2
    ran.clear()
    with pytest.raises(SystemExit, match="`gnothi train flowers --out runs/mine --epochs 3` ended with code 2"):
        first_hour.main([str(flowers), "--epochs", "3"])
    assert ran[-1] == "gnothi train" and first_hour.RESULTS.read_text() == before


def test_an_hour_has_a_folder_of_its_own(flowers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(first_hour, "typed", lambda command, folder: pytest.fail(command))
    (tmp_path / "hour" / "runs").mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        first_hour.main([str(flowers), "--out", str(tmp_path / "hour")])
    assert stopped.value.code == 2 and "holds the runs of an earlier hour" in capsys.readouterr().err and not first_hour.RESULTS.exists()
