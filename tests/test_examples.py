"""The examples of bringing one's own: short, right by an oracle, and of use."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gnothi.auxiliary import AUXILIARIES
from gnothi.contracts import SettingError, Step, Views, Want
from gnothi.methods import METHODS
from gnothi.models.backbone import BACKBONES, BackboneSpec, build
from gnothi.randomness import generator
from gnothi.recipes.views import named

EXAMPLES = Path(__file__).parent.parent / "examples"
STEP = Step(0, 0, 10)


@contextlib.contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """An example as a module; the tables are as before afterwards."""
    tables = [(table, dict(table)) for table in (METHODS, AUXILIARIES, BACKBONES)]
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]
        for table, before in tables:
            table.clear()
            table.update(before)  # type: ignore[arg-type]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "examples"))


def test_examples_are_under_60_lines() -> None:
    assert {p.stem for p in EXAMPLES.glob("own_*.py")} == {"own_backbone", "own_method", "own_auxiliary"}
    assert all(len(p.read_text(encoding="utf-8").splitlines()) < 60 for p in EXAMPLES.glob("own_*.py"))


def test_the_method_s_match_is_alignment_and_uniformity_by_a_loop() -> None:
    with imported("own_method") as example:
        method = example.Uniform(build(BackboneSpec(), 3, 16, 0), example.UniformSpec(uniformity=0.7, sharpness=1.5))
        rows, partners, index, weight = noise(9, 5), noise(4, 5), torch.arange(9) % 4, torch.arange(9) / 4
        found = method.space.match(rows, torch.nn.functional.normalize(partners, dim=1), index=index, weight=weight, step=STEP)
    total = 0.0
    unit = [[float(v) / math.sqrt(sum(float(u) ** 2 for u in row)) for v in row] for row in rows]
    ends = [[float(v) / math.sqrt(sum(float(u) ** 2 for u in row)) for v in row] for row in partners]
    for i, row in enumerate(unit):
        align = sum((a - b) ** 2 for a, b in zip(row, ends[i % 4], strict=True))
        crowd = [math.exp(-1.5 * sum((a - b) ** 2 for a, b in zip(row, other, strict=True))) for j, other in enumerate(unit) if j != i]
        total += i / 4 * (align + 0.7 * math.log(sum(crowd) / 8))
    assert float(found) == pytest.approx(total / 9, rel=1e-5)


def test_the_auxiliary_sees_where_the_second_crop_lies() -> None:
    boxes = torch.tensor([[[10.0, 10, 20, 40], [10, 10, 20, 40]], [[25, 20, 10, 20], [25, 20, 10, 20]]])
    flips = torch.tensor([[False, True], [True, False]])
    views = Views((noise(2, 3, 8, 8),) * 2, boxes, flips, torch.zeros(2, 2, dtype=torch.long), 2, torch.arange(2))
    with imported("own_auxiliary") as example:
        seen = example.seen_from_the_first(views)
        with pytest.raises(SettingError, match="auxiliary.place needs two global views with an up"):
            example.Place.check(named("any-orientation", 32))
    # Centres (20, 30) and (30, 30): half a width to the right, not above or below, half as wide and half as tall; mirrored, to the left.
    assert seen.tolist() == [pytest.approx([0.5, 0, math.log(0.5), math.log(0.5)]), pytest.approx([-0.5, 0, math.log(0.5), math.log(0.5)])]


def test_the_backbone_gives_patches_and_blocks_that_agree_with_its_pooled_vector() -> None:
    with imported("own_backbone"):
        network = build(BackboneSpec(name="patchwork", args={"depth": 2, "width": 24}), 5, 32, 0).eval()
        said = network(noise(3, 5, 32, 32), Want(patches=True, blocks=(0, 1)))
    assert said.grid == (8, 8) and said.patches.shape == (3, 64, 24) and network.width == 24 and len(network.block_widths) == 2
    assert torch.allclose(said.patches.mean(1), said.pooled, atol=1e-6) and torch.equal(said.blocks[1].pooled, said.pooled)
    assert not torch.allclose(said.blocks[0].pooled, said.pooled)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_backbone", "own_method", "own_auxiliary"])
def test_examples_run_as_they_are(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if name == "own_auxiliary":
        first, last = (float(word) for word in done.stdout.split()[-7:] if word[0].isdigit())
        assert last < first
    assert (tmp_path / "runs" / name.replace("_", "-") / "verdict.json").is_file()
