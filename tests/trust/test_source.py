"""What no module of gnothi does: open a pickle, let another library open one, take a duration from the clock on the wall."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gnothi
from gnothi.contracts import SettingError
from gnothi.models.backbone import BackboneSpec, build


def test_the_arguments_that_read_weights_are_refused() -> None:
    for word in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        with pytest.raises(SettingError, match=f"backbone.args.{word}: gnothi sets it itself"):
            build(BackboneSpec(name="resnet18", args={word: "x"}), 3, 32, 0)
    for name in ("hf-hub:someone/model", "hf_hub:someone/model", "local-dir:."):
        with pytest.raises(SettingError, match="no such network"):
            build(BackboneSpec(name=name), 3, 32, 0)


def test_nothing_in_the_source_can_open_a_pickle() -> None:
    for path in sorted(Path(gnothi.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                words = {a.name.split(".")[0] for a in node.names} | {getattr(node, "module", None) or ""}
                assert not words & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("load", "save", "savez", "open_memmap"):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                assert owner not in ("torch", "pickle"), f"{path}:{node.lineno}"
                if owner == "np" and node.func.attr == "load":
                    given = {k.arg: k.value for k in node.keywords}
                    assert isinstance(given.get("allow_pickle"), ast.Constant) and given["allow_pickle"].value is False, f"{path}:{node.lineno}"


def test_durations_are_never_taken_from_the_clock_on_the_wall() -> None:
    for path in sorted(Path(gnothi.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}, path
