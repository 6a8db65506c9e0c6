from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import gnothi
from gnothi.encoders import bow_sift
from gnothi.randomness import generator


def images(n: int = 6, channels: int = 3, size: int = 40) -> torch.Tensor:
    return torch.randint(256, (n, channels, size, size), generator=generator(0, "images"), dtype=torch.uint8)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A vocabulary of few words, of images of one's own."""
    for name, value in {"WORDS": 12, "IMAGES": 8, "DESCRIPTORS": 2000}.items():
        monkeypatch.setattr(bow_sift, name, value)
    monkeypatch.setattr(bow_sift.BowSift, "dim", 60)
    np.savez(tmp_path / "x.npz", images=images(8).numpy())
    return f"bow-sift:{tmp_path / 'x.npz'}"


def test_descriptors_are_roots_of_opencv_s_at_each_point_and_size() -> None:
    import cv2

    grey = images(1, 1, bow_sift.SIDE)[0, 0].numpy()
    found = bow_sift.rootsift(grey)
    sift, row = cv2.SIFT_create(), 3 * (5 * 16 + 7) + 1  # the sixth row of points, the eighth in it, the middle size
    alone = sift.compute(grey, [cv2.KeyPoint(7 * 8 + 4.0, 5 * 8 + 4.0, 24 / 6, 0.0)])[1][0].astype(np.float64)
    np.testing.assert_allclose(found[row], np.sqrt(alone / alone.sum()), rtol=1e-5, atol=1e-6)
    assert len(found) == 16 * 16 * 3


def test_words_are_counted_in_the_whole_and_in_each_quarter(small: str) -> None:
    encoder = gnothi.load(small)
    picture = images(1)
    grey = encoder.prepare(picture)
    words, found = encoder.vocabulary, bow_sift.rootsift(grey[0].numpy())
    counts = np.zeros((5, 12))
    for i, x in enumerate(found):
        if not float(x.abs().sum()):
            continue
        word = min(range(12), key=lambda w: math.fsum((float(a) - float(b)) ** 2 for a, b in zip(x, words[w], strict=True)))
        point = i // 3
        counts[0, word] += 1
        counts[1 + 2 * (point // 16 >= 8) + (point % 16 >= 8), word] += 1
    expected = np.sqrt(counts / counts.sum(1, keepdims=True)).ravel()
    np.testing.assert_allclose(encoder.embed(picture)[0], expected / np.linalg.norm(expected), atol=2e-3)


def test_it_is_the_same_every_time_and_another_vocabulary_is_another_encoder(small: str, tmp_path: Path) -> None:
    a, b, x = gnothi.load(small), gnothi.load(small), images(3)
    assert torch.equal(a.embed(x), b.embed(x)) and a.fingerprint == b.fingerprint
    np.savez(tmp_path / "y.npz", images=images(9).numpy())
    assert gnothi.load(f"bow-sift:{tmp_path / 'y.npz'}").fingerprint != a.fingerprint


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_is_their_mean(small: str, channels: int) -> None:
    encoder, one = gnothi.load(small), images(2, 1)
    vectors = encoder.embed(one.repeat(1, channels, 1, 1))
    torch.testing.assert_close(vectors, encoder.embed(one))
    assert vectors.shape == (2, encoder.dim)


def test_a_blank_image_has_no_words(small: str) -> None:
    assert not gnothi.load(small).embed(torch.full((1, 3, 40, 40), 7, dtype=torch.uint8)).any()
