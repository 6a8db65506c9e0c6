"""Tables of the example projects, from the results that examples/ left; and of the first hour with others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tables import NOT_YET, ROOT, interval, results

Row = dict[str, Any]
PROJECTS = ("blood_cells", "flowers", "fashion", "microscopy", "microscopy_raw")
METRICS = {"knn": "k-NN", "linear": "a linear classifier"}


def project(name: str) -> Callable[[], str]:
    """A writer of what an example measured, and in words what stands apart from the trained network."""
    file = ROOT / "examples" / "results" / f"{name}.json"

    def write() -> str:
        return told(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else NOT_YET

    write.__name__ = name
    return write


def told(found: dict[str, Any]) -> str:
    rows, run, images = found["results"], found["run"], found["data"]
    lines = ["| encoder | k-NN | linear | linear, minus the trained one's |", "|---|---|---|---|"]
    for encoder in dict.fromkeys(r["encoder"] for r in rows):
        of = {r["metric"]: r for r in rows if r["encoder"] == encoder}
        lines.append(f"| {encoder} | {interval(of.get('knn'))} | {interval(of['linear'])} | {difference(of['linear'])} |")
    shape, kinds = " x ".join(map(str, images["train"]["first"])), len(images["test"]["labelled"])
    trained = f"{run['method']} on {run['backbone']} learned from {run['n']:,} images (the first is {shape}, {images['train']['dtype']})"
    spent = f" by the clock, {run['processor'] / 60:.1f} of processor time" if run["processor"] else " by the clock"
    length = f"{run['asked']['training']['epochs']:g} epochs, {run['steps']:,} steps of {run['size']} px, {run['seconds'] / 60:.1f} minutes{spent}"
    asked = f"Tested on {rows[0]['n']:,} other images of {kinds} classes. 95 % intervals over test images, one seed, last epoch."
    about = f"{trained} for {length}; verdict: {run['verdict']}. {asked}"
    return "\n".join([*lines, "", about, "", *(f"- {apart(metric, rows)}" for metric in METRICS)])


def difference(row: Row) -> str:
    pair = row["details"].get("paired")
    return "" if pair is None else f"{pair['value']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f})"


def apart(metric: str, rows: Sequence[Row]) -> str:
    """Who is below the trained network, level with it or above it, by the interval of the difference."""
    pairs = {r["encoder"]: r["details"]["paired"] for r in rows if r["metric"] == metric and "paired" in r["details"]}
    below = [name for name, pair in pairs.items() if pair["high"] < 0]
    above = [name for name, pair in pairs.items() if pair["low"] > 0]
    level = [name for name in pairs if name not in below + above]
    said = [
        f"{words} {', '.join(names)}" for words, names in (("below it:", below), ("not told apart from it:", level), ("above it:", above)) if names
    ]
    return f"Against the trained network, by {METRICS[metric]}: {'; '.join(said)}."


# ---- beside peers --------------------------------------------------------------------------------
ROUTES = {
    "lightly-magic": "lightly's command line, its own network (a ResNet-18 without strides in the stem)",
    "script": "lightly in a script, torchvision's ResNet-18; with k-NN of two networks",
    "gnothi resnet18": "`gnothi train` with that ResNet-18; with a checkpoint, a look at health and the page at the end",
    "gnothi": "`gnothi train` with the network of its own choice, a micro ResNet; with the same",
}


def peers_times() -> str:
    """An epoch of whole processes, and what each leaves."""
    found = results("peers")
    if not found.get("timed"):
        return NOT_YET
    lines = ["| way | precision | an epoch | files it leaves |", "|---|---|---|---|"]
    lines += [f"| {ROUTES[name]} | {row['precision']} | {row['seconds']:.0f} s | {len(row['left'])} |" for name, row in found["timed"].items()]
    loads = [row["load"] for row in found["timed"].values()]
    shape = f"{found['images']} flowers, all of them in each epoch, in batches of 32, 64 pixels"
    about = f"{shape}; one thread of a machine that others used too (load {min(loads):g} to {max(loads):g})"
    return "\n".join([*lines, "", f"{about}; start of the process included; lightly {found['lightly']}."])


def peers_lines() -> str:
    """Statements to write, counted in the files that are quoted."""
    found = results("peers")
    if not found:
        return NOT_YET
    lines = found["lines"]
    return f"Lines of Python, counted as statements: {lines['lightly']} in the script with lightly, {lines['gnothi']} in the block here."


def peers_hour() -> str:
    """How many commands the first hour has here, and how long they took."""
    found = results("first_hour")
    if not found:
        return NOT_YET
    minutes = [c["seconds"] / 60 for c in found["commands"]]
    learning = sum(m for m, c in zip(minutes, found["commands"], strict=True) if c["command"].startswith("gnothi train"))
    return f"{len(minutes)} commands and {sum(minutes):.0f} minutes in all, {learning:.0f} of them training, on {found['cores']} cores."


TABLES: tuple[Callable[[], str], ...] = (*map(project, PROJECTS), peers_times, peers_lines, peers_hour)
