from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import gnothi
from gnothi import distributed
from gnothi import transfer as library
from gnothi.cli.root import cli
from gnothi.contracts import Block, DataError, EncoderError, SettingError
from gnothi.data.targets import Targets
from gnothi.encoders import Encoder
from gnothi.randomness import generator
from gnothi.training.lock import LOCK
from gnothi.training.progress import Silent
from gnothi.transfer import TransferSpec, baselines, transfer
from gnothi.transfer.teachers import pooled, teachers

QUICK = {"training": {"epochs": 1, "batch": 32, "precision": "fp32", "evaluate_every": "50%", "checkpoint_every": "4 steps"}, "views": {"size": 16}}


def blobs(folder: Path, n: int = 240, name: str = "blobs.npz", labels: bool = True) -> tuple[str, np.ndarray]:
    """Four kinds of pictures: a bright spot in one of the corners, on noise."""
    g = generator(0, name)
    kind = torch.arange(n) % 4
    x = 60 * torch.rand(n, 3, 16, 16, generator=g)
    for i, k in enumerate(kind.tolist()):
        x[i, k % 3, 1 + 7 * (k // 2) : 8 + 7 * (k // 2), 1 + 7 * (k % 2) : 8 + 7 * (k % 2)] += 160
    np.savez(folder / name, images=x.byte().numpy(), **({"labels": kind.numpy()} if labels else {}))
    return str(folder / name), kind.numpy()


def taught(
    folder: Path, data: str, out: str = "run", names: Any = ("pixels",), settings: dict[str, Any] = QUICK, **more: Any
) -> library.student.Transfer:
    spec = TransferSpec.of({"k": 4, **more.pop("spec", {})})
    return transfer(
        list(names), data, out=folder / out, student="micro-resnet", spec=spec, settings=settings, cache=str(folder / "c"), progress=Silent(), **more
    )


def test_a_student_learns_the_clusters_of_a_teacher_it_does_not_resemble(tmp_path: Path) -> None:
    data, kind = blobs(tmp_path, labels=False)
    settings = {**QUICK, "training": {**QUICK["training"], "epochs": 15}, "views": {"size": 16, "flip": 0, "area": [0.7, 1]}}
    done = taught(tmp_path, data, settings=settings)
    targets, source = Targets.read(tmp_path / "run" / "targets.safetensors", "classes"), gnothi.data.open(data)
    assert adjusted_rand_score(kind, targets.tensors["index"][targets.rows(source), 0, 0]) == 1
    lines = [m for m in done.run.metrics if m.get("metric") == "held_out_accuracy"]
    assert lines[-1]["value"] > 0.9 and lines[-1]["n"] == 24
    assert done.run.verdict["verdict"] == "healthy"
    encoder = gnothi.load(str(tmp_path / "run"))
    x = encoder.embed_source(source)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    likeness = x @ x.T - 2 * np.eye(len(x))
    assert (kind[likeness.argmax(1)] == kind).mean() > 0.95


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gnothi.training.learner import Learner

    data, _ = blobs(tmp_path)
    taught(tmp_path, data, "whole", spec={"loss": "compress"}, settings={**QUICK, "method": {"queue": 50}})
    step = Learner.step

    def stops(self: Learner) -> None:
        if self.number == 5:
            raise KeyboardInterrupt
        step(self)

    def again(resume: bool) -> None:
        taught(tmp_path, data, "cut", spec={"loss": "compress"}, settings={**QUICK, "method": {"queue": 50}}, resume=resume)

    monkeypatch.setattr(Learner, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        again(False)
    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(SettingError, match="is a run already; --resume"):
        again(False)
    again(True)
    a, b = (gnothi.training.checkpoint.read(gnothi.training.checkpoint.newest(tmp_path / name))[0] for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any("queues" in k for k in a) and not any("targets" in k for k in a)
    with pytest.raises(SettingError, match="holds targets of another setting"):
        taught(tmp_path, data, "cut", spec={"loss": "seed"}, settings=QUICK, resume=True)


def test_every_teacher_has_heads_of_its_own_and_clusters_of_other_images_label_these(tmp_path: Path) -> None:
    data, _ = blobs(tmp_path)
    other, _ = blobs(tmp_path, 120, "other.npz")
    done = taught(tmp_path, data, names=["pixels", "colour"], spec={"heads": 2, "fit": other, "temperature": 0.1, "nearest": 3})
    assert len(done.record["clusters"]) == 4 and all(c["fit"].startswith("4 clusters of 120 vectors") for c in done.record["clusters"])
    targets = Targets.read(tmp_path / "run" / "targets.safetensors", "classes")
    assert targets.tensors["index"].shape == (240, 4, 3)
    book = library.Codebook.load(tmp_path / "run", "codebook-2")
    expected = book.soft(gnothi.load("colour").embed_source(gnothi.data.open(data)), 0.1, 3)
    assert np.array_equal(targets.tensors["index"][:, 2], expected[0])
    np.testing.assert_allclose(targets.tensors["share"][:, 2], expected[1], atol=1e-6)


def test_a_student_is_a_run_that_every_verb_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "c"))
    data, _ = blobs(tmp_path)
    command = ["transfer", "pixels", "--data", data, "--student", "micro-resnet", "--out", str(tmp_path / "run"), "-k", "4", "--json"]
    command += [word for key in ("training.epochs=1", "training.batch=32", "views.size=16", "transfer.restarts=1") for word in ("--set", key)]
    found = json.loads(CliRunner().invoke(cli, [*command, "--baseline", "shuffled", "--baseline", "teacher"], catch_exceptions=False).stdout)
    assert found["transfer"]["clusters"][0]["k"] == 4 and Path(found["report"]).is_file()
    assert [r["encoder"] for r in found["results"]] == [str(tmp_path / "run"), str(tmp_path / "run-shuffled"), "pixels"]
    for verb in (
        ["evaluate", "knn", str(tmp_path / "run"), "--data", data],
        ["embed", str(tmp_path / "run"), data, "--out", str(tmp_path / "x.npy")],
    ):
        assert CliRunner().invoke(cli, verb, catch_exceptions=False).exit_code == 0
    told = (Targets.read(tmp_path / name / "targets.safetensors", "classes") for name in ("run", "run-shuffled"))
    a, b = (t.tensors["index"][t.rows(gnothi.data.open(data))].flatten() for t in told)
    assert not torch.equal(a, b) and torch.equal(a.bincount(), b.bincount())
    tried = json.loads(CliRunner().invoke(cli, [*command, "--try-k", "4,24"], catch_exceptions=False).stdout)["tried"]
    assert [t["k"] for t in tried] == [4, 24] and tried[0]["agreement"] == pytest.approx(1) and tried[0]["suggested"]


def test_baselines_differ_from_the_student_in_one_thing(tmp_path: Path) -> None:
    data, _ = blobs(tmp_path)
    folders = baselines(
        ["regression", "seed", "supervised", "teacher"], ["pixels"], data, out=tmp_path / "run", spec=TransferSpec(k=4), student="micro-resnet",
        settings={**QUICK, "method": {"smoothing": 0.1}}, cache=str(tmp_path / "c"), progress=Silent(),
    )  # fmt: skip
    specs = [json.loads((f / "spec.json").read_text())["settings"] for f in folders]
    assert [f.name for f in folders] == ["run-regression", "run-seed", "run-supervised"]
    assert [(s["method"]["name"], s["method"].get("loss")) for s in specs] == [("distil", "regression"), ("distil", "seed"), ("classify", None)]
    assert specs[2]["method"]["targets"] is None
    assert all(s["data"] == specs[0]["data"] for s in specs) and specs[0]["data"]["holdout"] == pytest.approx(0.1)  # the same images teach
    assert all(s["backbone"] == specs[0]["backbone"] and s["training"] == specs[0]["training"] and s["views"] == specs[0]["views"] for s in specs)


def test_the_table_of_baselines_asks_rows_that_taught_nobody(tmp_path: Path) -> None:
    """Of data without a split, labels from a file: not one of the rows by whose labels ``supervised`` learned."""
    packed, kind = blobs(tmp_path, n=120, labels=False)
    (tmp_path / "images").mkdir()
    for row, image in enumerate(np.load(packed)["images"].transpose(0, 2, 3, 1)):
        Image.fromarray(image).save(tmp_path / "images" / f"{row:03d}.png")
    (tmp_path / "labels.csv").write_text("name,label\n" + "".join(f"{row:03d}.png,{'abcd'[k]}\n" for row, k in enumerate(kind)))
    settings, data = {**QUICK, "data": {"labels": str(tmp_path / "labels.csv")}}, str(tmp_path / "images")
    done = taught(tmp_path, data, settings=settings)
    folders = baselines(["supervised"], ["pixels"], data, out=tmp_path / "run", student="micro-resnet", settings=settings, progress=Silent())
    found = library.measured([done.run.folder, *folders], ["pixels"], data)
    assert [r.encoder for r in found] == [str(done.run.folder), str(folders[0]), "pixels"]
    source = gnothi.data.open(data, settings=gnothi.data.DataSpec(labels=str(tmp_path / "labels.csv")))
    kept, held = gnothi.data.holdout(source, 0.1, 0)
    assert all(r.n == len(held) for r in found)
    x = np.asarray(gnothi.load("pixels").embed_source(source))
    assert found[2].value == gnothi.evaluate.knn(x[kept], source.labels[kept], x[held], source.labels[held]).value
    (tmp_path / "few.csv").write_text("name,label\n" + "".join(f"{row:03d}.png,a\n" for row in kept[:3].tolist()))  # none of those that ask
    (tmp_path / "few").mkdir()
    spec = {"settings": {"seed": 0, "data": {"name": data, "holdout": 0.1, "labels": str(tmp_path / "few.csv")}}}
    (tmp_path / "few" / "spec.json").write_text(json.dumps(spec))
    few = gnothi.data.open(data, settings=gnothi.data.DataSpec(labels=str(tmp_path / "few.csv")))
    assert (few.labels[gnothi.data.holdout(few, 0.1, 0)[1]] < 0).all() and library.measured([tmp_path / "few"], ["pixels"], data) == []
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "spec.json").write_text('{"settings": {"seed": 0, "data": {"name": "bare.npz", "holdout": 0.1}}}')
    assert library.measured([tmp_path / "bare"], (), packed) == []


def test_trying_numbers_clusters_as_the_student_s_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    real = library.student.cluster

    def cluster(rows: Any, k: Any, seed: int, **given: Any) -> Any:
        asked.append(given)
        return real(rows, k, seed, **given)

    monkeypatch.setattr(library.student, "cluster", cluster)
    monkeypatch.setattr(library.clusters, "cluster", cluster)
    monkeypatch.setattr(library.student, "WIDE", 10)
    monkeypatch.setattr(library.student, "AXES", 5)
    data, spec = blobs(tmp_path)[0], {"normalise": False, "whiten": True, "memory": 0.5, "restarts": 1}
    taught(tmp_path, data, names=["colour"], spec=spec)
    library.try_k(["colour"], data, "4", TransferSpec.of(spec))
    assert len(asked) == 3 and asked[0] == asked[1] == asked[2] == {**spec, "pca": 5, "iterations": 20}


def test_changed_images_of_the_clusters_are_noticed_where_a_run_goes_on(tmp_path: Path) -> None:
    data, other = blobs(tmp_path)[0], blobs(tmp_path, name="other.npz")[0]
    taught(tmp_path, data, spec={"fit": other})
    assert json.loads((tmp_path / "run" / "transfer.json").read_text())["fit"]["name"] == other
    taught(tmp_path, data, spec={"fit": other}, resume=True)
    kept = json.loads((tmp_path / "run" / "transfer.json").read_text())
    (tmp_path / "run" / "transfer.json").write_text(json.dumps({k: v for k, v in kept.items() if k != "fit"}))  # as an older version left it
    taught(tmp_path, data, spec={"fit": other}, resume=True)
    (tmp_path / "run" / "transfer.json").write_text(json.dumps(kept))
    np.savez(other, images=255 - np.load(other)["images"])
    with pytest.raises(SettingError, match="holds targets of another fit than this one"):
        taught(tmp_path, data, spec={"fit": other}, resume=True)


def test_a_student_that_torchrun_started_anew_goes_on_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = blobs(tmp_path)
    taught(tmp_path, data)
    with pytest.raises(SettingError, match="is a run already"):
        taught(tmp_path, data)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "call")
    (tmp_path / "run" / LOCK).write_text(distributed.job())
    assert taught(tmp_path, data).run.verdict["steps"] > 0


# ---- teachers ------------------------------------------------------------------------------------
def test_a_block_is_pooled_to_a_grid_as_asked() -> None:
    maps = torch.randn(2, 6, 4, 4, generator=generator(0, "maps"))
    block = Block(torch.ones(2, 6), torch.zeros(2, 6), maps.flatten(2).mT, (4, 4))
    largest = torch.stack([maps[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].amax((2, 3)) for r in range(2) for c in range(2)], 2)
    torch.testing.assert_close(pooled(block, "max:2"), largest.flatten(1))
    torch.testing.assert_close(pooled(block, "average:1"), maps.mean((2, 3)))
    assert pooled(block, "pooled").all() and not pooled(block, "final").any()


def test_a_teacher_may_speak_from_any_block(tmp_path: Path) -> None:
    data, _ = blobs(tmp_path)
    taught(tmp_path, data)
    run, source = str(tmp_path / "run"), gnothi.data.open(data)
    whole = gnothi.load(run)
    many = len(whole.backbone.block_widths)
    last, grid = teachers([run], -1, "average:1")[0], teachers([run], 0, "max:3")[0]
    want = gnothi.contracts.Want(patches=True, blocks=(many - 1,))
    encoding = whole.backbone(whole.prepare(source.array[:5]), want).blocks[many - 1]
    torch.testing.assert_close(last.embed(source.array[:5]), encoding.patches.mean(1))
    assert grid.dim == 9 * whole.backbone.block_widths[0] and grid.fingerprint != last.fingerprint != whole.fingerprint
    with pytest.raises(SettingError, match=rf"--layer must lie between -{many} and {many - 1}"):
        teachers([run], many)
    with pytest.raises(SettingError, match="--pool must be pooled, final, max:G or average:G"):
        teachers([run], 0, "max")
    with pytest.raises(EncoderError, match="hog has no blocks to choose from"):
        teachers(["hog"], 0)


# ---- mistakes ------------------------------------------------------------------------------------
def refused(tmp_path: Path, error: type[Exception], match: str, **more: Any) -> None:
    data = more.pop("data", None) or blobs(tmp_path)[0]
    with pytest.raises(error, match=match):
        taught(tmp_path, data, **more)
    assert not (tmp_path / "run" / "spec.json").exists()


def test_vectors_of_the_same_images_in_another_order_are_refused_with_the_first_that_differs(tmp_path: Path) -> None:
    for name in ("a/0", "a/1", "a/2", "b/3", "b/4"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 40 * int(name[-1]), dtype=np.uint8)).save(path)
    data, out, few = str(tmp_path / "images"), tmp_path / "v.parquet", {**QUICK, "training": {"epochs": 1, "batch": 2}}
    gnothi.encoders.embed("pixels", data, out)
    (tmp_path / "images" / "a" / "1.png").rename(tmp_path / "images" / "b" / "1.png")
    line = r"was made of other images .*, and row 1 is a/1\.png there and a/2\.png here; embed them again"
    refused(tmp_path, EncoderError, line, data=data, names=[f"features:{out}"], settings=few)
    (tmp_path / "images" / "a" / "0.png").unlink()
    line = r"holds 5 vectors, this source has 4 images, and row 0 is a/0\.png there and a/2\.png here; name the source"
    refused(tmp_path, EncoderError, line, data=data, names=[f"features:{out}"], settings=few)


def test_mistakes_are_one_line_before_any_training(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.ones((7, 3), dtype=np.float32))
    refused(tmp_path, EncoderError, "holds 7 vectors, this source has 240 images", names=[f"features:{tmp_path / 'few.npy'}"])
    broken = np.ones((240, 3), dtype=np.float32)
    broken[17, 1] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    refused(tmp_path, DataError, "gives row 17 a vector that is not finite, though the image", names=[f"features:{tmp_path / 'nan.npy'}"])
    refused(tmp_path, SettingError, "k must lie between 1 and the number of images, 240, got 500", spec={"k": 500})
    refused(tmp_path, SettingError, r"transfer\.kk: no such setting; did you mean k\?", spec={"kk": 3})
    refused(tmp_path, SettingError, "method.name is classify for transfer.loss=clusters, got simclr", settings={"method": {"name": "simclr"}})
    with pytest.raises(SettingError, match="did you mean compress"):
        library.check_baselines(["compres"])
    with pytest.raises(SettingError, match="--try-k takes numbers"):
        library.try_k(["pixels"], blobs(tmp_path)[0], "a,b", TransferSpec())


def test_a_student_that_does_not_fit_and_too_many_clusters_are_refused_before_features_are_made(tmp_path: Path) -> None:
    class Unwilling(Encoder):
        name, dim, fingerprint = "unwilling", 3, "0" * 16

        def prepare(self, images: Tensor) -> Tensor:
            raise AssertionError("features were asked for")

    (data, _), shared = blobs(tmp_path), {"out": tmp_path / "run", "cache": str(tmp_path / "c"), "progress": Silent()}
    settings = {**QUICK, "backbone": {"name": "micro-vit", "patch_size": 7}}
    with pytest.raises(SettingError, match="patch"):
        transfer([Unwilling()], data, settings=settings, **shared)
    with pytest.raises(SettingError, match="k must lie between 1 and the number of images, 240, got 241; 10 is the rule's choice"):
        transfer([Unwilling()], data, settings=QUICK, spec=TransferSpec(k=241), **shared)
    blobs(tmp_path, 40, "other.npz")
    with pytest.raises(SettingError, match="the number of images, 40, got 41"):
        transfer([Unwilling()], data, settings=QUICK, spec=TransferSpec(k=41, fit=str(tmp_path / "other.npz")), **shared)
