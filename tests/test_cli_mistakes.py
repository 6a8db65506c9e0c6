"""What the command line says of mistakes: one line that names the nearest right thing, exit code 2, and nothing is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import SMALL, TRAIN, everything, gnothi, refused, said, write_data

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
    (("report", "runs/tiny", "--out", "a-file/x.html"), "a-file cannot be used: file exists"),
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
    ("views.local=300", "views.local must be less than or equal to 256, got 300"),
    ("views.area=[0.9,0.5]", "views.area must be two numbers with 0 < smallest <= largest <= 1, got 0.9, 0.5"),
    ("backbone.args.foo=3", "backbone.args.foo: micro-resnet has no such argument; known: widths"),
    ("data.holdout=0.99", "data.holdout=0.99 leaves 1 of 64 images to train on; it needs at least 4"),
    ("data.labels=none.csv", "none.csv: cannot be read"),
]


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
