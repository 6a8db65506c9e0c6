"""The command line as a person meets it: help, JSON, interruption, odd folders and odd images, end to end."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from terminal import SMALL, TRAIN, Done, N, everything, gnothi, noise, refused, said, torchrun, write_data

from gnothi import cli
from gnothi.cli.options import onward
from gnothi.training import checkpoint, twice

TIMES = ("seconds", "images_per_second", "waiting")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data of many kinds, which is the working directory."""
    with contextlib.chdir(tmp_path_factory.mktemp("work")):
        write_data()
        yield Path.cwd()


@pytest.fixture(scope="module")
def run(work: Path) -> dict[str, Any]:
    """What `gnothi train --json` printed, of a run in runs/tiny."""
    return said("train", "tiny.npz", "--out", "runs/tiny", *SMALL)


# ---- help ---------------------------------------------------------------------------------------
def commands(group: click.Group, front: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*front, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*front, name))


@pytest.mark.parametrize(("path", "command"), list(commands(cli.cli)), ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_every_command_explains_itself_and_its_options(path: tuple[str, ...], command: click.Command) -> None:
    text = gnothi(*path, "--help").out
    body = text.partition("Options:")[0].split("\n", 1)[1]
    assert len(body.split()) >= 10 and "\\b" not in text
    for option in command.params:
        assert not isinstance(option, click.Option) or (option.help and len(option.help) > 10 or option.name == "out"), option.name
    examples = [line.strip() for line in body.splitlines() if line.strip().startswith("gnothi ")]
    assert all(example.split()[1] == path[0] for example in examples)


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_the_first_help_says_what_to_do_first_and_loads_no_torch(args: tuple[str, ...]) -> None:
    code = f"""
import sys
sys.argv = ["gnothi", *{args!r}]
from gnothi import cli
try:
    cli.main()
finally:
    print([m for m in ("torch", "numpy", "pydantic", "sklearn") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"
    assert "gnothi demo                              see it work" in done.stdout
    assert all(f"\n  {name} " in done.stdout for name in cli.cli.commands)


def test_the_next_step_of_a_run_can_be_typed(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    data = {"name": "my images", "labels": "a b.csv", "channels": None, "holdout": 0.1}
    measure = ["evaluate", "knn", str(folder), f"{folder}@untrained", "pixels", "colour", "--data"]
    for labelled, verb in ((7, measure), (0, ["neighbours", str(folder), "IMAGE", "--in"])):
        twice.write(folder, {"settings": {"data": data}, "source": {"n": 9, "labelled": labelled}})
        words = shlex.split(onward(folder))
        assert words[:2] == ["next", "gnothi"] and words[2 : 2 + len(verb)] == verb
        assert words[-3:] == ["my images", "--set", "data.labels=a b.csv"]
    for name, measured in (("x.npz@train", "x.npz"), ("x.npz@val", "x.npz@val"), ("photos", "photos")):  # test images ask, where there are any
        twice.write(folder, {"settings": {"data": {"name": name}}, "source": {"n": 9}})
        assert shlex.split(onward(folder))[-1] == measured


def test_a_group_alone_shows_its_help() -> None:
    assert gnothi("evaluate") == gnothi("evaluate", "--help")


# ---- JSON ---------------------------------------------------------------------------------------
def test_training_prints_one_object(run: dict[str, Any], work: Path) -> None:
    assert run["run"] == "runs/tiny" and (work / run["report"]).is_file()
    assert run["verdict"] in ("healthy", "undecided", "collapsed") and run["steps"] == 2 * N // 16


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize(
    "words",
    [
        "tiny.npz --auxiliary rotation layers local --epochs 2",
        "tiny.npz --auxiliary rotation --auxiliary layers local --epochs 2",
        "--epochs 2 --auxiliary rotation layers local tiny.npz",
        "--auxiliary rotation --auxiliary layers --auxiliary local tiny.npz --epochs 2",
    ],
)
def test_auxiliaries_are_words_or_repeated_wherever_the_data_stands(verb: str, words: str) -> None:
    heard = cli.cli.commands[verb].make_context(verb, words.split()).params
    assert (heard["data"], heard["auxiliary"], heard["epochs"]) == ("tiny.npz", ("rotation", "layers", "local"), 2)


def test_a_run_that_is_there_is_not_overwritten(run: dict[str, Any], work: Path) -> None:
    refused(work, ("train", "tiny.npz", "--out", "runs/tiny"), "runs/tiny is a run already; --resume goes on with it, --out takes another folder")


@pytest.mark.parametrize(
    ("changed", "expected"), [(("--epochs", "5"), "training.epochs=2.0, not 5.0"), (("--recipe", "cifar"), "--recipe=any, not cifar")]
)
def test_going_on_with_other_settings_is_refused(changed: tuple[str, ...], expected: str, run: dict[str, Any], work: Path) -> None:
    refused(work, ("train", "tiny.npz", "--out", "runs/tiny", "--resume", *changed), f"runs/tiny was begun with {expected}; ")


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_measures_print_value_interval_n_and_protocol(kind: str, run: dict[str, Any]) -> None:
    one = said("evaluate", kind, "runs/tiny", "--data", "tiny.npz")
    assert one["metric"] == kind and one["low"] <= one["value"] <= one["high"] and one["n"] > 0 and one["protocol"]
    both = said("evaluate", kind, "runs/tiny", "colour", "--data", "tiny.npz")["results"]
    assert [r["encoder"] for r in both] == ["runs/tiny", "colour"]
    assert both[0]["value"] == one["value"]


def test_other_verbs_print_one_object(run: dict[str, Any], work: Path) -> None:
    assert said("data", "tiny.npz")["data"] == "tiny.npz"
    assert "photos" in said("recipes")["recipes"]
    assert said("recipes", "photos")["settings"]["method"]["name"] == "simclr"
    assert said("recipes", "dino")["views"] == "dino"
    done = said("embed", "runs/tiny", "tiny.npz", "--out", "e.npy")
    assert np.load(work / "e.npy").shape == (done["n"], done["dim"]) == (N, 16)
    assert said("report", "runs/tiny", "--out", "page.html") == {"report": "page.html"}
    assert "<html" in (work / "page.html").read_text()


def test_a_plan_says_what_a_run_takes_and_keeps_nothing(work: Path) -> None:
    before = everything(work)
    plan = said("plan", "tiny.npz", *SMALL)
    assert everything(work) == before
    cost = plan["cost"]
    assert cost["steps"] == plan["derived"]["steps"] == 2 * N // 16
    assert all(cost[k] > 0 for k in ("step_seconds", "seconds", "peak_memory", "parameters", "flops", "checkpoint_bytes"))


# ---- interruption -------------------------------------------------------------------------------
def content(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The last checkpoint, and the metrics without times."""
    newest = checkpoint.newest(out)
    assert newest is not None
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return checkpoint.read(newest)[0], [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def test_ctrl_c_at_any_moment_and_resume_equal_the_unbroken_run_and_no_second_run_gets_in(work: Path) -> None:
    args = ("train", "tiny.npz", *SMALL, "--epochs", "40", "--set", "training.health_every=20%", "--set", "training.log_every=7 steps")
    command = [sys.executable, "-m", "gnothi", *args, "--out", "runs/broken-off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as began:
        metrics = work / "runs/broken-off/metrics.jsonl"
        while not metrics.exists() and began.poll() is None:
            time.sleep(0.01)
        second = gnothi(*args, "--out", "runs/broken-off", "--resume")
        assert second == Done(2, "", "gnothi: runs/broken-off is in use by another run; --out takes another folder\n")
        began.send_signal(signal.SIGINT)
        out, err = began.communicate(timeout=60)
    assert (began.returncode, out) == (130, ""), err
    words = err.splitlines()[-1]
    assert words.startswith("gnothi: stopped after step ") and words.endswith(" of 160; go on with --resume")
    assert said(*args, "--out", "runs/broken-off", "--resume")["steps"] == 160
    said(*args, "--out", "runs/unbroken")
    (a, lines_a), (b, lines_b) = content(work / "runs/broken-off"), content(work / "runs/unbroken")
    assert lines_a == lines_b
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.ddp
def test_two_processes_of_torchrun_speak_once_and_leave_one_run(work: Path) -> None:
    done = torchrun(2, "train", "tiny.npz", "--out", "runs/two", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run     runs/two") == 1 and done.stderr.count("tiny.npz: 64 images") == 1
    record = json.loads((work / "runs/two/spec.json").read_text())
    assert record["derived"]["processes"] == 2
    lines = [json.loads(line) for line in (work / "runs/two/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in lines if m["kind"] == "train"] == list(range(1, 9))


def test_only_the_first_of_several_processes_says_why_it_leaves(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert gnothi(*TRAIN, "--method", "simclrr") == Done(2, "", "")


# ---- odd folders and odd images -----------------------------------------------------------------
def mixture(folder: Path) -> set[str]:
    """Images of all sizes, modes and names, 48 in all, and three broken files, whose names are returned."""
    from PIL import Image

    (folder / "Füße und Hände").mkdir(parents=True)
    (folder / "写真").mkdir()
    pixels = noise(48, 40, 40, 4).astype(np.uint8)
    for i, values in enumerate(pixels):
        h, w = 18 + i % 20, 40 - i % 17
        rgb = Image.fromarray(values[:h, :w, :3])
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
            ("grey one.png", rgb.convert("L"), {}),
            ("palette.gif", rgb.convert("P"), {}),
            ("глаз.png", Image.fromarray(values[:h, :w]), {}),
            ("cmyk.jpg", rgb.convert("CMYK"), {}),
            ("deep.png", Image.fromarray(values[:h, :w, 0].astype(np.uint16) * 257), {}),
            ("turned.jpg", rgb, {"exif": exif}),
            ("web p.webp", rgb, {}),
            ("bits.bmp", rgb.convert("1"), {}),
        ]
        name, image, more = kinds[i % len(kinds)]
        stem, _, ending = name.rpartition(".")
        image.save(folder / ("Füße und Hände" if i % 2 else "写真") / f"{stem} {i}.{ending}", **more)
    whole = (folder / "写真/grey one 0.png").read_bytes()
    broken = {"写真/halb kaputt.png": whole[: len(whole) // 2], "Füße und Hände/no image.jpg": b"hello", "写真/empty.png": b""}
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    return set(broken)


def test_a_folder_of_all_kinds_trains_to_the_end_and_names_what_is_broken(work: Path) -> None:
    broken = mixture(work / "my images")
    refused(work, ("train", "my images", "--out", "my images"), "--out my images is the folder of the images; give the run one of its own")
    args = ("--set", "data.broken_fraction=0.5", "--set", "views.size=16", "--set", "training.workers=0", "--set", "data.holdout=0")
    done = gnothi("train", "my images", "--out", "runs/mixed", *SMALL, *args, "--epochs", "4")
    assert done.code == 0, done.err
    verdict = json.loads((work / "runs/mixed/verdict.json").read_text())
    assert {b["name"] for b in verdict["broken"]} == broken
    assert "3 images could not be read and were replaced:" in done.out
    assert all(sum(name in line for line in done.out.splitlines()) == 1 for name in broken)
    assert verdict["steps"] == 12
    assert set(said("embed", "runs/mixed", "my images", "--out", "mixed.npy")["broken"]) == broken
    assert np.isfinite(np.load(work / "mixed.npy")).all()


@pytest.mark.parametrize(("name", "channels"), [("grey.npz", 1), pytest.param("float.npz", 3, marks=pytest.mark.slow), ("five.npz", 5)])
def test_images_of_other_kinds_go_all_the_way(name: str, channels: int, work: Path) -> None:
    out = f"runs/{name[:-4]}"
    said("train", name, "--out", out, *SMALL)
    assert json.loads((work / out / "spec.json").read_text())["derived"]["channels"] == channels
    assert said("evaluate", "knn", out, "--data", name)["n"] > 0
    assert said("embed", out, name, "--out", f"{name}.embedded.npz")["n"] == N
    assert "<html" in Path(said("report", out)["report"]).read_text()
    said("export", out, "--to", f"exported-{channels}", "--no-onnx")
    ours, theirs = (np.load(said("embed", e, name, "--out", f"{i}.npy")["out"]) for i, e in enumerate([out, f"exported-{channels}"]))
    np.testing.assert_array_equal(ours, theirs)


def test_runs_of_several_seeds_make_one_row_with_their_mean(work: Path) -> None:
    each = [r["value"] for r in said("evaluate", "knn", "colour", "hog", "--data", "tiny.npz")["results"]]
    both = said("evaluate", "knn", "colour", "hog", "--data", "tiny.npz", "--over-seeds")
    assert both["value"] == pytest.approx(sum(each) / 2) and both["details"]["values"] == each
    # The t-interval of two values in closed form: half their distance times tan(0.95 pi / 2).
    assert both["high"] - both["value"] == pytest.approx(abs(each[0] - each[1]) / 2 * float(np.tan(0.475 * np.pi)))
