"""The command line as a person meets it: mistakes, help, JSON, interruption, odd folders and odd images, end to end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
import torch

from gnothi import cli
from gnothi.randomness import generator
from gnothi.training import checkpoint

SMALL = ("--epochs", "2", "--set", "training.batch=16", "--set", "training.threads=1", "--set", "backbone.args.widths=[16,16,16,16]")
SMALL += ("--set", "method.hidden=16", "--set", "method.out=8")
TIMES = ("seconds", "images_per_second", "waiting")
N, SIZE = 64, 16


class Done(NamedTuple):
    code: int
    out: str
    err: str


def gnothi(*args: object) -> Done:
    """Run the command line in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["gnothi", *map(str, args)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


def said(*args: object) -> dict[str, Any]:
    """The one object of a call with --json, which is all that stands on standard output."""
    done = gnothi(*args, "--json")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    return json.loads(done.out)


def noise(*shape: int, high: int = 256) -> np.ndarray:
    return torch.randint(high, shape, generator=generator(0, "cli"), dtype=torch.int64).numpy()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data of many kinds, which is the working directory."""
    root, before = tmp_path_factory.mktemp("work"), os.getcwd()
    os.chdir(root)
    labels = np.arange(N) % 4
    colour = noise(N, SIZE, SIZE, 3).astype(np.uint8)
    colour[np.arange(N), :, :, labels % 3] //= 4  # something to tell the classes by
    np.savez("tiny.npz", images=colour, labels=labels)
    np.savez("unlabelled.npz", images=colour)
    np.savez("grey.npz", images=colour[..., :1], labels=labels)
    np.savez("five.npz", images=noise(N, SIZE, SIZE, 5, high=65536).astype(np.uint16), labels=labels)
    np.savez("float.npz", images=(noise(N, SIZE, SIZE, 3) / 100 - 1).astype(np.float32), labels=labels)
    holes = noise(N, SIZE, SIZE, 3).astype(np.float32)
    holes[3, 2, 2, 1] = np.nan
    np.savez("holes.npz", images=holes)
    np.savez("one.npz", images=colour[:1])
    np.savez("objects.npz", images=np.array([{"a": 1}] * 5, dtype=object))
    np.savez("fewlabels.npz", images=colour, labels=labels[:10])
    Path("hello.npz").write_bytes(b"hello")
    Path("a-file").write_text("x")
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("x")
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def run(work: Path) -> dict[str, Any]:
    """What `gnothi train --json` printed, of a run in runs/tiny."""
    return said("train", "tiny.npz", "--out", "runs/tiny", *SMALL)


def everything(root: Path) -> dict[str, float]:
    return {str(p.relative_to(root)): p.stat().st_mtime for p in root.rglob("*")}


# ---- mistakes -----------------------------------------------------------------------------------
TRAIN = ("train", "tiny.npz", "--out", "new")
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("trian",), "no such command 'trian'; did you mean train?"),
    (("evaluate", "kn"), "no such command 'kn'; did you mean knn?"),
    (("train",), "Missing argument 'DATA'; see gnothi train --help"),
    (("train", "tiny.npz", "--methd", "x"), "'--method'"),
    ((*TRAIN, "--method", "simclrr"), "method.name: no such method 'simclrr'; did you mean simclr?"),
    ((*TRAIN, "--method", ""), "method.name: no such method ''; known: simclr, moco, "),
    ((*TRAIN, "--backbone", "micro-resent"), "backbone.name 'micro-resent': no such network; did you mean micro-resnet?"),
    ((*TRAIN, "--recipe", "photo"), "photo: no such recipe; did you mean photos?"),
    ((*TRAIN, "--device", "gpu"), "--device gpu: no such device here; this machine has cpu"),
    ((*TRAIN, "--auxiliary", "no-such-thing"), "auxiliary.no-such-thing: no such auxiliary; "),
    ((*TRAIN, "--epochs", "-1"), "training.epochs must be greater than 0, got -1.0"),
    ((*TRAIN, "--epochs", "0"), "training.epochs must be greater than 0, got 0.0"),
    ((*TRAIN, "--epochs", "inf"), "training.epochs must be a finite number, got inf"),
    ((*TRAIN, "--epochs", "two"), "'two' is not a valid float"),
    ((*TRAIN, "--init", "hog"), "--init hog: not a network; a run, an exported folder or timm:NAME is"),
    ((*TRAIN, "--init", "empty"), "empty is neither a run (it has no spec.json) nor an exported encoder (it has no config.json)"),
    (("train", "tiny.npz", "--out", "a-file"), "--out a-file: cannot be written to (file exists)"),
    (("train", "tiny.npz", "--out", "a-file/x"), "--out a-file/x: cannot be written to (not a directory)"),
    (("train", "tiny.npz", "--resume", "--out", "texts"), "--resume: texts is not a run (it has no spec.json); give the folder of one with --out"),
    (("train", "tiny.np"), "tiny.np: no such folder or file; did you mean tiny.npz?"),
    (("train", "cifar11"), "cifar11: no such data, folder or file; did you mean cifar10?"),
    (("train", "cifar10", "--set", "data.root=nowhere"), "data.download=true to fetch it from the network"),
    (("train", "photos@valid"), "photos@valid: no such split; known: train, test"),
    (("train", "tiny.npz@test"), "tiny.npz has no splits; "),
    (("train", "a-file"), "a-file: a file must be .npz or .npy"),
    (("train", "one.npz"), "one.npz has 1 images; training needs at least 4"),
    (("train", "holes.npz"), "holes.npz: row 3 holds a value that is not finite"),
    (("train", "objects.npz"), "it holds Python objects, which are never unpickled"),
    (("train", "fewlabels.npz"), "labels must have the shape (64,), one for each image, got (10,)"),
    (("train", "hello.npz"), "hello.npz: cannot be read as .npz: it is broken or of another format"),
    (("train", "empty"), "empty holds no images: "),
    (("train", "texts"), "texts holds no images: looked for .jpg"),
    (
        ("train", "grey.npz", "--set", "views.hue=0.1"),
        'views.hue needs exactly 3 channels, got 1; set it to 0 or take the view recipe "any-channels"',
    ),
    (("train", "five.npz", "--set", "views.recipe=simclr"), "views.hue needs exactly 3 channels, got 5; "),
    (("plan", "tiny.npz", "--method", "simclrr"), "did you mean simclr?"),
    (("plan", "no-folder"), "no-folder: no such data, folder or file"),
    (("data", "no-folder"), "no-folder: no such data, folder or file"),
    (("data", "tiny.npz", "--set", "training.epochs=3"), "training.epochs has no effect here"),
    (("data", "tiny.npz", "--set", "data.labels=nope.csv"), "nope.csv: cannot be read"),
    (("recipes", "photo"), "photo: no such recipe; did you mean photos?"),
    (("evaluate", "knn", "hoog", "--data", "tiny.npz"), "hoog: no such encoder; did you mean hog?"),
    (("evaluate", "knn", "runs/nope", "--data", "tiny.npz"), "runs/nope: no such encoder"),
    (("evaluate", "knn", "hog"), "Missing option '--data'; see gnothi evaluate knn --help"),
    (("evaluate", "knn", "hog", "--data", "unlabelled.npz"), "measuring needs labels"),
    (("evaluate", "knn", "hog", "--data", "tiny.npz", "--device", "gpu"), "--device gpu: no such device here"),
    (("evaluate", "knn", "hog", "--data", "tiny.npz", "-k", "0"), "k must be at least 1, got 0"),
    (("evaluate", "knn", "hog", "--data", "tiny.npz", "--preset", "dinno"), "got 'dinno'; did you mean dino?"),
    (("evaluate", "linear", "hog", "--data", "tiny.npz", "--set", "training.epochs=4"), "training.epochs has no effect here"),
    (("evaluate", "linear", "pixels", "--data", "tiny.npz", "--test", "five.npz"), "must have the same channels, got 3 and 5"),
    (("evaluate", "linear", "hog", "--data", "tiny.npz", "--protocol", "sdg"), "'sdg' is not one of 'logistic', 'sgd'"),
    (("embed", "hog", "tiny.npz", "--out", "x.csv"), "--out must end in .parquet, .npy, .npz, .safetensors, got 'x.csv'"),
    (("embed", "hog", "tiny.npz", "--out", "a-file/x.npy"), "a-file cannot be used: file exists"),
    (("embed", "features:nope.npy", "tiny.npz", "--out", "x.npy"), "features:nope.npy: no such file"),
    (("export", "hog", "--to", "new"), "hog cannot be exported: it is not a network"),
    (("report", "runs/tiny", "--out", "a-file/x.html"), "a-file/x.html cannot be used: not a directory"),
    (("report", "texts"), "texts: not a run folder, spec.json is missing"),
]
SETTINGS: list[tuple[str, str]] = [
    ("foo", "--set takes KEY=VALUE, like training.epochs=20, got 'foo'"),
    ("=3", "--set takes KEY=VALUE, like training.epochs=20, got '=3'"),
    ("epochs=3", "epochs: no such setting; did you mean training.epochs?"),
    ("training.epoch=3", "training.epoch: no such setting; did you mean training.epochs?"),
    ("method.temprature=1", "method.temprature: no such setting; did you mean method.temperature?"),
    ("training=3", "training is a group of settings and takes no value itself, got 3"),
    ("method=dino", "method is a group of settings and takes no value itself, got 'dino'; did you mean method.name=dino?"),
    ("auxiliary=3", "auxiliary is a group of settings and takes no value itself, got 3"),
    ("data=3", "data is a group of settings and takes no value itself, got 3"),
    ("data.name=other", "data.name is said by the argument DATA, tiny.npz; got other too"),
    ("training.epochs.x=3", "training.epochs must be a number, got {'x': 3}"),
    ("seed=-1", "seed must be greater than or equal to 0, got -1"),
    ("seed=1.5", "seed must be a whole number, got 1.5"),
    ("training.batch=1000", "training.batch must be at most the number of training images, 64, got 1000"),
    ("training.batch=1", "training.batch must be greater than 1, got 1"),
    ("training.batch=abc", "training.batch must be a whole number, got 'abc'"),
    (
        "training.accumulate=2",
        "training.accumulate must be 1 for simclr, whose loss compares all images of a batch; byol, simsiam, dino can accumulate",
    ),
    ("training.precision=fp16", "training.precision must be one of fp32, bf16, got 'fp16'; did you mean bf16?"),
    ("training.log_every=-5%", "training.log_every must be a number with a unit"),
    ("training.log_every=5", "training.log_every must be text, got 5"),
    ("optimiser.warm_up=5 parsecs", "optimiser.warm_up must be a number with a unit"),
    ("optimiser.lr=nan", "optimiser.lr must be a finite number, got 'nan'"),
    ("optimiser.name=adma", "optimiser.name must be one of sgd, adamw, lars, got 'adma'; did you mean adamw?"),
    ("views.recipe=simcrl", "views.recipe: no recipe of views is called 'simcrl'; did you mean simclr?"),
    ("views.size=3", "views.size must be at least 8 pixels, got 3"),
    ("views.local=2", "views.local must be 0 for simclr, which compares two views, got 2; "),
    ("views.area=[0.9,0.5]", "views.area must be two numbers with 0 < smallest <= largest <= 1, got 0.9, 0.5"),
    ("backbone.args.foo=3", "backbone.args.foo: micro-resnet has no such argument; known: widths"),
    ("data.holdout=0.99", "data.holdout=0.99 leaves 1 of 64 images to train on; it needs at least 4"),
    ("data.labels=none.csv", "none.csv: cannot be read"),
]


def refused(work: Path, args: tuple[str, ...], expected: str) -> None:
    """One line that holds what is expected, exit code 2, and nothing written."""
    before = everything(work)
    done = gnothi(*args)
    assert done.code == 2, done
    assert len(done.err.splitlines()) == 1 and done.err.startswith("gnothi: ") and not done.out, done
    assert expected in done.err
    assert set(everything(work)) == set(before)


@pytest.mark.parametrize(("args", "expected"), MISTAKES, ids=lambda x: " ".join(x)[:60] if isinstance(x, tuple) else "")
def test_a_mistake_gets_one_line_that_names_the_right_thing_and_writes_nothing(
    args: tuple[str, ...], expected: str, work: Path, run: dict[str, Any]
) -> None:
    refused(work, args, expected)


@pytest.mark.parametrize(("setting", "expected"), SETTINGS, ids=lambda x: x.split("=")[0][:40])
def test_a_wrong_setting_gets_one_line_and_writes_nothing(setting: str, expected: str, work: Path) -> None:
    refused(work, (*TRAIN, "--set", setting), expected)


def test_sizes_that_a_transformer_cannot_divide_name_the_nearest(work: Path) -> None:
    args = ("--backbone", "micro-vit", "--set", "backbone.patch_size=3")
    refused(work, (*TRAIN, *args), "views.size must be a multiple of the patch size 3, got 16; 15 and 18 are nearest")


def test_bf16_is_refused_where_the_processor_lacks_it(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnothi.recipes.resolve._has_bf16", lambda device: False)
    refused(work, (*TRAIN, *SMALL, "--set", "training.precision=bf16"), "training.precision=bf16: this cpu has no bf16 arithmetic; fp32 works")


def test_a_package_that_is_not_installed_is_named_before_anything_is_written(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(work, (*TRAIN, "--set", "training.wandb=project"), "training.wandb needs a package more: pip install 'gnothi[wandb]'")


def test_weights_of_another_architecture_are_refused_as_a_start(run: dict[str, Any], work: Path) -> None:
    before = everything(work)
    done = gnothi(*TRAIN, "--init", "runs/tiny", "--set", "backbone.args.widths=[16,16,16,18]")
    assert (done.code, len(done.err.splitlines())) == (2, 1), done
    assert everything(work) == before


def test_too_large_a_size_is_out_of_memory_in_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 120000000000 bytes")

    monkeypatch.setattr("gnothi.pretrain.build", full)
    done = gnothi(*TRAIN)
    assert (done.code, done.err) == (1, "gnothi: out of memory; a smaller training.batch, views.size or backbone.name needs less\n")


def test_a_rate_that_breaks_the_weights_stops_the_run_in_one_line(work: Path) -> None:
    done = gnothi("train", "tiny.npz", "--out", "runs/broken", *SMALL, "--set", "optimiser.lr=1e30")
    assert done.code == 1 and "Traceback" not in done.err
    assert "lower optimiser.lr or set training.clip; " in done.err.splitlines()[-1]


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
    assert "gnothi demo                      see it work" in done.stdout
    assert all(f"\n  {name} " in done.stdout for name in cli.cli.commands)


def test_a_group_alone_shows_its_help() -> None:
    assert gnothi("evaluate") == gnothi("evaluate", "--help")


# ---- JSON ---------------------------------------------------------------------------------------
def test_training_prints_one_object(run: dict[str, Any], work: Path) -> None:
    assert run["run"] == "runs/tiny" and (work / run["report"]).is_file()
    assert run["verdict"] in ("healthy", "undecided", "collapsed") and run["steps"] == 2 * N // 16


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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gnothi"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = [*command, "train", "tiny.npz", "--out", "runs/two", *SMALL]
    done = subprocess.run(args, capture_output=True, text=True, env=env, timeout=120)
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
    both = said("evaluate", "knn", "colour", "hog", "--data", "tiny.npz", "--seeds")
    assert both["value"] == pytest.approx(sum(each) / 2) and both["details"]["values"] == each
    # The t-interval of two values in closed form: half their distance times tan(0.95 pi / 2).
    assert both["high"] - both["value"] == pytest.approx(abs(each[0] - each[1]) / 2 * float(np.tan(0.475 * np.pi)))
