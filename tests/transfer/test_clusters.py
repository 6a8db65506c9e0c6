from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gnothi.contracts import DataError, SettingError
from gnothi.randomness import generator
from gnothi.transfer import clusters
from gnothi.transfer.clusters import Codebook, Fit, Stability, cluster, lloyd, rule, stability, suggested


def clouds(n: int = 200, k: int = 5, width: int = 6, spread: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around k of the coordinate axes, and around which."""
    g = generator(seed, "clouds")
    truth = torch.arange(n) % k
    return (torch.eye(width)[truth] + spread * torch.randn(n, width, generator=g)).numpy(), truth.numpy()


def noise(n: int, width: int, seed: int = 0) -> np.ndarray:
    return torch.randn(n, width, generator=generator(seed, "noise")).numpy()


def made(centroids: list[list[float]], normalise: bool = False) -> Codebook:
    c = torch.tensor(centroids)
    return Codebook(c, torch.ones(len(c), dtype=torch.int64), Fit(0, len(c), len(c), len(c), 0, 0.0), normalise)


def slow_lloyd(x: np.ndarray, centroids: np.ndarray, iterations: int) -> np.ndarray:
    """Loops over single points in float64; no centroid may lose its points."""
    points, centres = [list(map(float, p)) for p in x], [list(map(float, c)) for c in centroids]
    for _ in range(iterations):
        members: list[list[list[float]]] = [[] for _ in centres]
        for p in points:
            distances = [math.fsum((a - b) ** 2 for a, b in zip(p, c, strict=True)) for c in centres]
            members[distances.index(min(distances))].append(p)
        centres = [[math.fsum(column) / len(m) for column in zip(*m, strict=True)] for m in members]
    return np.array(centres)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


# ---- finding them --------------------------------------------------------------------------------
def test_clouds_apart_are_found_whatever_the_order_of_the_rows() -> None:
    x, truth = clouds()
    order = torch.randperm(len(x), generator=generator(1, "order")).numpy()
    straight, mixed = cluster(x, 5, 0), cluster(x[order], 5, 0)
    assert same_partition(straight.assign(x), truth) and same_partition(mixed.assign(x), truth)
    assert sorted(straight.sizes.tolist()) == [40] * 5 and straight.imbalance == pytest.approx(1) and straight.effective == pytest.approx(5)


def test_the_same_seed_gives_the_same_codebook_and_another_seed_another() -> None:
    x = noise(400, 8)
    a, b, c = cluster(x, 12, 3), cluster(x, 12, 3), cluster(x, 12, 4)
    assert torch.equal(a.centroids, b.centroids) and not torch.equal(a.centroids, c.centroids)


def test_inertia_is_the_mean_squared_distance_and_as_low_as_scikit_learn_s() -> None:
    from sklearn.cluster import KMeans

    x = noise(600, 5)
    found = cluster(x, 15, 0, normalise=False, restarts=5)
    label = found.assign(x)
    by_hand = sum(math.fsum((float(a) - float(b)) ** 2 for a, b in zip(p, found.centroids[c], strict=True)) for p, c in zip(x, label, strict=True))
    assert found.fit.inertia == pytest.approx(by_hand / len(x), rel=1e-5)
    theirs = KMeans(15, n_init=5, random_state=0).fit(x).inertia_ / len(x)
    assert found.fit.inertia < 1.03 * theirs


def test_exact_passes_equal_a_slow_loop_and_scikit_learn_from_the_same_start() -> None:
    from sklearn.cluster import KMeans

    x, start = noise(300, 4), noise(300, 4)[:7]
    parts = torch.from_numpy(x).split(37)
    found, passes = lloyd(lambda: parts, torch.from_numpy(start), 4)
    np.testing.assert_allclose(found.numpy(), slow_lloyd(x, start, 4), rtol=1e-5, atol=1e-6)
    assert passes == 4
    ended, passes = lloyd(lambda: parts, torch.from_numpy(start), 300)
    theirs = KMeans(7, init=start, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(x)
    np.testing.assert_allclose(ended.numpy(), theirs.cluster_centers_, rtol=1e-4, atol=1e-5)
    assert passes < 300


def test_passes_never_raise_the_inertia() -> None:
    x, centroids, values = torch.from_numpy(noise(300, 4)), torch.from_numpy(noise(300, 4)[:9]), []
    for _ in range(6):
        values.append(float(clusters.nearest(x, centroids, 1)[0].sum()))
        centroids, _ = lloyd(lambda: [x], centroids, 1)
    assert all(b <= a for a, b in itertools.pairwise(values))


def test_a_centroid_that_loses_its_points_takes_the_one_farthest_away() -> None:
    x = torch.tensor([[0.0], [0.1], [0.2], [5.0]])
    found, _ = lloyd(lambda: [x], torch.tensor([[0.0], [100.0]]), 1)
    assert found[1].tolist() == [5.0]


def test_every_vector_counts_where_faiss_alone_would_leave_most_out() -> None:
    x = np.concatenate([np.zeros((3000, 1)), np.ones((1000, 1))]).astype(np.float32)
    found = cluster(x, 1, 0, normalise=False)
    assert found.centroids.item() == pytest.approx(0.25, abs=1e-6)
    assert (found.fit.used, found.fit.rows, found.fit.passes) == (4000, 4000, 0)


def test_vectors_on_the_disk_that_do_not_fit_into_memory_are_clustered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, truth = clouds(600)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(clusters, "BLOCK", 50)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = cluster(mapped, 5, 0, memory=100 * 4 * 6 / 2**30)
    assert found.fit.used == 100 and found.fit.passes >= 1 and "100 of them" in found.fit.words()
    assert same_partition(found.assign(mapped), truth)
    monkeypatch.setattr(clusters, "BLOCK", 8192)
    whole = cluster(x, 5, 0)
    assert found.fit.inertia == pytest.approx(whole.fit.inertia, rel=1e-5)


def test_labels_from_the_disk_are_those_from_memory(tmp_path: Path) -> None:
    x = noise(500, 8)
    np.save(tmp_path / "x.npy", x)
    found = cluster(x, 20, 0, pca=5)
    assert np.array_equal(found.assign(np.load(tmp_path / "x.npy", mmap_mode="r")), found.assign(x))


def test_as_many_clusters_as_points_are_the_points() -> None:
    x = noise(12, 3)
    found = cluster(x, 12, 0, normalise=False)
    assert found.k == 12 and found.fit.inertia == pytest.approx(0, abs=1e-9)


def test_clusters_without_a_member_are_dropped_and_said() -> None:
    x = np.array([[0.0, 1.0]] * 3 + [[9.0, 1.0]], dtype=np.float32)
    found = cluster(x, 3, 0, normalise=False)
    assert found.k == 2 and found.fit.asked == 3 and sorted(found.sizes.tolist()) == [1, 3]
    assert set(found.assign(x).tolist()) == {0, 1}


# ---- before and after ----------------------------------------------------------------------------
def test_vectors_are_brought_to_unit_length_unless_told_otherwise() -> None:
    x, _ = clouds()
    scaled = x * (1 + np.arange(len(x), dtype=np.float32))[:, None]
    assert np.array_equal(cluster(x, 5, 0).assign(x), cluster(x, 5, 0).assign(scaled))
    torch.testing.assert_close(cluster(x, 5, 0).prepare(torch.from_numpy(scaled)).norm(dim=1), torch.ones(len(x)))


def test_principal_axes_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    x = (noise(300, 6) * np.array([3, 2, 1.5, 1, 0.5, 0.1], dtype=np.float32)) + 4
    for whiten in (False, True):
        mine = cluster(x, 4, 0, normalise=False, pca=3, whiten=whiten).prepare(torch.from_numpy(x)).numpy()
        theirs = PCA(3, whiten=whiten, svd_solver="full").fit(x.astype(np.float64)).transform(x) * (math.sqrt(300 / 299) if whiten else 1)
        np.testing.assert_allclose(np.abs(mine), np.abs(theirs), rtol=1e-3, atol=2e-3)


def test_shares_are_a_softmax_of_squared_distances() -> None:
    """Distances .4, .8 and .08, by hand."""
    book, x = made([[1, 0], [0, 1], [0.6, 0.8]]), torch.tensor([[0.8, 0.6]])
    index, share = book.soft(x, 0.1, 3)
    assert index.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(share[0], [0.9601, 0.0391, 0.0007], atol=5e-5)
    assert book.soft(x, 0.0, 3)[0].tolist() == [[2]] and book.soft(x, 0.0, 3)[1].tolist() == [[1.0]]
    sharp = book.soft(x, 1e-4, 3)
    assert sharp[0][0, 0] == 2 and sharp[1][0, 0] == pytest.approx(1)


def test_of_centroids_equally_near_the_first_wins() -> None:
    assert made([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]).assign(torch.zeros(2, 2)).tolist() == [0, 0]


@pytest.mark.parametrize(("sizes", "imbalance", "effective"), [((4, 4), 1.0, 2.0), ((6, 2), 1.25, 1.7548), ((8, 0), 2.0, 1.0)])
def test_imbalance_in_closed_form(sizes: tuple[int, int], imbalance: float, effective: float) -> None:
    book = Codebook(torch.zeros(2, 1), torch.tensor(sizes), Fit(0, 8, 8, 2, 0, 0.0))
    assert book.imbalance == pytest.approx(imbalance) and book.effective == pytest.approx(effective, abs=1e-4)


def test_a_codebook_comes_back_from_its_files(tmp_path: Path) -> None:
    x = noise(200, 8)
    for pca in (None, 4):
        book = cluster(x, 10, 0, pca=pca)
        book.save(tmp_path)
        again = Codebook.load(tmp_path)
        assert np.array_equal(book.assign(x), again.assign(x)) and again.fit == book.fit and torch.equal(again.sizes, book.sizes)
    (tmp_path / "codebook.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="not a whole codebook"):
        Codebook.load(tmp_path)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 4), (1000, 10), (5000, 25), (1_281_167, 2000)])
def test_the_rule_scales_with_the_images(n: int, k: int) -> None:
    assert rule(n) == k


# ---- mistakes ------------------------------------------------------------------------------------
def test_what_cannot_be_clustered_is_refused_in_a_line() -> None:
    x = noise(20, 4)
    with pytest.raises(SettingError, match="k must lie between 1 and the number of images, 20, got 21"):
        cluster(x, 21, 0)
    with pytest.raises(SettingError, match="pca must lie between 1 and"):
        cluster(x, 2, 0, pca=5)
    with pytest.raises(SettingError, match="whiten"):
        cluster(x, 2, 0, whiten=True)
    broken = x.copy()
    broken[13, 2] = np.nan
    with pytest.raises(DataError, match="row 13 are not finite"):
        cluster(broken, 2, 0)
    with pytest.raises(DataError, match="vectors of 4 numbers, these have 3"):
        cluster(x, 2, 0).assign(x[:, :3])


# ---- choosing k ----------------------------------------------------------------------------------
def test_seeds_agree_on_as_many_clusters_as_there_are_and_less_on_more() -> None:
    x, _ = clouds(500)
    found = stability(x, (5, 40), 0, restarts=5)
    assert found[0].agreement == pytest.approx(1) and found[0].effective == pytest.approx(1, abs=0.01)
    assert found[1].agreement < 0.9 and suggested(found) == 5


def test_the_largest_k_before_agreement_falls_is_suggested() -> None:
    numbers = [(10, 0.8), (20, 0.85), (40, 0.78), (80, 0.6), (160, 0.9)]
    assert suggested([Stability(k, a, 1.0, 1.0) for k, a in numbers]) == 40
