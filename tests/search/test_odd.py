"""Near duplicates and outliers by an encoder, against float64 loops over all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from terminal import gnothi, said

from gnothi.contracts import DataError, SettingError, Source
from gnothi.data import ArraySource
from gnothi.encoders import load
from gnothi.randomness import generator
from gnothi.search import odd
from gnothi.search.odd import groups, near_by_rule

N = 120


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path))


def images(n: int = N, seed: int = 0) -> torch.Tensor:
    """Noise about one picture, of which 3 and 50 are nearly 7, 80 equals 81, and 100 is unlike all."""
    base = torch.randint(256, (3, 8, 8), generator=generator(0, "base")).float()
    all_ = base + 40 * torch.randn(n, 3, 8, 8, generator=generator(seed, "odd"))
    if n == N:
        for copy in (3, 50):
            all_[copy] = all_[7] + torch.randn(3, 8, 8, generator=generator(copy, "copy"))
        all_[80], all_[100] = all_[81], 255 - base
    return all_.clamp(0, 255).byte()


def slow(vectors: np.ndarray) -> np.ndarray:
    """All cosines in float64, a row's own left out by -inf."""
    x = vectors.astype(np.float64)
    x /= np.sqrt((x**2).sum(1, keepdims=True))
    cosines = np.array([[float(a @ b) for b in x] for a in x])
    np.fill_diagonal(cosines, -np.inf)
    return cosines


def components(joined: np.ndarray) -> list[list[int]]:
    """Rows that hang together, by walking."""
    left, found = set(range(len(joined))), []
    while left:
        group, ahead = set[int](), [min(left)]
        while ahead:
            row = ahead.pop()
            if row not in group:
                group.add(row)
                ahead += np.flatnonzero(joined[row]).tolist()
        left -= group
        found += [sorted(group)] if len(group) > 1 else []
    return found


def test_it_is_the_slow_loop() -> None:
    source = ArraySource(images())
    found = odd("pixels", source)
    cosines = slow(load("pixels").embed_source(source))
    threshold = 1 - 0.1 * (1 - np.median(cosines.max(1)))
    assert found.near_cosine == pytest.approx(threshold, abs=1e-6)
    expected = components(cosines >= threshold)
    assert found.near == [[source.name(i) for i in group] for group in expected] and expected == [[3, 7, 50], [80, 81]]
    mean = np.sort(cosines, axis=1)[:, -10:].mean(1)
    low, high = np.quantile(mean, [0.25, 0.75])
    lonely = [i for i in np.argsort(mean) if mean[i] < low - 1.5 * (high - low)]
    assert [name for name, _ in found.outliers] == [source.name(i) for i in lonely] and lonely[0] == 100
    assert [value for _, value in found.outliers] == pytest.approx(mean[lonely], abs=1e-6)


def test_blocks_of_a_little_memory_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = odd("pixels", ArraySource(images()))
    monkeypatch.setattr("gnothi.evaluate.nearest.WIDEST", 16)
    small = odd("pixels", ArraySource(images()), memory=4096)
    assert small.near == whole.near and [n for n, _ in small.outliers] == [n for n, _ in whole.outliers]


def test_a_threshold_of_one_s_own_replaces_the_rule() -> None:
    source = ArraySource(images())
    found = odd("pixels", source, near=0.995)
    cosines = slow(load("pixels").embed_source(source))
    assert found.near == [[source.name(i) for i in group] for group in components(cosines >= 0.995)] and found.near_cosine == 0.995
    with pytest.raises(SettingError, match="--near must be a cosine from -1 to 1, got 95.0"):
        odd("pixels", source, near=95.0)


def test_equal_images_are_near_duplicates_even_where_most_are() -> None:
    many = images(40)
    many[10:] = many[10]
    found = odd("pixels", ArraySource(many))
    assert found.near == [[f"row {i}" for i in range(10, 40)]]
    assert near_by_rule(np.ones(5)) == 1 - 1e-6


def test_test_images_that_are_near_a_training_image_are_named_with_the_nearest() -> None:
    train, test = images(), images(30, seed=1)
    test[4], test[9] = train[81], train[7]
    found = odd("pixels", ArraySource(train), ArraySource(test))
    assert found.shared == [["train: row 80", "test: row 4"], ["train: row 7", "test: row 9"]]


def test_groups_are_joined_through_neighbours_of_neighbours() -> None:
    rows = np.array([[1], [2], [1], [0], [3]])
    cosines = np.array([[0.9], [0.95], [0.95], [0.2], [0.9]])
    assert groups(rows, cosines, 0.9) == [[0, 1, 2], [3, 4]]
    assert groups(rows, cosines, 0.99) == []


class Broken(Source):
    """Some rows cannot be read."""

    def __init__(self, whole: Source) -> None:
        self.whole, self.channels, self.dtype = whole, whole.channels, whole.dtype

    def __len__(self) -> int:
        return len(self.whole)

    def image(self, row: int, shrink: int = 1) -> torch.Tensor:
        if row in (2, 5):
            raise DataError("broken")
        return self.whole.image(row)

    def fingerprint(self) -> str:
        return "broken-" + self.whole.fingerprint()


def test_images_that_cannot_be_read_are_left_out() -> None:
    many = images(30)
    many[2] = many[6]
    found = odd("pixels", Broken(ArraySource(many)))
    assert found.near == [] and "row 5" not in dict(found.outliers)
    with pytest.raises(DataError, match="need at least three images that can be read, got 2"):
        odd("pixels", ArraySource(many[:2]))


def test_the_command_adds_what_an_encoder_finds(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=images().permute(0, 2, 3, 1).numpy())
    found = said("data", tmp_path / "x.npz", "--encoder", "pixels")["odd"]
    assert found["near"] == [["row 3", "row 7", "row 50"], ["row 80", "row 81"]]
    text = gnothi("data", tmp_path / "x.npz", "--encoder", "pixels").out
    assert "  row 3 = row 7 = row 50\n" in text and f"outliers by pixels (mean cosine to the 10 nearest below {found['fence']:.3f})" in text
    assert f"  {found['outliers'][0][1]:6.3f}  row 100\n" in text
    assert gnothi("data", tmp_path / "x.npz", "--near", "0.9").err == "gnothi: --near means nothing without --encoder\n"
