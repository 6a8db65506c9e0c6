from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from gnothi.auxiliary import jigsaw
from gnothi.auxiliary.permutations import GROUPS, closure, distances, greedy, listed, permutations
from gnothi.contracts import SettingError

RULES = ("max_min", "max_avg")


def plain(rows: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in rows.tolist()]


def hamming(p: tuple[int, ...], q: tuple[int, ...]) -> int:
    return sum(a != b for a, b in zip(p, q, strict=True))


def by_definition(rows: list[tuple[int, ...]]) -> tuple[int, float]:
    pairs = [hamming(p, q) for p, q in itertools.combinations(rows, 2)]
    return min(pairs), math.fsum(pairs) / len(pairs)


def slowly(tiles: int, count: int, rule: str) -> list[tuple[int, ...]]:
    """Algorithm 1, everything anew at every step."""
    left = list(itertools.permutations(range(tiles)))
    chosen = [left.pop(0)]
    while len(chosen) < count:
        scores = [(min if rule == "max_min" else sum)(hamming(p, q) for q in chosen) for p in left]
        chosen.append(left.pop(scores.index(max(scores))))
    return chosen


def words(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, word)) for word in text.split()]


@pytest.mark.parametrize(("tiles", "count"), [(2, 2), (3, 4), (4, 8), (4, 24), (5, 40), (9, 30)])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_set_holds_different_permutations_as_far_apart_as_it_says(tiles, count, rule, seed):
    rows = permutations(tiles, count, 2, seed, rule)
    assert rows.shape == (count, tiles) and rows.dtype == torch.int64
    assert (rows.sort(1).values == torch.arange(tiles)).all() and len(set(plain(rows))) == count
    assert distances(rows) == pytest.approx(by_definition(plain(rows)))
    least, mean = distances(rows)
    assert least >= 2 and mean <= count * (tiles - 1) / (count - 1) + 1e-9


@pytest.mark.parametrize(
    ("tiles", "rule", "expected"),
    [
        (3, "max_min", "012 120 201 021 102 210"),
        (3, "max_avg", "012 120 201 021 102 210"),
        (4, "max_min", "0123 1032 2301 3210 0231 0312 1203 1320"),
        (4, "max_avg", "0123 1032 2301 3210 0132 1023 2310 3201"),
    ],
)
def test_the_greedy_choice_from_the_identity_is_known(tiles, rule, expected):
    columns = listed(tiles)
    assert [tuple(columns[:, i]) for i in greedy(columns, len(words(expected)), rule)[0]] == words(expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("tiles", "count"), [(4, 24), (5, 50)])
def test_the_greedy_choice_equals_one_that_computes_everything_anew(tiles, count, rule):
    columns = listed(tiles)
    picks, nearest = greedy(columns, count, rule)
    chosen = slowly(tiles, count, rule)
    assert [tuple(columns[:, i]) for i in picks] == chosen
    assert nearest[1:] == [by_definition(chosen[: n + 1])[0] for n in range(1, count)]


@pytest.mark.parametrize(("count", "least", "mean"), [(9, 9, 9.0), (10, 8, 8.8), (30, 7, 7.993), (72, 7, 8.0), (100, 6, 8.027)])
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_of_nine_tiles_are_known_whatever_the_seed(count, least, mean, seed):
    assert distances(permutations(9, count, 2, seed)) == (least, pytest.approx(mean, abs=5e-4))


@pytest.mark.parametrize(("count", "mean"), [(9, 9.0), (10, 8.8), (30, 8.255), (100, 8.080)])
def test_the_rule_of_the_mean_lets_twins_in(count, mean):
    assert distances(permutations(9, count, 2, 0, "max_avg")) == (9 if count == 9 else 2, pytest.approx(mean, abs=5e-4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "count", "least", "mean"),
    [("max_min", 701, 5, 7.879), ("max_min", 1000, 5, 7.910), ("max_avg", 701, 2, 8.011), ("max_avg", 1000, 2, 8.008)],
)
def test_distances_of_large_sets_are_known(rule, count, least, mean):
    assert distances(permutations(9, count, 2, 0, rule)) == (least, pytest.approx(mean, abs=5e-4))


def test_distances_to_the_identity_are_those_of_rencontres():
    columns = listed(9)
    counts = torch.bincount(torch.from_numpy((columns.T != range(9)).sum(1)), minlength=10).tolist()
    assert counts == [1, 0, 36, 168, 1134, 5544, 22260, 66744, 133497, 133496]
    assert sum(d * n for d, n in enumerate(counts)) / (math.factorial(9) - 1) == pytest.approx(8.000022, abs=5e-7)


@pytest.mark.parametrize(("distance", "order"), [(8, 72), (7, 504), (6, 1512)])
def test_groups_are_closed_and_keep_their_distance(distance, order):
    rows = plain(torch.from_numpy(closure(GROUPS[distance]).T.copy()).long())
    assert len(rows) == order and tuple(range(9)) in rows
    assert min(hamming(p, tuple(range(9))) for p in rows if p != tuple(range(9))) == distance  # of a group: of any two
    known = set(rows)
    assert all(tuple(p[i] for i in q) in known for p in rows[::37] for q in rows[::41])


@pytest.mark.parametrize(("count", "distance"), [(72, 8), (504, 7), (400, 6)])
def test_a_distance_that_the_greedy_choice_misses_is_kept_by_a_group(count, distance):
    assert distances(permutations(9, count, distance, 3))[0] >= distance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 4, 3), r"4 permutations of 3 tiles cannot all differ in 3 places: no more than 3 can; auxiliary\.jigsaw\.min_distance=2 works for 4"),
        ((4, 13, 3), "no more than 12 can"),
        ((9, 505, 7), "no more than 504 can"),
        ((9, 73, 8), "no more than 72 can"),
        ((9, 20, 10), "no more than 0 can"),
        ((9, 1600, 6), "the largest set known here holds 1512"),
        ((3, 7, 2), r"auxiliary\.jigsaw\.permutations must lie between 1 and 6 for 3 tiles, got 7"),
        ((16, 10, 2), "2 to 9 tiles, got 16"),
    ],
)
def test_sets_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        permutations(*arguments, 0)


def test_the_seed_chooses_the_first_permutation_and_the_identity_stays_away_where_asked():
    assert torch.equal(jigsaw.permutations(4, 5, 3, 0), permutations(4, 5, 3, 0))
    firsts = {plain(permutations(4, 12, 3, seed))[0] for seed in range(200)}
    assert len(firsts) == 24
    assert not any((0, 1, 2, 3) in plain(permutations(4, 12, 3, seed, identity=False)) for seed in range(20))
    assert any((0, 1, 2, 3) in plain(permutations(4, 12, 3, seed)) for seed in range(20))
    with pytest.raises(SettingError, match="between 1 and 23 for 4 tiles, got 24"):
        permutations(4, 24, 2, 0, identity=False)
