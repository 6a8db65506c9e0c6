"""What the picture of matched patches shows, against the pixels under its cells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import PIXELS, make_run
from torch import Tensor, nn

from gnothi import encoders, report
from gnothi.contracts import Encoding, Pixels, Views, Want
from gnothi.encoders.network import NetworkEncoder
from gnothi.models.backbone import BackboneSpec
from gnothi.randomness import generator
from gnothi.report import matches, sections
from gnothi.views.crops import cut


class Colours(nn.Module):
    """The tokens are the mean colours of cells of 8 pixels."""

    width, block_widths = 3, (3,)

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        x = nn.functional.avg_pool2d(images, 8)
        return Encoding(x.mean((2, 3)), x.flatten(2).mT, (x.shape[2], x.shape[3]))


PLAIN = Pixels(0.0, 1.0, (0.0,) * 3, (1.0,) * 3)


def crops() -> Views:
    """Three images of tiles of 8 pixels, each of its own colour; crops on tile borders, one mirrored, one turned, one far away."""
    tiles = torch.rand(3, 3, 8, 8, generator=generator(0, "tiles"))
    images = tiles.repeat_interleave(8, 2).repeat_interleave(8, 3)
    boxes = torch.tensor([[[0.0, 0, 32, 32]] * 3, [[16.0, 8, 32, 32], [16, 8, 32, 32], [32, 32, 32, 32]]])
    flips, turns = torch.tensor([[False] * 3, [True, False, False]]), torch.tensor([[0] * 3, [0, 1, 0]])
    return Views(tuple(cut(images, boxes[v], 32, flips[v], turns[v]) for v in range(2)), boxes, flips, turns, 2, torch.arange(3))


def test_cells_of_one_colour_hold_the_same_pixels_and_lines_lead_between_them():
    given = crops()
    said = [Colours()(image) for image in given.images]
    pairs = matches.drawn(given, said, ["a", "b", "c"], PLAIN)
    assert [len(p.lines) for p in pairs] == [6, 6, 0]
    for i, pair in enumerate(pairs):
        left, right = pair.cells[:16], pair.cells[16:]

        def under(cell: matches.Cell, v: int, i: int = i) -> Tensor:
            x, y, s = cell.x - (matches.SIDE + matches.GAP) * v, cell.y, 32 / matches.SIDE
            rows, columns = (slice(round(a * s), round((a + cell.width) * s)) for a in (y, x))
            return given.images[v][i][:, rows, columns].mean((1, 2))

        partners = {c.colour: c for c in right if c.colour}
        coloured = [c for c in left if c.colour]
        assert len(coloured) == len(pair.lines) == len(partners)
        for cell in coloured:
            torch.testing.assert_close(under(cell, 0), under(partners[cell.colour], 1), rtol=0, atol=0.05)
        for line in pair.lines:
            start, end = (next(c for c in side if abs(c.x + c.width / 2 - x) < 0.1 and abs(c.y + c.height / 2 - y) < 0.1) for side, x, y in (
                (left, line.x1, line.y1), (right, line.x2, line.y2)))  # fmt: skip
            assert line.near == (start.colour == end.colour)
        assert pair.note.startswith(f"{len(pair.lines)} of 16 patches have a partner")
    assert all(line.near for line in pairs[0].lines)  # colours of tiles are their own


def network() -> NetworkEncoder:
    return NetworkEncoder("run", Colours(), BackboneSpec(), 3, 32, Pixels(**{k: tuple(v) if isinstance(v, list) else v for k, v in PIXELS.items()}))


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_the_page_shows_them_for_runs_that_taught_patches(weight: float, tmp_path: Path, tiles: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoders, "load", lambda name, device=None: network())
    monkeypatch.setattr(sections, "neighbours", lambda *a: 1 / 0)  # only this section is looked at
    monkeypatch.setattr(sections, "chart_of", lambda *a: 1 / 0)
    run = make_run(tmp_path / "run", tiles, settings={"auxiliary": {"local": {"weight": weight}}, "data": {"name": tiles}})
    page = report.write(run).read_text()
    assert ('id="matches"' in page) == (weight > 0)
    if weight:
        section = page[page.index('id="matches"') : page.index('id="neighbours"')]
        assert section.count("<svg") == 6 and section.count("<rect") == 3 * 32 and section.count("<image") == 12
        counts = [int(n) for n in re.findall(r"(\d+) of 16 patches", section)]
        assert len(counts) == 3 and section.count("<line") == sum(counts)
        assert "Not shown" not in section


def test_a_run_whose_encoder_has_no_patches_says_so(tmp_path: Path, tiles: str, encoder):
    run = make_run(tmp_path / "run", tiles, settings={"auxiliary": {"local": {"weight": 1.0}}, "data": {"name": tiles}})
    page = report.write(run).read_text()
    assert "has no network whose patches could be shown" in page[page.index('id="matches"') :]
