import numpy as np
import pytest
import torch

from gnothi.randomness import generator
from gnothi.report import maps, neighbours


def some(n, d, *numbers):
    return torch.randn(n, d, generator=generator(0, "report test", *numbers), dtype=torch.float64).numpy()


@pytest.mark.parametrize("block", [1, 3, 100])
def test_nearest_equals_brute_force(block):
    queries, gallery = some(7, 5, 1), some(40, 5, 2)
    rows, cosines = neighbours.nearest(queries, gallery, 6, block)
    for q, query in enumerate(queries):
        by_hand = [float(query @ g / np.linalg.norm(query) / np.linalg.norm(g)) for g in gallery]
        best = sorted(range(40), key=lambda i: -by_hand[i])[:6]
        assert rows[q].tolist() == best
        np.testing.assert_allclose(cosines[q], [by_hand[i] for i in best], atol=1e-6)


def test_equal_neighbours_come_in_order_and_k_is_bounded():
    rows, cosines = neighbours.nearest(np.ones((1, 3)), np.ones((4, 3)), 9)
    assert rows.tolist() == [[0, 1, 2, 3]]
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_a_query_of_every_class_comes_before_a_second_of_any():
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert neighbours.typical(labels, 4, np.array([1, 0, 4, 2, 3, 5])).tolist() == [1, 4, 3, 0]
    assert neighbours.typical(None, 2, np.array([1, 0, 4])).tolist() == [1, 0]


def test_the_worst_queries_have_the_fewest_and_the_closest_wrong_neighbours():
    labels = np.array([0, 1, 2, 3, 3])
    found = np.array([[0, 0], [0, 0], [2, 0], [1, 1], [1, 1]])
    cosines = np.array([[0.9, 0.9], [0.5, 0.4], [0.9, 0.9], [0.8, 0.8], [0.9, 0.8]])
    assert neighbours.worst(labels, found, cosines, 9).tolist() == [4, 1, 2, 3]  # 0 is right; 3 shares its class with 4
    assert neighbours.worst(labels, found, cosines, 2).tolist() == [4, 1]


def test_the_lonely_are_far_from_their_nearest():
    assert neighbours.lonely(np.array([[0.9, 0.1], [0.2, 0.1], [0.5, 0.5]]), 2).tolist() == [1, 2]


def test_principal_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    features = some(30, 8)
    theirs = PCA(4, svd_solver="full").fit_transform(features)
    ours = maps.components(features, 4)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)


@pytest.fixture(scope="module")
def clumps():
    """Three clumps of 30 and which clump a row is in."""
    centres, number = some(3, 10, 7) * 8, np.arange(90) % 3
    return centres[number] + some(90, 10, 8), number


def test_the_map_repeats_itself_and_keeps_clumps_together(clumps):
    features, number = clumps
    places = maps.layout(features, seed=3)
    np.testing.assert_array_equal(places, maps.layout(features, seed=3))
    middles = np.stack([places[number == c].mean(0) for c in range(3)])
    nearest = ((places[:, None] - middles) ** 2).sum(2).argmin(1)
    assert (nearest == number).mean() == 1


def test_clusters_find_clumps_the_largest_first(clumps):
    features, number = clumps
    found = maps.clusters(np.concatenate([features, features[number == 2]]), 3)
    assert len({(a, b) for a, b in zip(number, found[:90], strict=True)}) == 3
    assert set(found[:90][number == 2]) == {0}


def test_kept_is_one_for_a_map_that_is_the_embedding_and_small_for_noise():
    angles = np.cumsum(0.01 + 0.05 * np.abs(some(60, 1)[:, 0]))
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)  # on a circle, cosine and distance agree
    assert maps.kept(circle, circle, k=5) == 1
    assert maps.kept(circle, some(60, 2), k=5) < 0.3


@pytest.mark.parametrize("n", [3, 5, 12, 20])
def test_few_images_still_have_a_finite_map(n):
    assert np.isfinite(maps.layout(some(n, 6))).all()
    assert maps.layout(some(n, 1)).shape == (n, 2)


def test_a_collapsed_embedding_is_flat_and_a_narrow_one_is_not():
    assert maps.flat(np.ones((20, 4)) + 1e-7 * some(20, 4))
    assert not maps.flat(np.ones((20, 4)) + 0.01 * some(20, 4))
