"""How good the patches of a network are: what they show, by k-NN and a linear probe, or whether they find the same place in another crop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnothi.auxiliary import matching
from gnothi.auxiliary.local import stride
from gnothi.contracts import DataError, EncoderError, SettingError, Source, Want, did_you_mean
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, load
from gnothi.encoders.encoder import Progress
from gnothi.encoders.network import PIXELS_AT_ONCE, NetworkEncoder
from gnothi.evaluate import nearest
from gnothi.evaluate.annotations import Annotations, beside
from gnothi.evaluate.linear import predict as predict_linear
from gnothi.evaluate.result import Predictions, Result, accuracy
from gnothi.randomness import generator
from gnothi.views.crops import CropSpec, cut, draw, uniforms

METRICS = ("knn", "linear", "retrieval")
IMAGES = 1000
"""Images of which patches are taken, by default."""
TRAIN_PATCHES, TEST_PATCHES = 40_000, 20_000
"""At most, evenly over the images."""
HELD = 0.2
"""Part of the images that ask, where no test data are named."""
RESAMPLES = 2000
"""Of the images, for an interval."""
AREA = (0.3, 1.0)
"""Part of the image that a crop of retrieval covers."""
BATCH = 64


@dataclass(frozen=True)
class Group:
    """Images that answer or ask."""

    source: Source
    rows: np.ndarray
    """[N] row numbers."""
    annotations: Annotations | None
    words: str


def patches(
    encoders: Sequence[str | Encoder],
    data: str | Source,
    test: str | Source | None = None,
    *,
    metrics: Sequence[str] | None = None,
    annotations: str | None = None,
    size: int | None = None,
    images: int = IMAGES,
    k: int = 20,
    temperature: float = 0.07,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Measure the patches of networks on the same images.

    Args:
        encoders: names, or encoders, that are networks; the first is the one that the others are compared with.
        data: images; beside a folder annotations are looked for (``annotations.FOLDERS``).
        test: images that ask; by default a fifth of ``data``.
        metrics: "knn", "linear" and "retrieval"; by default the first two where there are annotations, else the last.
        annotations: folder of PASCAL VOC files or masks; of ``data``, and of ``test`` too unless that has its own beside it.
        size: side of the images as the networks see them; by default each network's own.
        images: at most so many of ``data`` and of ``test``.
        k: neighbours that vote.
        temperature: of the vote.
        settings: of the data.
        seed: of every choice.
        device: where the networks compute.
        progress: told how many images are done.

    Returns:
        A result for each metric and encoder, metrics first. Intervals resample images, for patches of an image are no independent evidence.

    Raises:
        SettingError: there is no such metric.
        DataError: nothing is known of the patches, or too few images can be read.
        EncoderError: an encoder is not a network.
    """
    opened = [_network(load(e, device) if isinstance(e, str) else e, size) for e in encoders]
    train, tested = _groups(data, test, annotations, settings, images, seed)
    known = train.annotations is not None and tested.annotations is not None
    wanted = tuple(metrics) if metrics is not None else ("knn", "linear") if known else ("retrieval",)
    _check(wanted, known, k, temperature)
    results: list[Result] = []
    for metric in wanted:
        first: tuple[str, np.ndarray] | None = None
        for encoder in opened:
            if metric == "retrieval":
                result, counts = _retrieval(encoder, tested if test is not None else _joined(train, tested), seed, progress)
            else:
                options = {"k": k, "temperature": temperature} if metric == "knn" else {}
                result, counts = _probe(metric, encoder, train, tested, options, seed, progress)
            if first is not None:
                result.details["paired"] = {"against": first[0], **_difference(first[1], counts, seed)}
            first = first or (encoder.name, counts)
            results.append(result)
    return results


def _check(metrics: Sequence[str], known: bool, k: int, temperature: float) -> None:
    for metric in metrics:
        if metric not in METRICS:
            raise SettingError(f"metric must be {', '.join(METRICS)}, got {metric!r}; {did_you_mean(metric, METRICS)}")
        if metric != "retrieval" and not known:
            raise DataError(
                f"{metric} of patches needs to know what is where: a folder Annotations (PASCAL VOC boxes) or masks (class numbers) beside the "
                "images, or --annotations FOLDER; retrieval needs none"
            )
    nearest.check(k, temperature)


def _network(encoder: Encoder, size: int | None) -> NetworkEncoder:
    if not isinstance(encoder, NetworkEncoder):
        raise EncoderError(f"{encoder.name} has no patches, it gives one vector an image; a run, an exported folder and timm:NAME have some")
    encoder = copy.copy(encoder)  # the same network
    encoder.size = size or encoder.size
    try:
        noise = torch.zeros(1, encoder.channels, encoder.size, encoder.size, device=encoder.device)
        with torch.inference_mode():
            grid = encoder.backbone(noise, Want(patches=True)).grid
    except SettingError as error:
        raise SettingError(str(error).replace("views.size", "--size")) from None
    if grid[0] * grid[1] < 2:
        raise EncoderError(f"{encoder.name} has one patch only at {encoder.size} pixels; a larger --size gives it more")
    return encoder


# ---- images -------------------------------------------------------------------------------------
def _groups(
    data: str | Source, test: str | Source | None, annotations: str | None, settings: DataSpec, images: int, seed: int
) -> tuple[Group, Group]:
    source, known, title = _opened(data, annotations, settings)
    if test is not None:
        other, its, its_title = _opened(test, None, settings)
        if its is None and annotations is not None:
            its = Annotations(known.folder) if known else None
        return _some(source, known, title, images, seed), _some(other, its, its_title, images, seed)
    whole = _some(source, known, title, images, seed)
    held = max(1, round(HELD * len(whole.rows)))
    if len(whole.rows) < 4:
        raise DataError(f"{title} has {len(whole.rows)} usable images; measuring patches needs at least 4")
    words = f"{title}: {held} images held out (seed {seed}), the other {len(whole.rows) - held} answer"
    return replace(whole, rows=whole.rows[held:], words=words), replace(whole, rows=whole.rows[:held], words=words)


def _joined(train: Group, tested: Group) -> Group:
    """All images: where nothing is learnt, nothing has to be held out."""
    rows = np.concatenate([tested.rows, train.rows])
    return Group(tested.source, rows, tested.annotations, f"{tested.words.partition(': ')[0]} ({len(rows)} images)")


def _opened(data: str | Source, annotations: str | None, settings: DataSpec) -> tuple[Source, Annotations | None, str]:
    if not isinstance(data, str):
        return data, None if annotations is None else beside("", annotations)[1], "the source"
    name, known = beside(data, annotations)
    return open_data(name, settings=settings), known, data


def _some(source: Source, known: Annotations | None, title: str, images: int, seed: int) -> Group:
    """Random images, of those that something is known of where anything is."""
    rows = torch.randperm(len(source), generator=generator(seed, "patches images")).numpy()
    if known is not None:
        rows = np.array([row for row in rows if known.of(source.name(int(row))) is not None], dtype=np.int64)
        if not len(rows):
            raise DataError(f"no file of {known.folder} has the name of an image of {title}, such as {source.name(0)}")
    return Group(source, rows[:images], known, f"{title} ({min(len(rows), images)} images)")


@torch.inference_mode()
def _tokens(encoder: NetworkEncoder, prepared: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """[B, C, size, size] to tokens [B, N, D] on the CPU, and the grid."""
    at_once = max(1, PIXELS_AT_ONCE // encoder.size**2)
    encodings = [encoder.backbone(part.to(encoder.device), Want(patches=True)) for part in prepared.split(at_once)]
    return torch.cat([e.patches.float().cpu() for e in encodings]).clone(), encodings[0].grid


def _read(group: Group, progress: Progress | None) -> Iterator[list[tuple[int, Tensor]]]:
    """Positions in the group and images [C, H, W], some at a time; broken ones are left out."""
    for start in range(0, len(group.rows), BATCH):
        held = []
        for i in range(start, min(start + BATCH, len(group.rows))):
            try:
                held.append((i, group.source.image(int(group.rows[i]))))
            except DataError:
                continue
        if held:
            yield held
        if progress is not None:
            progress(min(start + BATCH, len(group.rows)), len(group.rows))


# ---- what patches show --------------------------------------------------------------------------
@dataclass(frozen=True)
class _Labelled:
    x: np.ndarray
    """[M, D]."""
    names: list[str]
    images: np.ndarray
    """[M] positions in the group."""


def _labelled(encoder: NetworkEncoder, group: Group, most: int, seed: int, progress: Progress | None) -> _Labelled:
    """Patches with the class at their centres, evenly over the images."""
    share = max(1, most // max(len(group.rows), 1))
    vectors, names, images = [], list[str](), list[int]()
    assert group.annotations is not None
    room = matching.room_of(encoder.size, encoder.size, stride(encoder.backbone))
    for held in _read(group, progress):
        tokens, grid = _tokens(encoder, torch.cat([encoder.prepare(image[None]) for _, image in held]))
        for (i, image), own in zip(held, tokens, strict=True):
            shape = (image.shape[-2], image.shape[-1])
            found = group.annotations.at(group.source.name(int(group.rows[i])), _centres(shape, grid, room), shape)
            order = torch.randperm(len(found), generator=generator(seed, "patches", int(group.rows[i]))).tolist()
            chosen = sorted([j for j in order if found[j] is not None][:share])
            vectors.append(own[chosen].numpy())
            names += [str(found[j]) for j in chosen]
            images += [i] * len(chosen)
    if not names:
        raise DataError(f"no patch of {group.words} has a class")
    return _Labelled(np.concatenate(vectors), names, np.array(images))


def _centres(shape: tuple[int, int], grid: tuple[int, int], room: tuple[float, float] | None) -> np.ndarray:
    """Where the patches of the central square of an image lie, [N, 2] x and y in pixels; ``room`` as in ``matching.frame``."""
    height, width = shape
    side = min(height, width)
    box = torch.tensor([[(width - side) / 2, (height - side) / 2, side, side]], dtype=torch.float64)
    at = matching.frame(box, grid, torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.long), room=room)
    inside = torch.tensor([width - 0.5, height - 0.5], dtype=torch.float64)  # of a cell that sticks out the middle may, too
    return torch.minimum(matching.centres(at)[0], inside).numpy()


def _probe(
    metric: str, encoder: NetworkEncoder, train: Group, tested: Group, options: dict[str, Any], seed: int, progress: Progress | None
) -> tuple[Result, np.ndarray]:
    known, asked = _labelled(encoder, train, TRAIN_PATCHES, seed, progress), _labelled(encoder, tested, TEST_PATCHES, seed, progress)
    classes = tuple(sorted({*known.names, *asked.names}))
    place = {name: i for i, name in enumerate(classes)}
    labels, truth = (np.array([place[n] for n in group.names]) for group in (known, asked))
    predictions: Predictions
    if metric == "knn":
        predictions, protocol = nearest.predict(known.x, labels, asked.x, truth, names=classes, **options)
        more: dict[str, Any] = {}
    else:
        predictions, protocol, more = predict_linear(known.x, labels, asked.x, truth, groups=known.images.astype(str), seed=seed, names=classes)
    counts = _by_image(len(tested.rows), asked.images, predictions.correct)
    words = f"patches of {encoder.size} px images by the class at their centre, {protocol}; {_where(train, tested)}; interval by resampling images"
    details = {"images": int((counts[:, 1] > 0).sum()), **more}
    result = accuracy(f"patch {metric}", predictions, words, encoder=encoder.name, seeds=(seed,), **details)
    low, high = _interval(_resampled(counts, seed))
    return replace(result, low=min(low, result.value), high=max(high, result.value)), counts


def _where(train: Group, tested: Group) -> str:
    return train.words if train.words == tested.words else f"answered by {train.words}, asked by {tested.words}"


# ---- the same place in another crop -------------------------------------------------------------
def _retrieval(encoder: NetworkEncoder, group: Group, seed: int, progress: Progress | None) -> tuple[Result, np.ndarray]:
    """How often the most similar patch of another crop lies within half the diagonal of the larger cell."""
    spec = CropSpec(size=encoder.size, area=AREA)
    room = matching.room_of(encoder.size, encoder.size, stride(encoder.backbone))
    sums = np.zeros((len(group.rows), 4))  # right, kept, distance, expected by chance
    u = [uniforms(generator(seed, "patches crops", v), len(group.rows)) for v in range(2)]
    for held in _read(group, progress):
        at = torch.tensor([i for i, _ in held])
        heights, widths = (torch.tensor([image.shape[axis] for _, image in held]) for axis in (1, 2))
        tokens, frames = [], []
        for v in range(2):
            drawn = draw(u[v][at], heights, widths, spec)
            crops = [_cut(image, drawn.boxes[j : j + 1], drawn.flips[j : j + 1], encoder) for j, (_, image) in enumerate(held)]
            said, grid = _tokens(encoder, torch.cat(crops))
            tokens.append(said)
            frames.append(matching.frame(drawn.boxes, grid, drawn.flips, drawn.turns, room=room))
        for a, b in ((0, 1), (1, 0)):
            sums[at] += found(tokens[a], tokens[b], frames[a], frames[b]).numpy()
    right, kept, distance, chance = sums.sum(0).tolist()
    if not kept:
        raise DataError(f"no two crops of {group.words} have a place in common")
    counts = sums[:, :2]
    low, high = _interval(_resampled(counts, seed))
    far = _interval(_resampled(sums[:, [2, 1]], seed))
    words = (
        f"most similar patch (cosine) of another crop of {encoder.size} px, {AREA[0]:g} to {AREA[1]:g} of the area, mirrored or not (seed {seed}), "
        f"right within half the diagonal of the larger cell; {group.words}; interval by resampling images"
    )
    details = {"images": int((counts[:, 1] > 0).sum()), "mean_distance": distance / kept, "distance_interval": list(far), "chance": chance / kept}
    return Result("patch retrieval", right / kept, low, high, int(kept), words, encoder.name, (seed,), details), counts


def found(mine: Tensor, theirs: Tensor, at: matching.Frame, to: matching.Frame) -> Tensor:
    """What the most similar patches come to, image by image.

    Args:
        mine: [B, N, D] tokens of a crop.
        theirs: [B, M, D] of another crop.
        at: where the first lie.
        to: where the others lie.

    Returns:
        [B, 4] over the patches that have a centre near enough: how many find a near one, how many they are, the sum of distances of what is found in
        pixels of the source, and how many would find a near one by chance.
    """
    limit = matching.reach(at, to)[:, None]
    kept = matching.nearest(at, to)[1] < limit
    away = matching.apart(at, to, matching.similar(mine, theirs))
    every = torch.cdist(matching.centres(at), matching.centres(to), compute_mode="donot_use_mm_for_euclid_dist")
    chance = (every < limit[..., None]).double().mean(-1)
    return torch.stack([(part * kept).sum(1) for part in ((away < limit).double(), kept.double(), away, chance)], 1)


def _cut(image: Tensor, box: Tensor, flip: Tensor, encoder: NetworkEncoder) -> Tensor:
    """A crop as the network takes it, in the type of the image: [C, H, W] -> [1, C, size, size]."""
    crop = cut(image[None], box, encoder.size, flip)
    return encoder.prepare(crop if image.is_floating_point() else crop.round().clamp(0, torch.iinfo(image.dtype).max).to(image.dtype))


# ---- intervals ----------------------------------------------------------------------------------
def _by_image(n: int, images: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Right patches and patches of each of n images, [n, 2]."""
    return np.stack([np.bincount(images, weights=right, minlength=n), np.bincount(images, minlength=n)], 1)


def _resampled(counts: np.ndarray, seed: int) -> np.ndarray:
    """Ratios of the sums over images drawn with replacement, the same draws for the same number of images: [n, 2] -> [RESAMPLES]."""
    n = len(counts)
    rows = torch.randint(n, (RESAMPLES, n), generator=generator(seed, "patches interval")).numpy()
    sums = counts[rows].sum(1)
    ratios: np.ndarray = sums[:, 0] / np.maximum(sums[:, 1], 1e-12)
    return ratios


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _difference(first: np.ndarray, counts: np.ndarray, seed: int) -> dict[str, float]:
    """A result less the first one on the same images, with its interval."""
    value = counts[:, 0].sum() / counts[:, 1].sum() - first[:, 0].sum() / first[:, 1].sum()
    low, high = _interval(_resampled(counts, seed) - _resampled(first, seed))
    return {"value": float(value), "low": low, "high": high, "n": int((counts[:, 1] > 0).sum())}
