"""Tables of docs/scale.md: a plan against what was taken, and what gives way first at 10^9 images, computed from the formulas."""

from __future__ import annotations

from tables import NOT_YET, results

from gnothi.forecast import Demand, Forecast, Limit, Plan, Rack, Rates, Study, forecast, limits, transformer

DEPTH, WIDTH, PATCH, LARGE, SMALL, LOCALS, BATCH = 24, 1024, 16, 224, 96, 8, 4096
"""ViT-L/16, DINO's crops, and a joint batch."""
KEPT = 34
"""Bytes a token, a block and a number of its width that the backward pass keeps in 16 bits (arXiv 2205.05198, 4.1, without maps of attention)."""


def paper(study: Study, rack: Rack) -> tuple[Demand, Forecast]:
    """What a step asks for, and the run, of a ViT-L/16 by DINO."""
    tokens = {side: (side // PATCH) ** 2 + 1 for side in (LARGE, SMALL)}
    (large, weights), (small, _) = (transformer(DEPTH, WIDTH, n) for n in tokens.values())
    crops = {LARGE: 2, SMALL: LOCALS}
    demand = Demand(
        flops=3 * (2 * large + LOCALS * small) + 2 * large,  # forward and twice as much backward; the teacher's two crops forward
        kept=sum(count * tokens[side] for side, count in crops.items()) * KEPT * WIDTH * DEPTH,
        once=0.0,
        crops=sum(count * 3 * 4 * side**2 for side, count in crops.items()),
        learned=4 * weights,
        state=4 * 4 * weights,  # parameters, teacher, and two numbers each of AdamW
        waits=4,
        look=large,
    )
    cut = Plan(study.images, BATCH, study.epochs, rack.processes, parallel="ddp")
    return demand, forecast(demand, cut, Rates((1 / rack.flops, 0.0, 0.0, 0.0, 0.0)), rack.link)


def scale() -> str:
    """The rack, the run, and the limits at 10^9 images, the first to break in front."""
    study, rack = Study(), Rack()
    demand, run = paper(study, rack)
    rows = [
        (
            "the rack",
            f"{rack.processes} GPUs; a process has {rack.flops:.0e} FLOPs/s, {_size(rack.memory)} of memory, {rack.cores} cores, "
            f"{_size(rack.disk)}/s of disk, {_size(rack.link.bandwidth)}/s to the others",
        ),
        ("an image", f"{_size(study.image)}, {1000 * rack.decode:g} ms of a core; {demand.flops:.2e} FLOPs, {_size(demand.kept)} kept"),
        ("a step", f"{BATCH:,} images in {run.step_seconds:.2f} s, {run.waiting:.0%} of it waiting; {run.images_per_second:,.0f} images/s"),
        ("the run", f"{run.steps:,} steps, {run.seconds / 3600:,.0f} hours; {_size(run.memory)} of a GPU, {_size(run.checkpoint)} a checkpoint"),
    ]
    head = ["| | |", "|---|---|", *(f"| {name} | {words} |" for name, words in rows), ""]
    table = ["| what | needs, of what there is | needed | there is | breaks at |", "|---|---|---|---|---|"]
    return "\n".join([*head, *table, *(_row(limit, study) for limit in limits(study, rack, run))])


def _row(limit: Limit, study: Study) -> str:
    grows = limit.what in GROWING
    end = f"{study.images / limit.share:.1e} images" if grows else "broken" if limit.share > 1 else "not by images"
    return f"| {limit.what} | {limit.formula} | {_amount(limit.needs, limit.unit)} | {_amount(limit.has, limit.unit)} | {end} |"


GROWING = ("order of an epoch", "index of the shards", "labels", "features", "k-means, time", "k-NN, time")
"""What is proportional to the images."""


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value / 3600:,.1f} h" if value > 3600 else f"{value:,.0f} s"
    return f"{value:,.0f} images/s" if unit == "images/s" else _size(value) + unit.removeprefix("B")


def _size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def planned() -> str:
    """Predicted over taken, a row a network, size and number of processes."""
    found = results("plan", "benchmarks")
    if not found:
        return NOT_YET
    lines = [
        "| network | crops | processes | step, taken | step, predicted | ratio | memory, taken | predicted | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        took, said, ratio = row["taken"], row["predicted"], row["ratio"]
        cells = [row["backbone"], f"{row['size']} px", row["processes"], f"{took['step']:.3g} s", f"{said['step']:.3g} s", f"{ratio['step']:.2f}"]
        cells += [_size(took["memory"]), _size(said["memory"]), f"{ratio['memory']:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    worst = max(max(r, 1 / r) for row in found["rows"] for r in [row["ratio"]["step"]])
    return "\n".join([*lines, "", f"Batch {found['batch']} over all processes. The step that was predicted worst is off by a factor of {worst:.2f}."])


SCALE = (planned, scale)
