"""Tables of the documents, from the results that experiments and benchmarks left."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy import stats

from gnothi.methods import METHODS

ROOT = Path(__file__).parent.parent
IMAGENET = 1_280_000
NOT_YET = "Not measured yet; the command above makes this table."


def results(name: str, folder: str = "experiments") -> Any:
    """What a results file holds, nothing where there is none."""
    path = ROOT / folder / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def interval(row: dict | None) -> str:
    """A value with its interval."""
    return "" if row is None else f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def demo() -> str:
    rows = results("demo")
    lines = ["| encoder | k-NN | linear |", "|---|---|---|"]
    for encoder in dict.fromkeys(r["encoder"] for r in rows):
        of = {r["metric"]: r for r in rows if r["encoder"] == encoder}
        lines.append(f"| {encoder} | {interval(of.get('knn'))} | {interval(of.get('linear'))} |")
    return "\n".join([*lines, "", f"n = {rows[0]['n']} test tiles, 95 % intervals, one seed, last epoch."])


def photos_methods() -> str:
    rows = results("photos_methods") or []
    encoders = list(dict.fromkeys(r["encoder"] for r in rows))
    lines = ["| encoder | k-NN | linear | training |", "|---|---|---|---|"]
    for encoder in encoders:
        of = {r["metric"]: r for r in rows if r["encoder"] == encoder and r["seeds"] == [0]}
        seconds = of["knn"].get("seconds")
        trained = f"{seconds:.0f} s, {of['knn']['verdict']}" if seconds and encoder in METHODS else ""
        lines.append(f"| {encoder} | {interval(of.get('knn'))} | {interval(of.get('linear'))} | {trained} |")
    n = rows[0]["n"] if rows else 0
    about = f"n = {n} test tiles of 16 photographs, 95 % intervals, seed 0, last epoch."
    return "\n".join([*lines, "", about])


# ---- CIFAR-10 ------------------------------------------------------------------------------------
def cifar() -> str:
    """Ours beside lightly's at equal epochs."""
    rows = results("cifar_methods")
    lines = [
        "| method | lightly's recipe | gnothi | more | with four crops | more | by components: lightly's / gnothi / four crops | verdicts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        theirs, ours, crops = every = [_seeds(rows, kind, method) for kind in ("lightly", "gnothi", "crops")]
        if any(arm.split()[1:2] == [method] for arm in rows):
            spectral = " / ".join(f"{_mean(of, 'spectral'):.3f}" if of else "–" for of in every)
            verdicts = ", ".join(dict.fromkeys(r["verdict"] for r in (*ours, *crops)))
            said = [_told(rows, kind, method) for kind in ("lightly", "gnothi", "crops")]
            cells = [*said[:2], _more(ours, theirs), said[2], _more(crops, theirs), spectral, verdicts]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    for name in ("pixels", "untrained"):
        if name in rows:
            lines.append(f"| {name} | | {interval(rows[name])} | | | | – / {rows[name]['spectral']:.3f} / – | |")
    return "\n".join(lines) if rows else NOT_YET


def cifar_time() -> str:
    """Ours beside lightly's for as many epochs as it does in our time."""
    rows = results("cifar_methods")
    lines = ["| method | processor seconds: lightly's / gnothi / four crops | lightly's in our time | gnothi | more |", "|---|---|---|---|---|"]
    for method in METHODS:
        theirs, ours, crops, timed = (_seeds(rows, kind, method) for kind in ("lightly", "gnothi", "crops", "time"))
        if theirs and ours:
            seconds = " / ".join(f"{_mean(of, 'processor'):.0f}" if of else "–" for of in (theirs, ours, crops))
            epochs = f"; {timed[0]['epochs']} epochs{_pace(timed[0])}" if timed else ""
            lines.append(f"| {method} | {seconds} | {_told(rows, 'time', method)}{epochs} | {seeds_said(ours)} | {_more(ours, timed)} |")
    return "\n".join(lines) if len(lines) > 2 else NOT_YET


def _more(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    return f"{_mean(ours) - _mean(theirs):+.3f}" if ours and theirs else ""


def _seeds(rows: dict[str, Any], kind: str, method: str) -> list[dict[str, Any]]:
    """Of the seeds that came to an end."""
    return [row for arm, row in rows.items() if arm.split()[:2] == [kind, method] and "failed" not in row]


def _told(rows: dict[str, Any], kind: str, method: str) -> str:
    """A cell: the seeds that came to an end, and how many did not."""
    lost = sum(arm.split()[:2] == [kind, method] and "failed" in row for arm, row in rows.items())
    return "; ".join([*filter(None, [seeds_said(_seeds(rows, kind, method))]), *([f"{lost} diverged"] if lost else [])])


def _pace(row: dict[str, Any]) -> str:
    """How a step of ours compares with one of lightly's, where both were timed in turn."""
    return f", a step of ours taking {row['steps']['gnothi'] / row['steps']['lightly']:.2f} of one of lightly's" if "steps" in row else ""


def _mean(rows: list[dict[str, Any]], key: str = "value") -> float:
    return statistics.fmean(r[key] for r in rows)


def seeds_said(rows: list[dict[str, Any]]) -> str:
    """One seed with its interval over test images; several with a t-interval over seeds."""
    if len(rows) < 2:
        return interval(rows[0]) if rows else ""
    values = [r["value"] for r in rows]
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{_mean(rows):.3f} ({_mean(rows) - half:.3f} to {_mean(rows) + half:.3f}; {len(rows)} seeds)"


def cifar_sweep() -> str:
    """Arms of full length, method by method: what differs from the method's first."""
    rows = [r for r in results("cifar_sweep").values() if r["settings"]["training.epochs"] == 20]
    lines = ["| method | changed | k-NN | by components | verdict |", "|---|---|---|---|---|"]
    for method in METHODS:
        of = [r for r in rows if r["method"] == method]
        for r in of:
            changed = {k: v for k, v in r["settings"].items() if of[0]["settings"].get(k) != v}
            back = [f"`{k}` by default" for k in of[0]["settings"] if k not in r["settings"]]
            words = ", ".join([*(f"`{k}={json.dumps(v)}`" for k, v in changed.items()), *back])
            components = f"{r['spectral']:.3f}" if "spectral" in r else ""
            cells = ["", "", f"diverged: {r['failed']}"] if "failed" in r else [interval(r), components, r["verdict"]]
            lines.append(f"| {method} | {words or 'the rules of then'} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- a person's first hour -----------------------------------------------------------------------
def first_hour() -> str:
    """Every command with what it printed."""
    found = results("first_hour")
    parts = [f"```text\n$ {c['command']}\n" + "\n".join(c["output"]) + f"\n```\n{_took(c)}" for c in found.get("commands", [])]
    total = sum(c["seconds"] for c in found.get("commands", []))
    return "\n\n".join([*parts, f"In all {total / 60:.0f} minutes on {found['cores']} cores."]) if parts else NOT_YET


def hour_learned() -> str:
    """What the first hour's two tables say, in words."""
    said = [line for c in results("first_hour").get("commands", []) for line in c["output"]]
    rows = [m.groups() for line in said if (m := re.match(r"(\S+) +(knn|linear) +(0\.\d+) .*?(?:([+-]\S+) \((\S+) to (\S+)\))?$", line))]
    of = {(encoder.removeprefix("runs/"), metric): rest for encoder, metric, *rest in rows}
    if not of:
        return NOT_YET
    knn, linear = ([of[name, metric][0] for name in ("mine", "mine@untrained", "colour")] for metric in ("knn", "linear"))
    joined, by, low, high = of["with-colour", "linear"]
    apart = "better than" if float(low) > 0 else "worse than" if float(high) < 0 else "not told apart from"
    return (
        f"By k-NN the trained network has {knn[0]} of the test images right, the untrained one {knn[1]} and histograms of colour {knn[2]}; "
        f"by a linear classifier it is {linear[0]}, {linear[1]} and {linear[2]}. "
        f"Joined with the histograms it comes to {joined}, {apart} the network alone ({by}, {low} to {high})."
    )


def _took(command: dict[str, Any]) -> str:
    seconds = command["seconds"]
    return f"*{seconds:.0f} s*" if seconds < 100 else f"*{seconds / 60:.1f} minutes*"


# ---- speed ---------------------------------------------------------------------------------------
def step() -> str:
    rows = results("step", "benchmarks")
    parts, times = "views | forward | backward | optimiser", "x lightly's defaults | x lightly alike"
    heads = f"precision | steps | images/s | of the bare step | bare / real | {parts} | {times} | memory"
    lines = [f"| case | {heads} |", "|" + "---|" * 13]
    for name, r in rows.items():
        shares = " | ".join(f"{r[k] / r['real']:.2f}" if k in r else "" for k in ("views", "forward", "backward", "optimiser"))
        times = " | ".join(f"{r['lightly'][k]:.2f}" if k in r.get("lightly", {}) else "" for k in ("defaults", "alike"))
        wide = f" ({r['bare all threads'] / r['real']:.3f} with all threads)" if "bare all threads" in r else ""
        about = f"| {name} | {r.get('precision') or ''} | {r['steps']} | {r['batch'] / r['real']:.0f} | {r['batch'] / r['bare']:.0f}"
        lines.append(f"{about} | {r['bare'] / r['real']:.3f}{wide} | {shares} | {times} | {r['memory'] / 2**20:.0f} MiB |")
    return "\n".join(lines) if rows else NOT_YET


def search() -> str:
    rows = results("search", "benchmarks")
    return "\n".join(["| measure | value |", "|---|---|", *(f"| {k} | {v:g} |" for k, v in rows.items())]) if rows else NOT_YET


def growth() -> str:
    rows = results("growth", "benchmarks")
    lines = ["| grows | images | crops | batch | until the first step | step | images/s | memory |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        crops, batch = 2 + r.get("local", 0), r.get("batch", 128)
        about = f"| {r['grows']} | {r['n']:,} | {crops} | {batch} | {r['first step']:.1f} s | {r['step']:.3f} s | {r['images/s']:.0f} |"
        lines.append(f"{about} {r['memory'] / 2**20:.0f} MiB |")
    return "\n".join(lines) if rows else NOT_YET


# ---- auxiliaries and clusters --------------------------------------------------------------------
def auxiliaries() -> str:
    """What each adds to a step of the method alone."""
    rows = results("auxiliaries", "benchmarks")
    lines = ["| method | beside it | time of a step | operations | memory |", "|---|---|---|---|---|"]
    for r in rows.values():
        base = rows[f"{r['method']} nothing"]
        if r is base:
            about = f"{r['seconds']:.3f} s | {r['flops'] / 1e9:.1f} GFLOP | {r['memory'] / 2**20:.0f} MiB"
        else:
            times, counted, more = r["seconds"] / base["seconds"], r["flops"] / base["flops"], (r["memory"] - base["memory"]) / 2**20
            about = f"x {times:.2f} | x {counted:.2f} | {more:+.0f} MiB"
        lines.append(f"| {r['method']} | {r['beside']} | {about} |")
    sizes = sorted({f"{r['backbone']}, {r['batch']} images a batch, {r['device'] or 'one core'}" for r in rows.values()})
    return "\n".join([*lines, "", f"Measured with {'; '.join(sizes)}."]) if rows else NOT_YET


def local_memory() -> str:
    rows = results("local_memory", "benchmarks")
    lines = ["| prototypes | patches | their logits | the loss | over the logits | the plain form |", "|---|---|---|---|---|---|"]
    for r in rows:
        plain = f"{r['plain'] / 2**30:.2f} GiB" if "plain" in r else ""
        sizes = f"{r['logits'] / 2**30:.2f} GiB | {r['streamed'] / 2**30:.2f} GiB | {r['streamed'] / r['logits']:.2f}"
        lines.append(f"| {r['prototypes']:,} | {r['tokens']:,} | {sizes} | {plain} |")
    return "\n".join(lines) if rows else NOT_YET


def clusters() -> str:
    """Measured, and in words what as many rows as ImageNet has would take: each row more costs what it costs between the last two measured."""
    rows = results("clusters", "benchmarks")
    if not rows:
        return NOT_YET
    lines = ["| rows | numbers each | clusters | held | passes | k-means | a pass | memory |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        sizes = f"| {r['rows']:,} | {r['width']:,} | {r['clusters']:,} | {r['used']:,} | {r['passes']}"
        lines.append(f"{sizes} | {r['seconds']:.0f} s | {r['pass']:.1f} s | {r['peak'] / 2**20:.0f} MiB |")
    words = ["Seconds of one core."]
    if [r["passes"] for r in rows[-2:]] == 2 * [rows[-1]["passes"]]:
        once, whole = (_grown(rows[-2:], key) / 60 for key in ("pass", "seconds"))
        words.append(f"{IMAGENET:,} rows would take {once:.1f} minutes a pass and {whole:.0f} in all on this core, with the same memory,")
        words.append("if each row more costs what it costs between the last two lines, which took as many passes.")
    return "\n".join([*lines, "", " ".join(words)])


def _grown(rows: list[dict[str, Any]], key: str) -> float:
    """Seconds of as many rows as ImageNet has, on the line through two measurements."""
    less, more = rows
    return float(more[key] + (more[key] - less[key]) / (more["rows"] - less["rows"]) * (IMAGENET - more["rows"]))


def memory() -> str:
    found = results("memory", "benchmarks")
    if not found:
        return NOT_YET
    shown = {part: found["MiB"][part] for part in ("10%", "25%", "50%", "75%", "100%")}
    rows = [f"| {part} | {seen['training']:.0f} MiB | {seen['loaders']:.0f} MiB |" for part, seen in shown.items()]
    return "\n".join(["| of the epoch | main process | loader process |", "|---|---|---|", *rows])


STEP_TIMES = {"clock": "by the clock", "processor": "by the processor"}


def hour() -> str:
    """What an hour of training gains."""
    found = results("hour", "benchmarks")
    if not found:
        return NOT_YET
    units = {"memory": "MiB of memory", "files": "open files", "threads": "threads"}
    lines = ["| all processes together | mean | gained in an hour (95 % interval) |", "|---|---|---|"]
    for key, name in units.items():
        row = found["growth"][key]
        lines.append(f"| {name} | {row['mean']:.1f} | {row['an hour']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}) |")
    about = f"{found['epochs']:,.0f} epochs in {found['minutes']:.0f} minutes; the first five, and the first 900 steps, are not counted."
    memory = "![MiB of memory over the minutes](images/hour_memory.svg)"
    step = found.get("step")
    if not step:  # of a measurement without turns
        return "\n".join([*lines, "", about, "", memory])
    rows = [f"| {name} | {step[key]['ratio']:.3f} ({step[key]['low']:.3f} to {step[key]['high']:.3f}) |" for key, name in STEP_TIMES.items()]
    turns = f"Over {len(step['turns']['old'])} turns each, after these minutes:"
    ratios = [turns, "", "| a step of the old run, of one of a fresh run | ratio (95 % interval) |", "|---|---|", *rows]
    chart = "![Milliseconds of a step of both runs, turn by turn](images/hour_step.svg)"
    return "\n".join([*lines, "", about, "", *ratios, "", memory, chart])


TABLES: tuple[Callable[[], str], ...] = (
    demo,
    first_hour,
    hour_learned,
    photos_methods,
    cifar,
    cifar_time,
    cifar_sweep,
    step,
    search,
    growth,
    auxiliaries,
    local_memory,
    clusters,
    memory,
    hour,
)
