"""Accuracy of what a network says after every block: where representations form, and what an early exit costs and saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import Block, EncoderError, Encoding, SettingError, Source, Want, did_you_mean
from gnothi.data import DataSpec
from gnothi.encoders import Encoder, load
from gnothi.encoders.encoder import Progress
from gnothi.encoders.network import PIXELS_AT_ONCE, NetworkEncoder
from gnothi.evaluate.depth import flops_to
from gnothi.evaluate.result import Result, summary
from gnothi.evaluate.run import OPTIONS, chosen, measure, split, vectors_of
from gnothi.randomness import generator

METRICS = ("knn", "linear")
POOLS = ("max", "average")
MOST = 9600
"""Numbers of a block's grid, at most; linear tables of AlexNet's layers have 9,216 or 9,600 (arXiv 1807.05520)."""


@dataclass(frozen=True)
class Column:
    """One kind of vector of one block."""

    block: int
    features: Literal["pooled", "final", "max", "average"]
    """One vector, before or after the backbone's final norm; or a grid, of maxima or of means over its cells."""


class Blocks(Encoder):
    """All blocks of a network side by side, from one pass.

    Args:
        encoder: whose blocks.
        pool: "max" or "average": each block's patches on the finest square grid of at most ``MOST`` numbers. None: one vector a block.
    """

    def __init__(self, encoder: Encoder, pool: str | None = None) -> None:
        if not isinstance(encoder, NetworkEncoder):
            raise EncoderError(f"{encoder.name} has no blocks to measure, it is not a network; a run, an exported folder and timm:NAME are")
        self.inner, self.name, self.channels, self.pool = encoder, encoder.name, encoder.channels, pool
        backbone: Any = encoder.backbone
        self.numbers = tuple(range(len(backbone.block_widths)))
        if not self.numbers:
            raise EncoderError(f"{encoder.name} has no blocks to measure: its network gives only its last output")
        noise = torch.randn(2, encoder.channels, encoder.size, encoder.size, generator=generator(0, "blocks"))
        self.parts, self.dim = dict[Column, slice](), 0
        for number, block in self._blocks(noise).items():
            for column in _columns(number, block) if pool is None else [Column(number, pool)]:  # type: ignore[arg-type]
                width = (block.pooled if pool is None else gridded(block, pool)).shape[1]
                self.parts[column] = slice(self.dim, self.dim + width)
                self.dim += width
        self.flops = flops_to(backbone, encoder.channels, encoder.size)
        self.fingerprint = f"{encoder.fingerprint}-blocks" + ("" if pool is None else f"-{pool}-{MOST}")

    def prepare(self, images: Tensor) -> Tensor:
        """As the network's own."""
        return self.inner.prepare(images)

    @torch.inference_mode()
    def _blocks(self, prepared: Tensor) -> dict[int, Block]:
        said: Encoding = self.inner.backbone(prepared.to(self.inner.device), Want(patches=self.pool is not None, blocks=self.numbers))
        return said.blocks

    def encode(self, prepared: Tensor) -> Tensor:
        """[B, C, size, size] to the vectors of all columns, [B, dim]."""
        at_once = max(1, PIXELS_AT_ONCE // self.inner.size**2)
        passes = [self._blocks(part) for part in prepared.split(at_once)]
        return torch.cat([torch.cat([self._vector(blocks, column).float().cpu() for column in self.parts], 1) for blocks in passes])

    def _vector(self, blocks: dict[int, Block], column: Column) -> Tensor:
        """Where both kinds are one, it is the one that the network itself goes on to use."""
        if self.pool is not None:
            return gridded(blocks[column.block], self.pool)
        alone = Column(column.block, "final") not in self.parts
        return blocks[column.block].final if alone or column.features == "final" else blocks[column.block].pooled

    def about(self, column: Column) -> dict[str, Any]:
        """What a result says of its place in the network."""
        flops = self.flops[column.block]
        return {
            "block": column.block,
            "blocks": len(self.numbers),
            "features": column.features,
            "flops": flops,
            "share": flops / max(self.flops[-1], 1),
        }


def _columns(number: int, block: Block) -> list[Column]:
    """One where the final norm does nothing to a block's vector, or there is none of its width; else two."""
    same = torch.allclose(block.pooled, block.final, rtol=1e-3, atol=1e-5)
    return [Column(number, "pooled"), *([] if same else [Column(number, "final")])]


def gridded(block: Block, how: str) -> Tensor:
    """Patches on the finest square grid of at most ``MOST`` numbers, each cell the maximum or mean of the patches in it: [B, G x G x D]."""
    assert block.patches is not None
    maps = block.patches.mT.unflatten(2, block.grid)  # [B, D, rows, columns]
    side = max(1, min(*block.grid, int((MOST / maps.shape[1]) ** 0.5)))
    return (F.adaptive_max_pool2d if how == "max" else F.adaptive_avg_pool2d)(maps, side).flatten(1)


def layers(
    encoders: Sequence[str | Encoder],
    data: str | Source,
    test: str | Source | None = None,
    *,
    metrics: Sequence[str] = METRICS,
    pool: str | None = None,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    cache: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Result]:
    """Measure every block of networks on the same rows; the images pass through a network once.

    Args:
        encoders: names, or encoders, that are networks.
        data: as for ``run``.
        test: as for ``run``.
        metrics: "knn", "linear" or both.
        pool: "max" or "average": each block as a grid of at most 9,600 numbers, as in linear tables of papers. None: as one vector.
        settings: of the data, where it is named.
        seed: of every choice.
        cache: folder of the stored features; see ``encoders.features``.
        device: where encoders compute.
        progress: told how many images of an encoder are embedded.
        options: of the kinds, as for ``run``.

    Returns:
        A result for each encoder, block, kind of vector and metric, in this order. ``details`` hold ``block`` (from 0), ``blocks``, ``features``
        ("pooled", before the final norm, or "final", after it, where the two differ; else ``pool``), ``flops`` up to there and their ``share`` of
        the last block's.
        ``paired``, of all but the first encoder that have as many blocks, is the difference to the first one's same block.

    Raises:
        SettingError: there is no such metric or option.
        DataError: there are no labels, or too few rows.
        EncoderError: an encoder is not a network, cannot be opened or does not take such images.
    """
    given = _options(metrics, options)
    if pool not in (None, *POOLS):
        raise SettingError(f"pool must be {' or '.join(POOLS)}, got {pool!r}; {did_you_mean(str(pool), POOLS)}")
    opened = [Blocks(load(e, device) if isinstance(e, str) else e, pool) for e in encoders]
    rows = split(data, test, settings, seed)
    vectors = [(vectors_of(e, rows.train, cache, progress), vectors_of(e, rows.test, cache, progress)) for e in opened]
    found: dict[tuple[int, Column, str], Result] = {}
    for group in _alike(opened):
        for column in opened[group[0]].parts:
            places = {i: opened[i].parts[column] for i in group}
            parts = [(opened[i].name, vectors[i][0][:, place], vectors[i][1][:, place]) for i, place in places.items()]
            for metric, said in given.items():
                for i, result in zip(group, measure(metric, parts, rows, said, seed), strict=True):
                    found[i, column, metric] = replace(result, details=result.details | opened[i].about(column))
    return [found[i, column, metric] for i, e in enumerate(opened) for column in e.parts for metric in given]


def _options(metrics: Sequence[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of each metric."""
    for metric in metrics or ("",):
        if metric not in METRICS:
            raise SettingError(f"metric must be {' or '.join(METRICS)}, got {metric!r}; {did_you_mean(metric, METRICS)}")
    known = [word for metric in metrics for word in OPTIONS[metric]]
    for word in options:
        if word not in known:
            raise SettingError(f"{word}: {' and '.join(metrics)} have no such option; {did_you_mean(word, known)}")
    return {metric: chosen(metric, {k: v for k, v in options.items() if k in OPTIONS[metric]}) for metric in dict.fromkeys(metrics)}


def _alike(opened: list[Blocks]) -> list[list[int]]:
    """Numbers of the encoders that have the first one's columns, and the others alone."""
    same = [i for i, e in enumerate(opened) if list(e.parts) == list(opened[0].parts)]
    return [same, *([i] for i in range(len(opened)) if i not in same)]


# ---- results together ---------------------------------------------------------------------------
def over_seeds(results: Sequence[Result]) -> list[Result]:
    """One result a block, kind of vector and metric from encoders that are one recipe with several seeds; see ``summary``."""
    together: dict[tuple[Any, ...], list[Result]] = {}
    for r in results:
        together.setdefault((r.metric, r.details["block"], r.details["features"]), []).append(r)
    place = ("block", "blocks", "features", "flops", "share")
    return [replace(s := summary(rs), details=s.details | {k: rs[0].details[k] for k in place}) for rs in together.values()]


def table(results: Sequence[Result]) -> str:
    """A row a block and kind of vector, the metrics side by side, the protocols below."""
    metrics, compared = list(dict.fromkeys(r.metric for r in results)), next((r for r in results if "paired" in r.details), None)
    header = ["encoder", "block", "features", "GFLOPs", "share"]
    for metric in metrics:
        header += [f"{metric} (95 %)", *([f"{metric} minus {compared.details['paired']['against']}"] if compared else [])]
    by_row: dict[tuple[Any, ...], dict[str, Result]] = {}
    for r in results:
        by_row.setdefault((r.encoder, r.details["block"], r.details["features"]), {})[r.metric] = r
    lines = [header]
    for (encoder, block, features), of in by_row.items():
        about = next(iter(of.values())).details
        line = [encoder, str(block), features, f"{about['flops'] / 1e9:.3g}", f"{about['share']:.0%}"]
        for metric in metrics:
            r, paired = of[metric], of[metric].details.get("paired")
            line += [f"{r.value:.3f} ({r.low:.3f} to {r.high:.3f})"]
            line += ([f"{paired['value']:+.3f} ({paired['low']:+.3f} to {paired['high']:+.3f})"] if paired else [""]) if compared else []
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*rows, "", *dict.fromkeys(r.protocol for r in results)])
