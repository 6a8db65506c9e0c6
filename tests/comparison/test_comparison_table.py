"""The numbers of a comparison, held to SciPy's paired test, to a plain bootstrap, to loops and to Newcombe's interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from gnothi.comparison import table
from gnothi.contracts import RunError
from gnothi.evaluate import paired, wilson
from gnothi.randomness import generator

N = 203


def answers(seeds: int, arms: tuple[str, ...] = ("a", "b"), n: int = N) -> dict[tuple[str, int], np.ndarray]:
    """Answers that share how hard an image is and how good a seed is."""
    g = generator(0, "answers")
    hard, found = torch.randn(n, generator=g, dtype=torch.float64), {}
    for seed in range(seeds):
        luck = float(torch.randn((), generator=g, dtype=torch.float64)) / 5
        for i, arm in enumerate(arms):
            found[arm, seed] = (hard + torch.randn(n, generator=g, dtype=torch.float64) < 0.3 + 0.2 * i + luck).numpy()
    return found


def record(found: dict[tuple[str, int], np.ndarray], **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    names = list(dict.fromkeys(arm for arm, _ in found))
    arms = [{"arm": name, "epochs": 2.0, "steps": 8, "planned_seconds": 2.0} for name in names]
    runs = []
    for (arm, seed), correct in found.items():
        low, high = wilson(int(correct.sum()), len(correct))
        own = {"arm": arm, "seed": seed, "value": float(correct.mean()), "low": low, "high": high, "n": len(correct), "correct": table.pack(correct)}
        runs.append({**own, "seconds": 3.0 + seed, "verdict": "healthy", **more})
    return arms, runs


@pytest.mark.parametrize("n", [1, 7, 8, 9, 203])
def test_answers_survive_packing(n: int) -> None:
    correct = answers(1, n=n)["a", 0]
    assert np.array_equal(table.unpack(table.pack(correct), n), correct)
    assert len(table.pack(correct)) == 2 * -(-n // 8)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_over_seeds_a_difference_is_the_paired_t_interval_of_scipy(seeds: int) -> None:
    found = answers(seeds)
    ours = table.rows(*record(found))[1]["difference"]
    a, b = ([found[arm, s].mean() for s in range(seeds)] for arm in ("a", "b"))
    theirs = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert ours["value"] == pytest.approx(np.mean(b) - np.mean(a))
    assert ours["over_seeds"] == pytest.approx([theirs.low, theirs.high])


def test_over_seeds_a_value_is_the_t_interval_of_scipy() -> None:
    found = answers(4)
    row = table.rows(*record(found))[0]
    values = [found["a", s].mean() for s in range(4)]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert row["value"] == pytest.approx(np.mean(values)) and row["over_seeds"] == pytest.approx([low, high])


def test_over_images_a_difference_is_that_of_a_plain_bootstrap() -> None:
    found = answers(3)
    ours = table.rows(*record(found))[1]["difference"]["over_images"]
    draws = torch.randint(N, (20_000, N), generator=generator(0, "bootstrap")).numpy()
    each = sum(found["b", s].astype(float) - found["a", s] for s in range(3)) / 3  # [N]
    low, high = np.quantile(each[draws].mean(1), [0.025, 0.975])
    assert ours == pytest.approx([low, high], abs=0.002)
    assert high - low > 0.05  # the tolerance is small beside what is measured


def test_over_images_a_value_equals_a_loop() -> None:
    found = answers(3)
    row = table.rows(*record(found))[0]
    each = [sum(bool(found["a", s][i]) for s in range(3)) / 3 for i in range(N)]
    mean = sum(each) / N
    half = 1.959963984540054 * (sum((v - mean) ** 2 for v in each) / (N - 1)) ** 0.5 / N**0.5
    assert row["over_images"] == pytest.approx([mean - half, mean + half])


def test_one_seed_has_wilson_s_and_newcombe_s_intervals() -> None:
    found = answers(1)
    a, b = table.rows(*record(found))
    assert a["over_seeds"] is None and a["over_images"] == pytest.approx(wilson(int(found["a", 0].sum()), N))
    newcombe = paired(found["b", 0], found["a", 0])
    assert b["difference"] == {
        "against": "a",
        "seeds": [0],
        "value": pytest.approx(newcombe.value),
        "over_seeds": None,
        "over_images": [newcombe.low, newcombe.high],
    }


def test_differences_pair_runs_of_the_same_seed_whatever_their_order() -> None:
    arms, runs = record(answers(3))
    turned = table.rows(arms, runs[::-1])
    assert turned[1]["difference"]["over_seeds"] == pytest.approx(table.rows(arms, runs)[1]["difference"]["over_seeds"])
    swapped = [{**r, "seed": 2 - r["seed"]} if r["arm"] == "b" else r for r in runs]
    assert table.rows(arms, swapped)[1]["difference"]["over_seeds"] != pytest.approx(table.rows(arms, runs)[1]["difference"]["over_seeds"], abs=1e-3)


def test_a_difference_uses_the_seeds_that_both_arms_have() -> None:
    found = answers(3)
    del found["b", 1]
    row = table.rows(*record(found))[1]
    assert row["seeds"] == [0, 2] and row["difference"]["seeds"] == [0, 2]
    assert row["difference"]["value"] == pytest.approx(np.mean([found["b", s].mean() - found["a", s].mean() for s in (0, 2)]))


def test_a_run_that_had_to_stop_is_counted_and_nothing_else() -> None:
    arms, runs = record(answers(2))
    failed = {"arm": "b", "seed": 1, "run": "b-seed1", "failed": "became nan"}
    row = table.rows(arms, [*runs[:-1], failed])[1]
    assert row["verdicts"] == {"healthy": 1, "failed": 1} and row["seeds"] == [0]
    gone = table.rows(arms, [r for r in runs if r["arm"] == "a"] + [{**failed, "seed": s} for s in range(2)])[1]
    assert gone["value"] is None and gone["difference"] is None
    assert "1 healthy, 1 failed" in table.text([row], "knn", []) and "failed" in table.text([gone], "knn", [])


def test_time_is_the_mean_and_its_part_off_the_plan() -> None:
    row = table.rows(*record(answers(2)))[0]
    assert (row["seconds"], row["planned_seconds"], row["off_seconds"]) == (3.5, 2.0, pytest.approx(0.75))


def test_runs_asked_about_other_images_are_not_compared() -> None:
    with pytest.raises(RunError, match="asked about 100 and 203 test images"):
        table.rows(*record({**answers(1, ("a",)), **answers(1, ("b",), n=100)}, seconds=1.0))


def test_the_text_has_a_row_an_arm_and_a_line_a_protocol() -> None:
    rows = table.rows(*record(answers(2)))
    lines = table.text(rows, "knn", table.protocol(2)).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["arm", "a", "b"] and lines[4:] == table.protocol(2)
    d = rows[1]["difference"]
    assert f"{d['value']:+.3f}" in lines[2] and f"{d['over_seeds'][0]:+.3f} to {d['over_seeds'][1]:+.3f}" in lines[2]
