"""Processes of torchrun that embed, measure and train on shards, against one process that does the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from terminal import gnothi, noise, said, torchrun

from gnothi import distributed
from gnothi.contracts import EncoderError
from gnothi.data import ArraySource
from gnothi.data.packing import pack
from gnothi.encoders import encoder as encoders
from gnothi.encoders import features, load

pytestmark = pytest.mark.ddp

N = 45
SMALL = ("--set", "training.batch=12", "--set", "views.size=16", "--set", "training.precision=fp32", "--set", "data.holdout=0", "--device", "cpu")
SMALL += ("--set", "training.workers=1", "--set", "training.threads=1", "--method", "simclr", "--backbone", "micro-vit", "--epochs", "2")
APART = 2e-5
"""Of float32 vectors of a few numbers around 1: products of other batch sizes round otherwise. Measured: 2e-6."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uneven shards of 45 images in three classes, and a run on them."""
    folder = tmp_path_factory.mktemp("processes")
    images = noise(N, 20, 20, 3) // 4
    labels = np.arange(N) % 3
    images[np.arange(N), :, :, labels] += 100
    pack(ArraySource(images.astype(np.uint8), labels), folder / "shards", name="noise", images=13)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNOTHI_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        said("train", "shards:shards", "--out", "one", *SMALL)
        yield folder


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{"step": m["step"], "loss": m["loss"], "norm": m["gradient_norm"]} for m in lines if m["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_training_on_uneven_shards_with_several_processes_is_that_of_one(work: Path, processes: int) -> None:
    done = torchrun(processes, "train", "shards:shards", "--out", f"of {processes}", *SMALL)
    assert done.returncode == 0, done.stderr
    one, several = metrics(work / "one"), metrics(work / f"of {processes}")
    assert len(one) == 6 and [m["step"] for m in one] == [m["step"] for m in several]
    for a, b in zip(one, several, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4) and b["norm"] == pytest.approx(a["norm"], rel=1e-2)


@pytest.mark.slow
def test_three_processes_train_on_ten_images_with_a_batch_that_the_rule_gave_them(work: Path) -> None:
    np.savez("ten.npz", images=noise(10, 20, 20, 3).astype(np.uint8))
    rule = [word for word in SMALL if word != "training.batch=12"]
    rule.pop(0)  # the --set of it
    done = torchrun(3, "train", "ten.npz", "--out", "by three", *rule)
    assert done.returncode == 0, done.stderr
    said("train", "ten.npz", "--out", "by one", *rule, "--set", "training.batch=9")
    one, three = metrics(work / "by one"), metrics(work / "by three")
    assert one and [m["step"] for m in one] == [m["step"] for m in three]
    assert [m["loss"] for m in three] == pytest.approx([m["loss"] for m in one], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_embedding_with_several_processes_writes_one_file_with_the_vectors_of_one(work: Path, processes: int) -> None:
    said("embed", "one", "shards:shards", "--out", "one.npz")
    done = torchrun(processes, "embed", "one", "shards:shards", "--out", f"{processes}.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] == N  # one object, not several
    with np.load("one.npz") as one, np.load(f"{processes}.npz") as other:
        assert np.abs(one["embeddings"] - other["embeddings"]).max() < APART * np.abs(one["embeddings"]).max()
        assert all(np.array_equal(one[k], other[k]) for k in ("names", "labels", "rows", "classes"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_measuring_with_several_processes_prints_the_results_of_one(work: Path, kind: str, processes: int) -> None:
    args = ("evaluate", kind, "one", "pixels", "--data", "shards:shards", "--json")
    one = said(*args[:-1])["results"]
    os.environ["GNOTHI_CACHE"] = str(work / f"cache {kind} {processes}")  # nothing is there yet
    done = torchrun(processes, *args)
    assert done.returncode == 0, done.stderr
    for a, b in zip(one, json.loads(done.stdout)["results"], strict=True):
        assert (a["value"], a["n"], a["protocol"], a["encoder"]) == (b["value"], b["n"], b["protocol"], b["encoder"])


@pytest.mark.slow
@pytest.mark.parametrize(("combiner", "processes"), [("pca", 2), ("descent", 2), ("descent", 4)])
def test_an_ensemble_fitted_by_several_processes_is_that_of_one(work: Path, combiner: str, processes: int) -> None:
    settings = ("--set", "epochs=3", "--set", "hidden=16", "--set", "width=8") if combiner == "descent" else ()
    args = ("ensemble", "fit", "one", "hog", "--data", "shards:shards", "--combiner", combiner, *settings, "--out")
    one_of, several_of = f"{combiner} one {processes}", f"{combiner} {processes}"
    said(*args, one_of)
    os.environ["GNOTHI_CACHE"] = str(work / f"cache {several_of}")  # nothing is there yet
    done = torchrun(processes, *args, several_of, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] == N  # one object, not several
    one, several = (load(by, "cpu").embed_source(ArraySource(noise(9, 20, 20, 3))) for by in (one_of, several_of))
    assert np.abs(one - several).max() < 1e-3 * np.abs(one).max()


@pytest.mark.slow
def test_combiners_compared_by_two_processes_measure_what_one_does(work: Path) -> None:
    args = ("ensemble", "compare", "hog", "pixels", "--data", "shards:shards", "--combiner", "pca", "--json")
    one = said(*args[:-1])["results"]
    os.environ["GNOTHI_CACHE"] = str(work / "cache compare")
    done = torchrun(2, *args)
    assert done.returncode == 0, done.stderr
    assert [(r["encoder"], r["value"], r["n"]) for r in one] == [(r["encoder"], r["value"], r["n"]) for r in json.loads(done.stdout)["results"]]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_transfer_by_several_processes_is_that_of_one(work: Path, processes: int) -> None:
    args = ("transfer", "pixels", "--data", "shards:shards", "-k", "3", "--student", "micro-vit", *SMALL[:-6], "--set", "training.epochs=2")
    said(*args, "--out", f"taught {processes}")
    os.environ["GNOTHI_CACHE"] = str(work / f"cache taught {processes}")  # nothing is there yet
    done = torchrun(processes, *args, "--out", f"taught by {processes}", "--json")
    assert done.returncode == 0, done.stderr
    one, several = (metrics(work / run) for run in (f"taught {processes}", f"taught by {processes}"))
    assert one and [m["step"] for m in one] == [m["step"] for m in several]
    assert [m["loss"] for m in several] == pytest.approx([m["loss"] for m in one], rel=1e-4)


@pytest.mark.slow
def test_images_that_any_process_could_not_read_are_named_at_the_end_as_by_one(work: Path) -> None:
    """Four of them, so that each process meets some."""
    worn = work / "worn"
    for row, image in enumerate(noise(N, 20, 20, 3).astype(np.uint8)):
        (place := worn / f"{row % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:02d}.png")
    for name in ("0/00.png", "1/13.png", "2/26.png", "0/39.png"):
        (worn / name).write_bytes(b"no picture")
    args = ("train", "worn", *SMALL, "--set", "data.broken_fraction=0.5", "--out")
    said(*args, "worn one")
    done = torchrun(2, *args, "worn two")
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((work / run / "verdict.json").read_text())["broken"] for run in ("worn one", "worn two"))
    assert len(one) == 4 and two == one


@pytest.mark.slow
def test_a_run_of_another_call_is_not_gone_on_with_because_torchrun_restarts(work: Path) -> None:
    before = (work / "one" / "metrics.jsonl").read_bytes()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "gnothi"]
    done = subprocess.run([*command, "train", "shards:shards", "--out", "one", *SMALL], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and done.stderr.count("one is a run already; --resume goes on with it") == 2  # the restart says it again
    assert (work / "one" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_mistake_is_said_once_by_all_processes(work: Path) -> None:
    done = torchrun(2, "embed", "nothing", "shards:shards", "--out", "x.npz")
    assert done.returncode != 0 and done.stderr.count("gnothi: nothing: no such encoder") == 1 and not Path("x.npz").exists()
    assert gnothi("embed", "nothing", "shards:shards", "--out", "x.npz").code == 2


# ---- shares of the rows --------------------------------------------------------------------------
def shares(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    encoders.BLOCK = 4
    pixels = load("pixels", "cpu")
    for n in (1, 2, 10, 13, 24):
        source = ArraySource(np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8))
        told: list[tuple[int, int]] = []
        rows = np.arange(n)[::-1]
        blocks = list(encoders.spread(pixels, source, rows, lambda done, of, told=told: told.append((done, of))))  # type: ignore[misc]
        np.save(f"{folder}/{world} {n} {rank}.npy", np.concatenate(blocks))
        assert told == ([] if rank else [(min(i, n), n) for i in range(4 * world, n + 4 * world, 4 * world)])
        found = features(pixels, source, cache=f"{folder}/cache {world}", shared=True)
        np.save(f"{folder}/store {world} {n} {rank}.npy", found)
    joined = distributed.join(torch.full((rank, 2), float(rank)))
    np.save(f"{folder}/joined {world} {rank}.npy", joined.numpy())
    try:
        features(pixels, source, cache=f"{folder}/private {rank}", shared=True)
    except EncoderError as error:
        Path(f"{folder}/alone {world} {rank}").write_text(str(error))
    distributed.barrier()
    distributed.stop()


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_every_process_has_its_share_and_all_get_all_vectors(tmp_path: Path, world: int) -> None:
    """Also 3 processes for 10 images, for 2 and for 1."""
    mp.spawn(shares, (world, str(tmp_path)), nprocs=world)
    pixels = load("pixels", "cpu")
    for n in (1, 2, 10, 13, 24):
        source = ArraySource(np.arange(n * 64, dtype=np.uint8).reshape(n, 8, 8))
        expected = pixels.embed_source(source)
        for rank in range(world):
            assert np.array_equal(np.load(tmp_path / f"{world} {n} {rank}.npy"), expected[::-1])
            assert np.array_equal(np.load(tmp_path / f"store {world} {n} {rank}.npy"), expected)
    for rank in range(world):
        assert np.load(tmp_path / f"joined {world} {rank}.npy")[:, 0].tolist() == [float(r) for r in range(world) for _ in range(r)]
        assert rank == 0 or "is not seen by process 1; set GNOTHI_CACHE" in (tmp_path / f"alone {world} 1").read_text()
