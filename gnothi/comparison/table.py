"""From runs to one row an arm: the mean over seeds, the paired difference to the first arm, the time, the health; each with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gnothi.contracts import RunError
from gnothi.evaluate.result import Result, Z, paired, summary
from gnothi.training.progress import duration

Run = Mapping[str, Any]
OVER_SEEDS = "over seeds: 95 % t-interval of the mean of the seeds' values; it speaks of other seeds on the same test images"
OVER_IMAGES = {
    False: "over images: Wilson's 95 % interval, of a difference Newcombe's paired one (1998, method 10); it speaks of other test images, this seed",
    True: "over images: each image's mean over seeds, 95 % normal interval of the mean over images; it speaks of other test images, these seeds",
}
"""In words, by whether there are several seeds."""
DIFFERENCE = "a difference is taken on the same test images and between runs of the same seed, before anything is averaged"


def protocol(seeds: int) -> list[str]:
    """What the intervals mean, a sentence each."""
    several = seeds > 1
    return [*([OVER_SEEDS] if several else []), OVER_IMAGES[several], DIFFERENCE]


def pack(correct: np.ndarray) -> str:
    """[n] bool as hexadecimal digits, eight rows to two digits."""
    return np.packbits(correct).tobytes().hex()


def unpack(digits: str, n: int) -> np.ndarray:
    """Undo ``pack``."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8))[:n].astype(bool)


def rows(arms: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row an arm that has a run, in the order of the arms.

    Args:
        arms: with ``arm``, ``epochs``, ``steps`` and ``planned_seconds``.
        runs: with ``arm`` and ``seed``, and either what was measured or ``failed``.
    """
    first = arms[0]["arm"]
    answers = {(r["arm"], r["seed"]): unpack(r["correct"], r["n"]) for r in runs if "correct" in r}
    table = []
    for arm in arms:
        own = [r for r in runs if r["arm"] == arm["arm"]]
        if own:
            row = {"arm": arm["arm"], "epochs": arm["epochs"], "steps": arm["steps"], **_measured(own, answers), **_spent(own, arm)}
            if arm["arm"] != first:
                row["difference"] = difference(answers, arm["arm"], first)
            table.append(row)
    return table


def _measured(own: Sequence[Run], answers: Mapping[tuple[str, int], np.ndarray]) -> dict[str, Any]:
    """Value and intervals of an arm; None where all its runs failed."""
    good = [r for r in own if "correct" in r]
    health = dict(Counter(r.get("verdict", "failed") for r in own))
    if not good:
        return {"seeds": [], "value": None, "over_seeds": None, "over_images": None, "verdicts": health}
    value, seeds = over_seeds([r["value"] for r in good])
    images = [good[0]["low"], good[0]["high"]]
    if len(good) > 1:
        images = over_images(_stack([answers[r["arm"], r["seed"]] for r in good]))
    return {"seeds": [r["seed"] for r in good], "value": value, "over_seeds": seeds, "over_images": images, "n": good[0]["n"], "verdicts": health}


def _spent(own: Sequence[Run], arm: Mapping[str, Any]) -> dict[str, Any]:
    """Mean seconds of training, those that were planned, and how far apart they are, as a part of the plan."""
    seconds = [r["seconds"] for r in own if "seconds" in r]
    mean, planned = float(np.mean(seconds)) if seconds else None, arm["planned_seconds"]
    return {"seconds": mean, "planned_seconds": planned, "off_seconds": None if mean is None else mean / planned - 1}


def difference(answers: Mapping[tuple[str, int], np.ndarray], arm: str, first: str) -> dict[str, Any] | None:
    """How much more often an arm is right than the first one, over the seeds that both have; None where there is none.

    Args:
        answers: [n] bool by arm and seed.
        arm: the one.
        first: the other.
    """
    seeds = [seed for name, seed in answers if name == arm and (first, seed) in answers]
    if not seeds:
        return None
    a, b = np.split(_stack([answers[name, seed] for name in (arm, first) for seed in seeds]), 2)
    value, between = over_seeds((a.mean(1) - b.mean(1)).tolist())
    images = paired(a[0], b[0]) if len(seeds) == 1 else None
    return {
        "against": first,
        "seeds": seeds,
        "value": value,
        "over_seeds": between,
        "over_images": over_images(a.astype(np.int8) - b.astype(np.int8)) if images is None else [images.low, images.high],
    }


def over_seeds(values: Sequence[float]) -> tuple[float, list[float] | None]:
    """The mean, and its t-interval where there are several."""
    whole = summary([Result("", v, v, v, 1, "") for v in values])
    return whole.value, [whole.low, whole.high] if len(values) > 1 else None


def over_images(values: np.ndarray) -> list[float]:
    """The normal interval of the mean over images of each image's mean over seeds: [S, N] -> low, high."""
    images = values.mean(0)
    half = Z * float(images.std(ddof=1)) / len(images) ** 0.5
    return [float(images.mean()) - half, float(images.mean()) + half]


def _stack(answers: Sequence[np.ndarray]) -> np.ndarray:
    """[S, N]; refused where runs were asked about different images."""
    counts = sorted({len(a) for a in answers})
    if len(counts) > 1:
        raise RunError(f"runs were asked about {counts[0]} and {counts[-1]} test images; the images changed between them, --out begins anew")
    return np.stack(answers)


# ---- as text -------------------------------------------------------------------------------------
def text(table: Sequence[Mapping[str, Any]], metric: str, words: Sequence[str]) -> str:
    """The table as aligned plain text, what its columns mean below."""
    several = any(row["over_seeds"] for row in table)
    differ = [row["difference"] for row in table if row.get("difference")]
    header = ["arm", metric, *(["95 % over seeds"] if several else []), "95 % over images"]
    if differ:
        header += [f"minus {differ[0]['against']}", *(["over seeds"] if several else []), "over images"]
    lines = [[*header, "epochs", "time", "off plan", "health"]]
    for row in table:
        cells = [row["arm"], *_cells(row, several, "{:.3f}")]
        cells += _cells(row.get("difference") or {}, several, "{:+.3f}") if differ else []
        lines.append([*cells, f"{row['epochs']:.4g}", *time(row), verdicts(row)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*aligned, "", *words])


def _cells(found: Mapping[str, Any], several: bool, form: str) -> list[str]:
    value = found.get("value")
    ends = [found.get(key) for key in (["over_seeds"] if several else []) + ["over_images"]]
    return ["" if value is None else form.format(value), *("" if e is None else " to ".join(form.format(v) for v in e) for e in ends)]


def time(row: Mapping[str, Any]) -> tuple[str, str]:
    """Mean training time of a run, and how far it is from the plan."""
    return ("", "") if row["seconds"] is None else (duration(row["seconds"]), f"{row['off_seconds']:+.0%}")


def verdicts(row: Mapping[str, Any]) -> str:
    """``healthy``, or how many of each."""
    found = row["verdicts"]
    return next(iter(found)) if len(found) == 1 else ", ".join(f"{n} {word}" for word, n in found.items())
