"""Arrays, weights, features, tables and run folders from strangers: a result or one line, and nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import everything, npy, npz, outcome, pickles, spoilt
from safetensors.torch import save

from gnothi import pretrain
from gnothi.contracts import Source
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.data.targets import Targets
from gnothi.encoders import embed, load
from gnothi.models.backbone import BackboneSpec, build
from gnothi.randomness import generator
from gnothi.report import write as report
from gnothi.training import checkpoint, twice
from gnothi.training.progress import Silent

SETTINGS: dict[str, Any] = {
    "backbone": {"name": "micro-resnet", "args": {"widths": [4, 8]}},
    "method": {"name": "dino", "hidden": 8, "out": 8, "prototypes": 16},
    "views": {"size": 16},
    "training": {"epochs": 1, "batch": 8, "threads": 1},
}
IMAGES = torch.randint(256, (16, 16, 16, 3), generator=generator(0, "files"), dtype=torch.uint8).numpy()


def headed(header: str, body: bytes = b"\0" * 64) -> bytes:
    """An .npy whose header is this text."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + body


def member(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("images.npy", npy(IMAGES))
        archive.writestr(name, data)
    return out.getvalue()


def opened(path: Path, **settings: Any) -> Callable[[], Any]:
    """Everything that is done with data before training."""

    def action() -> None:
        source = open_data(str(path), settings=DataSpec(**settings))
        source.fingerprint()
        assert source.image(0).dtype in (torch.uint8, torch.uint16, torch.float32)

    return action


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    place = tmp_path_factory.mktemp("run")
    (place / "data.npz").write_bytes(npz(images=IMAGES, labels=np.arange(16) % 2))
    pretrain.train(str(place / "data.npz"), settings=SETTINGS, device="cpu", out=place / "run", progress=Silent())
    return place / "run"


# ---- arrays -------------------------------------------------------------------------------------
DESCR = "{'descr': '|u1', 'fortran_order': False, 'shape': %s}"
ARRAYS: dict[str, tuple[bytes, str]] = {
    "shape.npy": (headed(DESCR % "(1000000000000, 32, 32, 3)"), "cannot be read as .npy"),
    "overflow.npy": (headed(DESCR % "(9223372036854775807, 9223372036854775807)"), "cannot be read as .npy"),
    "negative.npy": (headed(DESCR % "(-5, 8, 8)"), "cannot be read as .npy"),
    "not a shape.npy": (headed(DESCR % "('a', {})"), "cannot be read as .npy"),
    "brackets.npy": (headed("(" * 5000 + ")" * 5000), "cannot be read as .npy"),
    "code.npy": (headed("__import__('os').system('touch evil')"), "cannot be read as .npy"),
    "names.npy": (npy(np.array(["a", "b"])), "must"),
    "complex.npy": (npy(np.zeros((4, 8, 8, 3), complex)), "must be integers, floats or bool"),
    "fields.npy": (npy(np.zeros((4, 8, 8), [("a", "u1"), ("b", "f4")])), "must be integers, floats or bool"),
    "dates.npy": (npy(np.zeros((4, 8, 8), "datetime64[s]")), "must be integers, floats or bool"),
    "none.npy": (npy(np.zeros((0, 8, 8), np.uint8)), "must be at least one image"),
    "flat.npy": (npy(np.zeros((4, 0, 8), np.uint8)), "must be at least one image"),
    "line.npy": (npy(np.zeros(9, np.uint8)), "must have the shape"),
    "many axes.npy": (npy(np.zeros((1,) * 30, np.uint8)), "must have the shape"),
    "huge.npy": (npy(np.full((4, 8, 8), 2**62)), "do not fit float32 exactly"),
    "not a number.npy": (npy(np.full((4, 8, 8), np.nan)), "not finite"),
    "too large.npy": (npy(np.full((4, 8, 8), 1e300)), "not finite"),
    "patients.npz": (npz(images=IMAGES, labels=np.arange(16) + 10**15), "labels must number at most 1,000,000 classes"),
    "infinite.npz": (npz(images=IMAGES, labels=np.full(16, np.inf)), "labels must be text, or whole numbers"),
    "wide.npz": (npz(images=IMAGES, labels=np.full(16, 1e300)), "labels must be text, or whole numbers"),
    "minus.npz": (npz(images=IMAGES, labels=np.full(16, -7)), "labels must be text, or whole numbers"),
    "dates.npz": (npz(images=IMAGES, labels=np.zeros(16, "datetime64[s]")), "labels must be text, or whole numbers"),
    "few.npz": (npz(images=IMAGES, labels=np.zeros((16, 3))), "labels must have the shape"),
    "classes.npz": (npz(images=IMAGES, labels=np.arange(16), classes=np.array("one")), "needs 16 classes, got 1"),
    "groups.npz": (npz(images=IMAGES, groups=np.zeros((16, 2, 2))), "groups must have the shape"),
    "keys.npz": (npz(**{"<b>\n": IMAGES}), "needs an array named images"),
    "text.npz": (member("notes.txt", b"hello"), "it is broken or of another format"),
    "empty.npz": (member("labels.npy", b""), "it is broken or of another format"),
    "not zip.npz": (b"PK\x03\x04" + b"\0" * 99, "it is broken or of another format"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_impossible_arrays_get_one_line(name: str, tmp_path: Path) -> None:
    raw, expected = ARRAYS[name]
    (tmp_path / name).write_bytes(raw)
    said = outcome(opened(tmp_path / name))
    assert said is not None and expected in said, said
    assert set(everything(tmp_path)) == {name}


@pytest.mark.parametrize("name", ["../../up.npy", "{folder}/absolute.npy", "a/b/c.npy", "..\\up.npy", "labels.npy"])
def test_members_of_archives_are_never_written_anywhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/x.npz").write_bytes(member(name.format(folder=tmp_path), npy(np.arange(16))))
    assert outcome(opened(tmp_path / "below/x.npz")) is None
    assert set(everything(tmp_path)) == {"below", "below/x.npz"}


def test_an_archive_that_unpacks_to_more_than_the_memory_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    raw = bytearray(npz(compressed=True, images=IMAGES))
    place = raw.index(b"PK\x01\x02") + 24  # the size in the table at the end, which is what is believed before a member is read
    raw[place : place + 4] = struct.pack("<I", 2**32 - 2)
    many = tmp_path / "bomb.npz"
    many.write_bytes(bytes(raw))
    import os

    pages = os.sysconf("SC_PHYS_PAGES")
    said = []
    for memory in (1 << 30, 1 << 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "sysconf", lambda name, memory=memory: memory // 4096 if name == "SC_PHYS_PAGES" else 4096)
            said.append(outcome(opened(many)) or "")
    assert "unpacks to 4 GiB, more than this machine's memory of 1 GiB" in said[0] and "unpacks" not in said[1]
    assert pages > 0


@cache
def arrays() -> dict[str, bytes]:
    labels = np.arange(16) % 3
    return {
        "plain.npz": npz(images=IMAGES, labels=labels),
        "small.npz": npz(compressed=True, train_images=IMAGES, train_labels=labels, test_images=IMAGES[:4]),
        "text.npz": npz(images=IMAGES[..., 0], labels=np.array(["a", "b"] * 8), groups=np.arange(16)),
        "plain.npy": npy(IMAGES),
        "float.npy": npy(IMAGES[..., 0] / 255),
    }


@pytest.mark.parametrize("cases", [150, pytest.param(4000, marks=pytest.mark.slow)])
def test_arrays_spoilt_at_random_are_read_or_refused(cases: int, tmp_path: Path) -> None:
    names, raws = list(arrays()), tuple(arrays().values())
    for case in range(cases):
        path = tmp_path / names[case % len(names)]
        path.write_bytes(spoilt(raws[case % len(names)], case, "arrays", raws))
        outcome(opened(path))
    assert set(everything(tmp_path)) <= set(names)


# ---- tables of labels ---------------------------------------------------------------------------
@pytest.mark.parametrize("cases", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_tables_spoilt_at_random_are_read_or_refused(cases: int, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(IMAGES[i]).save(tmp_path / f"images/{i}.png")
    table = b'name,label,group\n0.png,"a",1\n1.png,b,2\n2.png,"c ""x""",3\n3.png,,\n'
    others = (table.replace(b",", b";"), table.decode().encode("utf-16"), b"\xef\xbb\xbf" + table, b'"' * 40, b",\n" * 40, b"\0" * 20)
    for case in range(cases):
        (tmp_path / "labels.csv").write_bytes(spoilt((table, *others)[case % 7], case, "tables", others))
        outcome(opened(tmp_path / "images", labels=str(tmp_path / "labels.csv")))


# ---- weights ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folders(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Folders that are encoders, and the file of weights of each."""
    place = tmp_path_factory.mktemp("exported")
    config = {
        "format": "gnothi-export",
        "backbone": {"name": "micro-resnet", "args": {"widths": [4, 8]}},
        "channels": 3,
        "size": 16,
        "pixels": {"low": 0.0, "high": 255.0, "mean": [0.5] * 3, "std": [0.2] * 3},
    }
    (place / "config.json").write_text(json.dumps(config))
    network = build(BackboneSpec(**config["backbone"]), 3, 16, 0)
    (place / "model.safetensors").write_bytes(save(dict(network.state_dict())))
    return {"run": (run, checkpoint.list_of(run)[-1].name), "exported": (place, "model.safetensors")}


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != ".lock":
            (to / path.name).write_bytes(path.read_bytes())
    return to


def embeds(folder: Path) -> Callable[[], Any]:
    """Open a folder as an encoder, and embed with it."""
    return lambda: load(str(folder), "cpu").embed(IMAGES[:2])


@pytest.mark.parametrize("kind", ["run", "exported"])
@pytest.mark.parametrize("cases", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_weights_spoilt_at_random_are_read_or_refused(kind: str, cases: int, folders: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    folder, name = folders[kind]
    own = copied(folder, tmp_path / "own")
    for other in checkpoint.list_of(own)[:-1]:
        other.unlink()
    raw, before = (own / name).read_bytes(), everything(own)
    assert outcome(embeds(own)) is None
    length = struct.unpack("<Q", raw[:8])[0] + 8
    for case in range(cases):  # half of them in the header, which is short beside the numbers
        altered = spoilt(raw[:length], case, "header") + raw[length:] if case % 2 else spoilt(raw, case, "weights")
        (own / name).write_bytes(altered)
        outcome(embeds(own))
    assert set(everything(own)) == set(before)


def tensors(header: dict[str, Any], body: bytes = b"\0" * 64) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


STRANGE: dict[str, bytes] = {
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "huge shape": tensors({"a": {"dtype": "F32", "shape": [10**18, 10**18], "data_offsets": [0, 64]}}),
    "far away": tensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [2**60, 2**60 + 16]}}),
    "backwards": tensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
    "another type": tensors({"a": {"dtype": "PYTHON", "shape": [4], "data_offsets": [0, 16]}}),
    "one number": tensors({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}),
    "deep": struct.pack("<Q", 20_000) + b"[" * 20_000,
    "list": struct.pack("<Q", 2) + b"[]",
    "no object in its metadata": tensors({"__metadata__": {"gnothi": "[1, 2]"}, "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}),
    "deep metadata": tensors({"__metadata__": {"gnothi": "[" * 50_000}, "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}),
    "no digest": tensors({"__metadata__": {"gnothi": '{"step": 1}'}, "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_weights_get_one_line(name: str, folders: dict[str, tuple[Path, str]], run: Path, tmp_path: Path) -> None:
    for kind, (folder, file) in folders.items():
        own = copied(folder, tmp_path / kind)
        for other in checkpoint.list_of(own):
            other.unlink()
        (own / file).write_bytes(STRANGE[name])
        assert outcome(embeds(own)) is not None
    (tmp_path / "targets.safetensors").write_bytes(STRANGE[name])
    assert outcome(lambda: Targets.read(tmp_path / "targets.safetensors", "classes")) is not None


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float64, torch.float8_e5m2])
def test_weights_of_another_type_are_taken_or_refused(dtype: torch.dtype, folders: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    own = copied(folders["exported"][0], tmp_path / "own")
    (own / "model.safetensors").write_bytes(save({k: v.to(dtype) for k, v in load_file(own / "model.safetensors").items()}))
    outcome(embeds(own))


# ---- settings of strangers' folders -------------------------------------------------------------
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**40, 10**30, -1e308, "1e400", "", "abc", "<b>", [], [[]], {}, {"a": 1}, [None], "\ud800".encode("utf-8", "replace").decode(),
    [10**12], ["x"] * 3, [0.0, 0.0, 0.0], float("inf"), float("nan"),
)  # fmt: skip


def places(value: Any, front: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested plain values."""
    yield front
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*front, key))


def put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with something else at a place."""
    if not place:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[place[0]] = put(value[place[0]], place[1:], new)
    return changed


def variants(value: Any, cases: int, purpose: str) -> Iterator[Any]:
    """Nested values with one or two of them replaced by something hostile."""
    everywhere = list(places(value))
    for case in range(cases):
        changed, g = value, generator(0, purpose, case)
        for _ in range(1 + int(torch.randint(2, (), generator=g))):
            place = everywhere[int(torch.randint(len(everywhere), (), generator=g))]
            try:
                changed = put(changed, place, VALUES[int(torch.randint(len(VALUES), (), generator=g))])
            except (KeyError, IndexError, TypeError):
                continue  # what was there is replaced already
        yield changed


@pytest.mark.parametrize("cases", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_folders_whose_settings_are_anything_are_opened_or_refused(cases: int, folders: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    refused = 0
    for kind, (folder, _) in folders.items():
        own, name = copied(folder, tmp_path / kind), "spec.json" if kind == "run" else "config.json"
        (own / twice.COPY).unlink(missing_ok=True)
        settings = {k: v for k, v in json.loads((own / name).read_text()).items() if k != "seal"}
        before = everything(own)
        for variant in variants(settings, cases // 2, f"settings {kind}"):
            (own / name).write_text(json.dumps(variant))
            refused += outcome(embeds(own)) is not None
        for text in ("[" * 100_000, "NaN", '"text"', '{"a": ' * 30_000, "{}", "\ufeff{}"):
            (own / name).write_text(text)
            assert outcome(embeds(own)) is not None
        assert set(everything(own)) == set(before)
    assert refused > cases / 10


@pytest.mark.parametrize("cases", [6, pytest.param(300, marks=pytest.mark.slow)])
def test_pages_of_folders_that_hold_anything_are_drawn_or_refused(cases: int, run: Path, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "own")
    (own / twice.COPY).unlink()
    for path in checkpoint.list_of(own):
        path.unlink()  # without weights the page lacks its costly sections
    spec = {k: v for k, v in json.loads((own / "spec.json").read_text()).items() if k != "seal"}
    verdict = json.loads((own / "verdict.json").read_text())
    lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    results = {"results": [{"encoder": "x", "metric": "knn", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "protocol": "p"}] * 2}
    whole = {"spec.json": spec, "verdict.json": verdict, "metrics.jsonl": lines, "results.json": results, "environment.json": {"command": ["a", "b"]}}
    assert outcome(lambda: report(own)) is None
    for variant in variants(whole, cases, "pages"):
        for name in whole:
            value = variant.get(name) if isinstance(variant, dict) else variant
            text = json.dumps(value) if name != "metrics.jsonl" or not isinstance(value, list) else "\n".join(map(json.dumps, value))
            (own / name).write_text(text)
        outcome(lambda: report(own))


# ---- features -----------------------------------------------------------------------------------
def table(**columns: Any) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    about = columns.pop("about", {})
    parquet.write_table(pa.table(columns).replace_schema_metadata(about), out)
    return out.getvalue()


def test_strange_features_get_one_line(tmp_path: Path) -> None:
    two = [[1.0, 2.0], [3.0, 4.0]]
    cases = {
        "far.parquet": table(row=[0, 10**12], embedding=two),
        "below.parquet": table(row=[0, -1], embedding=two),
        "halves.parquet": table(row=[0.5, 1.5], embedding=two),
        "text.parquet": table(row=["a", "b"], embedding=two),
        "missing.parquet": table(row=[0, None], embedding=two),
        "uneven.parquet": table(row=[0, 1], embedding=[[1.0, 2.0], [3.0]]),
        "even.parquet": table(row=[0, 1], embedding=[[1.0, 2.0, 3.0], [4.0]]),
        "none.parquet": table(row=[0, 1, 2, 3], embedding=[[1.0] * 4, None, [2.0] * 4, [3.0] * 4]),
        "twice.parquet": table(row=[1, 1], embedding=two),
        "words.parquet": table(row=[0, 1], embedding=["a", "b"]),
        "number.parquet": table(row=[0, 1], embedding=two, about={"gnothi.source_images": "many"}),
        "huge.parquet": table(row=[0, 1], embedding=two, about={"gnothi.source_images": "9" * 30}),
        "few.parquet": table(row=[0, 5], embedding=two, about={"gnothi.source_images": "2"}),
        "bytes.parquet": table(row=[0, 1], embedding=two, about={"gnothi.source_fingerprint": b"\xff\xfe"}),
        "other.parquet": table(a=[1]),
        "shape.npy": headed("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 64)}"),
        "archive.npy": npz(a=np.zeros((3, 3))),
        "axes.npy": npy(np.zeros((2, 2, 2))),
    }
    for name, raw in cases.items():
        (tmp_path / name).write_bytes(raw)
        said = outcome(lambda name=name: load(f"features:{tmp_path}/{name}"))
        assert said is not None and name in said, (name, said)


@pytest.mark.parametrize("cases", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_features_spoilt_at_random_are_read_or_refused(cases: int, run: Path, tmp_path: Path) -> None:
    source = open_data(str(run.parent / "data.npz"))
    for name in ("e.parquet", "e.npy"):
        embed("colour", source, tmp_path / name)
        raw = (tmp_path / name).read_bytes()
        expected = load(f"features:{tmp_path}/{name}").embed_source(source)
        for case in range(cases // 2):
            (tmp_path / name).write_bytes(spoilt(raw, case, name))
            outcome(lambda name=name: load(f"features:{tmp_path}/{name}").embed_source(source))
        if name == "e.parquet":
            whole(tmp_path / name, raw, expected, source, max(1, 2000 // cases))


def whole(path: Path, raw: bytes, expected: np.ndarray, source: Source, every: int) -> None:
    """Whatever byte of a table is altered, it gives the same numbers or none."""
    for place in range(0, len(raw), every):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :])
        found: list[np.ndarray] = []
        outcome(lambda found=found: found.append(load(f"features:{path}").embed_source(source)))
        assert all(np.array_equal(x, expected, equal_nan=True) for x in found), place


# ---- pickles ------------------------------------------------------------------------------------
def test_pickles_offered_as_anything_are_refused_and_never_opened(run: Path, folders: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    pickle.loads(pickles(proof)["bare"]).close()
    assert proof.exists()  # it would
    proof.unlink()
    from PIL import Image

    for kind, raw in pickles(proof).items():
        place = tmp_path / kind
        (place / "images").mkdir(parents=True)
        (place / "cifar-10-batches-py").mkdir()
        Image.fromarray(IMAGES[0]).save(place / "images/good.png")
        for name in ("x.npz", "x.npy", "x.parquet", "x.csv", "x.safetensors", "x.pth", "images/bad.png", "images/bad.tif", "images/bad.jpg"):
            (place / name).write_bytes(raw)
        for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
            (place / "cifar-10-batches-py" / name).write_bytes(raw)
        own = copied(run, place / "run")
        for path in checkpoint.list_of(own):
            path.write_bytes(raw)
        exported, broken = copied(folders["exported"][0], place / "exported"), copied(run, place / "broken")
        (exported / "model.safetensors").write_bytes(raw)
        for name in (twice.NAME, twice.COPY):
            (broken / name).write_bytes(raw)
        args = {"checkpoint_path": str(place / "x.pth")}
        actions: dict[str, Callable[[], Any]] = {
            "npz": opened(place / "x.npz"),
            "npy": opened(place / "x.npy"),
            "labels": opened(place / "images", labels=str(place / "x.csv")),
            "cifar": lambda place=place: open_data("cifar10", settings=DataSpec(root=str(place))),
            "png": lambda place=place: open_data(str(place / "images")).image(0),
            "features npy": lambda place=place: load(f"features:{place}/x.npy"),
            "features parquet": lambda place=place: load(f"features:{place}/x.parquet"),
            "run": embeds(own),
            "exported": embeds(exported),
            "spec": embeds(broken),
            "targets": lambda place=place: Targets.read(place / "x.safetensors", "classes"),
            "checkpoint": lambda own=own: checkpoint.read(checkpoint.list_of(own)[-1]),
            "timm": lambda args=args: build(BackboneSpec(name="resnet18", args=args), 3, 32, 0),
        }
        for name, action in actions.items():
            assert outcome(action) is not None, (kind, name)
            assert not proof.exists(), (kind, name)
