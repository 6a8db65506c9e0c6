"""Searching the images most like some images, against a float64 loop over all of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import gnothi, said

from gnothi.contracts import DataError, EncoderError, SettingError
from gnothi.data import open as open_data
from gnothi.encoders import embed, load
from gnothi.randomness import generator
from gnothi.search import similar

N = 60
ENDINGS = (".parquet", ".npz", ".safetensors")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a folder of three classes, a picture beside it, and files of their features."""
    root = tmp_path_factory.mktemp("search")
    noise = torch.randint(256, (N + 1, 12, 12, 3), generator=generator(0, "search"), dtype=torch.uint8).numpy()
    for i, image in enumerate(noise[:N]):
        image[:, :, i % 3] //= 3
        path = root / "set" / f"class {i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    Image.fromarray(noise[N]).save(root / "asked.png")
    with contextlib.chdir(root):
        for ending in ENDINGS:
            embed("colour", "set", f"features{ending}")
        embed("colour", "set", "features.npy")
        yield root


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path))


def slow(query: np.ndarray, among: np.ndarray, k: int, without: int | None = None) -> list[tuple[int, float]]:
    """Cosines in float64, one image at a time; equal ones by row."""
    q = query.astype(np.float64)
    cosines = []
    for row, other in enumerate(among.astype(np.float64)):
        if row != without:
            cosines.append((float(q @ other / np.sqrt((q @ q) * (other @ other))), row))
    return [(row, c) for c, row in sorted(cosines, key=lambda pair: (-pair[0], pair[1]))[:k]]


@pytest.mark.parametrize("among", ["set", *(f"features{e}" for e in ENDINGS)])
def test_it_is_the_slow_loop_with_names_and_labels(work: Path, among: str) -> None:
    source, encoder = open_data("set"), load("colour")
    vectors = encoder.embed_source(source)
    with Image.open("asked.png") as image:
        asked = encoder.embed(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])[0].numpy()
    own = 17
    found = similar("colour", ["asked.png", source.name(own)], among, k=7)
    for answer, expected in zip(found.answers, (slow(asked, vectors, 7), slow(vectors[own], vectors, 7, own)), strict=True):
        assert [n.name for n in answer.neighbours] == [source.name(row) for row, _ in expected]
        assert [n.similarity for n in answer.neighbours] == pytest.approx([c for _, c in expected], abs=1e-6)
        assert [n.label for n in answer.neighbours] == [source.name(row).split("/")[0] for row, _ in expected]
    assert [a.query.label for a in found.answers] == [None, source.name(own).split("/")[0]]


def test_a_file_of_the_set_is_its_own_nearest_and_its_name_is_not(work: Path) -> None:
    file, name = similar("colour", ["set/class 1/4.png", "class 1/4.png"], "set", k=3).answers
    assert (file.neighbours[0].name, file.neighbours[0].similarity) == ("class 1/4.png", pytest.approx(1, abs=1e-6))
    assert [n.name for n in file.neighbours[1:]] == [n.name for n in name.neighbours[:2]]


def test_all_are_given_where_there_are_fewer_than_k(work: Path) -> None:
    file, name = similar("colour", ["asked.png", "class 0/0.png"], "features.npz", k=1000).answers
    assert (len(file.neighbours), len(name.neighbours)) == (N, N - 1)


def test_among_equal_images_the_asked_one_is_still_left_out(tmp_path: Path) -> None:
    images = np.full((9, 8, 8, 3), 90, dtype=np.uint8)
    images[:, 0, 0, 0] = 200  # not constant: every vector is the same and not zero
    np.savez(tmp_path / "same.npz", images=images)
    (answer,) = similar("pixels", ["row 8"], str(tmp_path / "same.npz"), k=3).answers
    assert [n.name for n in answer.neighbours] == ["row 0", "row 1", "row 2"]


def test_a_grey_picture_is_read_as_the_images_that_it_is_compared_with(work: Path, tmp_path: Path) -> None:
    with Image.open("asked.png") as image:
        image.convert("L").save(tmp_path / "grey.png")
        image.convert("L").convert("RGB").save(tmp_path / "rgb.png")
    for among in ("set", "features.parquet"):  # the file remembers its images
        grey, rgb = similar("colour", [tmp_path / "grey.png", tmp_path / "rgb.png"], among).answers
        assert [(n.name, n.similarity) for n in grey.neighbours] == [(n.name, n.similarity) for n in rgb.neighbours]
    embed("colour", open_data("set"), tmp_path / "alone.npz")  # made from Python: it does not say where its images lie
    with pytest.raises(EncoderError, match="gets 16 numbers of colour, the images searched have 48"):
        similar("colour", [tmp_path / "grey.png"], str(tmp_path / "alone.npz"))


def test_images_that_cannot_be_read_are_no_neighbours(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes((work / f"set/class {i % 3}/{i}.png").read_bytes())
    (folder / "1.png").write_bytes(b"broken")
    (answer,) = similar("colour", ["3.png"], str(folder), k=9).answers
    assert sorted(n.name for n in answer.neighbours) == ["0.png", "2.png"]


def test_features_of_another_encoder_are_refused_by_both_names(work: Path) -> None:
    with pytest.raises(EncoderError, match=rf"features.parquet was made by colour \(fingerprint {load('colour').fingerprint}\), not by hog"):
        similar("hog", ["asked.png"], "features.parquet")
    with pytest.raises(EncoderError, match=r"features.npy holds vectors alone, .* --out features.parquet keeps them"):
        similar("colour", ["asked.png"], "features.npy")


def test_an_image_that_is_not_there_names_the_nearest(work: Path) -> None:
    with pytest.raises(DataError, match="class 1/40.pmg: no such file, nor an image of this name among those searched; did you mean class 1/40.png"):
        similar("colour", ["class 1/40.pmg"], "features.npz")
    with pytest.raises(SettingError, match="-k must be at least 1, got 0"):
        similar("colour", ["asked.png"], "set", k=0)


# ---- the command and its page --------------------------------------------------------------------
def test_the_command_prints_what_was_found_and_draws_a_page_with_every_picture(work: Path, tmp_path: Path) -> None:
    page = tmp_path / "like.html"
    args = ("neighbours", "colour", "asked.png", "class 0/3.png", "--in", "features.parquet", "-k", "4", "--html", page)
    done = gnothi(*args)
    assert done.code == 0, done.err
    found = said(*args)
    assert json.dumps(found["images"][1]["neighbours"][0]["similarity"])
    for image in found["images"]:
        for near in image["neighbours"]:
            assert f"  {near['similarity']:6.3f}  {near['label']}  {near['name']}" in done.out.splitlines()
    text = page.read_text(encoding="utf-8")
    assert text.count('<img src="data:image/') == 2 + 2 * 4 and not re.search(r'(?:src|href)="(?!data:)', text)
    alike = [near["label"] == found["images"][1]["label"] for near in found["images"][1]["neighbours"]]
    assert (text.count("✓"), text.count("✗")) == (sum(alike), 4 - sum(alike)) and any(alike)  # the picture from outside has no class to agree with
    assert "gnothi neighbours colour asked.png &#39;class 0/3.png&#39; --in features.parquet -k 4 --html" in text


def test_the_page_says_why_it_has_no_pictures_and_escapes_names(work: Path, tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    images[:, 0] = np.arange(3)[:, None, None] * 40
    np.savez(tmp_path / "gone.npz", images=images, labels=[0, 1, 1], classes=["<b>bold</b>", "plain"])
    embed("colour", str(tmp_path / "gone.npz"), tmp_path / "gone.parquet")
    (tmp_path / "gone.npz").rename(tmp_path / "else.npz")
    done = gnothi("neighbours", "colour", "asked.png", "--in", tmp_path / "gone.parquet", "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert done.code == 0 and "Pictures of those searched are not shown: " in text and "gone.npz: no such folder or file" in text
    assert "<b>bold" not in text and "&lt;b&gt;bold&lt;/b&gt;" in text


def test_the_page_shows_no_pictures_of_images_that_changed(tmp_path: Path) -> None:
    images = torch.randint(256, (6, 8, 8, 3), generator=generator(0, "changed"), dtype=torch.uint8).numpy()
    np.savez(tmp_path / "x.npz", images=images)
    embed("colour", str(tmp_path / "x.npz"), tmp_path / "x.parquet")
    assert similar("colour", ["row 1"], str(tmp_path / "x.parquet")).gallery.source is not None
    np.savez(tmp_path / "x.npz", images=images[::-1])
    found = similar("colour", ["row 1"], str(tmp_path / "x.parquet"))
    assert found.gallery.source is None and "x.npz is not as it was when the file of features was made of it" in found.gallery.missing
