"""Ideas of the study of ensembles beside slow loops and what must hold for each: codes of asked images stand alone, and say something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.ensemble import fit
from gnothi.evaluate import knn
from gnothi.randomness import generator


@pytest.fixture
def tried() -> Any:
    from experiments import tried

    return tried


@pytest.fixture
def members() -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Two members that bend five classes apart, of 200 images that train and 60 that ask, and their classes."""
    labels = torch.arange(260) % 5
    hidden = torch.eye(5)[labels] * 2 + torch.randn(260, 5, generator=generator(0, "hidden"))
    bent = [torch.relu(hidden @ torch.randn(5, d, generator=generator(1, "bend", d)) + 0.5) for d in (12, 8)]
    return [x[:200] for x in bent], [x[200:] for x in bent], labels[:200], labels[200:]


@pytest.fixture
def all_ideas(tried: Any) -> dict[str, Any]:
    narrow = {"pca 0 of width 64": tried.spectral(0.0, 6), "near 5 neighbours": tried.neighbours(5), "discriminant": tried.discriminant(5)}
    return {**narrow, "side by side": tried.side_by_side, "pairs": tried.pairs, "contrast": tried.contrast, "descent": tried.descent}


def test_codes_find_classes_and_an_asked_image_stands_alone(all_ideas: dict[str, Any], members: Any) -> None:
    train, asked, labels, expected = members
    for name, idea in all_ideas.items():
        x, y = idea(train, asked, 0)
        _, alone = idea(train, [m[7:8] for m in asked], 0)
        assert len(x) == 200 and len(y) == 60 and torch.isfinite(x).all()
        torch.testing.assert_close(alone[0], y[7], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
        assert knn(x, labels.numpy(), y, expected.numpy(), 20, 0.1).value > 0.6, name
        again, _ = idea(train, asked, 0)
        assert torch.equal(again, x), name


def test_neighbours_pull_as_a_loop_says(tried: Any, members: Any) -> None:
    train, asked, _, _ = members
    made = fit(train, "pca", power=0.25)
    first, query = (F.normalize(made.transform(part).double(), dim=1).numpy() for part in (train, asked))

    def pull(code: np.ndarray, own: np.ndarray, bank: np.ndarray, itself: int | None) -> np.ndarray:
        cosines = [(float(code @ other), i) for i, other in enumerate(bank) if i != itself]
        best = sorted(cosines, reverse=True)[:4]
        weights = np.exp([value / 0.1 for value, _ in best])
        mean = sum(w * bank[i] for w, (_, i) in zip(weights / weights.sum(), best, strict=True))
        found = (own + mean) / 2
        return found / np.linalg.norm(found)

    bank, codes = first, query
    for _ in range(3):
        bank = np.stack([pull(bank[i], first[i], bank, i) for i in range(len(bank))])
    for _ in range(3):
        codes = np.stack([pull(c, q, bank, None) for c, q in zip(codes, query, strict=True)])
    x, y = tried.neighbours(4)(train, asked, 0)
    np.testing.assert_allclose(x.numpy(), bank, atol=1e-4)
    np.testing.assert_allclose(y.numpy(), codes, atol=1e-4)


def test_a_discriminant_is_white_over_all_images_and_keeps_what_neighbours_share(tried: Any, members: Any) -> None:
    """Variance one in every direction; of those between neighbours, which a loop counts, least in the first."""
    train, asked, _, _ = members
    x, _ = tried.discriminant(5, ridge=1e-6)(train, asked, 0)
    near = F.normalize(fit(train, "pca", power=0.25).transform(train), dim=1)
    np.testing.assert_allclose(torch.cov(x.T, correction=0).numpy(), np.eye(x.shape[1]), atol=0.02)
    apart = np.zeros(x.shape[1])
    for i in range(len(x)):
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -float(near[i] @ near[j]))[:5]
        apart += sum((x[i] - x[j]).numpy() ** 2 for j in others)
    assert (np.diff(apart) > -1e-3 * apart.max()).all() and apart[-1] > 2 * apart[0]


def test_pairs_come_nearer_to_the_mean_of_cosines(tried: Any, members: Any) -> None:
    train, asked, _, _ = members
    told, other = (t.double() for t in tried.side_by_side(train, asked, 0))
    start = [F.normalize(c.double(), dim=1) for c in tried.spectral(0.25)(train, asked, 0)]
    ended = [F.normalize(c.double(), dim=1) for c in tried.pairs(train, asked, 0, anchors=200)]
    missed = [[float((a @ c[0].T - b @ told.T / 2).square().mean()) for a, b in zip(c, (told, other), strict=True)] for c in (start, ended)]
    assert missed[1][0] < 0.6 * missed[0][0] and missed[1][1] < 0.8 * missed[0][1]


def test_views_are_averaged_member_by_member(tried: Any, members: Any) -> None:
    train, asked, _, _ = members
    both = [*train, *(m.flip(0) for m in train)], [*asked, *asked]
    x, _ = tried.averaged(lambda a, b, seed: (torch.cat(list(a), dim=1), torch.cat(list(b), dim=1)))(*both, 0)
    by_hand = [F.normalize(m, dim=1) + F.normalize(m.flip(0), dim=1) for m in train]
    torch.testing.assert_close(x, torch.cat(by_hand, dim=1))


def test_mirrored_images_keep_their_labels(tmp_path: Path) -> None:
    from experiments.packed import write_mirrored

    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.array([1, 0]), test_images=images[:1], test_labels=np.array([2]))
    write_mirrored(tmp_path / "a.npz", tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as found:
        assert found["train_images"][1, 2, 0].tolist() == images[1, 2, 3].tolist() and found["train_labels"].tolist() == [1, 0]
        assert found["test_images"].shape == (1, 3, 4, 3) and set(found) == {"train_images", "train_labels", "test_images", "test_labels"}
