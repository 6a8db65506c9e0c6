from __future__ import annotations

import math

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from oracles import plain
from torch import Tensor
from toys import spherical

from gnothi import losses

EXACT = {"rel": 1e-12, "abs": 1e-12}
"""Against loops in float64."""
N, P = 7, 5
A, B = spherical(N, P, 1), spherical(N, P, 2)
SCORES = torch.tanh(spherical(N, 4, 3))
TARGETS = spherical(N, P, 4).softmax(-1)


def contrast(queries: torch.Tensor, keys: torch.Tensor, temperature: float, *, decoupled: bool = False) -> torch.Tensor:
    """Find each query's key among all keys (MoCo v3, arXiv 2104.02057, eq. 1)."""
    return losses.contrast_rows(queries, F.normalize(keys, dim=-1), torch.arange(len(keys)), temperature, decoupled=decoupled).mean()


PAIRS = {
    "nt_xent": lambda a, b: losses.nt_xent(a, b, 0.3),
    "contrast": lambda a, b: contrast(a, b, 0.3),
    "decoupled": lambda a, b: contrast(a, b, 0.3, decoupled=True),
    "negative_cosine": losses.negative_cosine,
    "assignment": lambda a, b: losses.assignment_cross_entropy(a, b.softmax(-1), 0.1),
    "barlow": lambda a, b: losses.barlow(a, b, 0.01),
    "vicreg": lambda a, b: losses.vicreg(a, b, 25, 25, 1),
}
COSINE = ("nt_xent", "contrast", "decoupled", "negative_cosine")


# ---- against loops ------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_contrasts_equal_loops(temperature: float) -> None:
    assert float(losses.nt_xent(A, B, temperature)) == pytest.approx(oracles.nt_xent(plain(A), plain(B), temperature), **EXACT)
    assert float(contrast(A, B, temperature)) == pytest.approx(oracles.info_nce(plain(A), plain(B), temperature), **EXACT)


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_a_decoupled_contrast_sums_over_all_but_the_partner(temperature: float) -> None:
    queries, keys = plain(A), plain(B)
    powers = [[math.exp(oracles.cosine(q, k) / temperature) for k in keys] for q in queries]
    rows = [math.log(math.fsum(p[:i] + p[i + 1 :]) / p[i]) for i, p in enumerate(powers)]
    assert float(contrast(A, B, temperature, decoupled=True)) == pytest.approx(math.fsum(rows) / N, **EXACT)


def test_agreements_equal_loops() -> None:
    assert float(losses.negative_cosine(A, B)) == pytest.approx(oracles.negative_cosine(plain(A), plain(B)), **EXACT)
    ours = float(losses.assignment_cross_entropy(A, TARGETS, 0.1))
    assert ours == pytest.approx(oracles.assignment_cross_entropy(plain(A), plain(TARGETS), 0.1), **EXACT)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_statistics_equal_loops(shift: float) -> None:
    a, b = A + shift, 0.3 * B - shift
    assert float(losses.barlow(a, b, 0.02)) == pytest.approx(oracles.barlow(plain(a), plain(b), 0.02), rel=1e-9)  # the guard of the root is 1e-12
    assert float(losses.vicreg(a, b, 25, 20, 3)) == pytest.approx(oracles.vicreg(plain(a), plain(b), 25, 20, 3), **EXACT)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1), (0.25, 10)])
def test_sinkhorn_equals_a_loop(epsilon: float, iterations: int) -> None:
    expected = torch.tensor(oracles.sinkhorn(plain(SCORES), epsilon, iterations), dtype=torch.float64)
    torch.testing.assert_close(losses.sinkhorn(SCORES, epsilon, iterations), expected, rtol=1e-11, atol=1e-13)


# ---- against lightly ----------------------------------------------------------------------------
def test_nt_xent_equals_lightly() -> None:
    assert float(losses.nt_xent(A, B, 0.2)) == pytest.approx(float(NTXentLoss(temperature=0.2)(A, B)), rel=1e-6)


def test_negative_cosine_equals_lightly() -> None:
    assert float(losses.negative_cosine(A, B)) == pytest.approx(float(NegativeCosineSimilarity()(A, B)), rel=1e-9)


def test_barlow_equals_lightly_up_to_its_epsilon() -> None:
    # lightly's BatchNorm adds 1e-5 to a variance of about 1.
    assert float(losses.barlow(A, B, 0.005)) == pytest.approx(float(BarlowTwinsLoss(lambda_param=0.005)(A, B)), rel=1e-4)


def test_vicreg_equals_lightly() -> None:
    theirs = VICRegLoss(lambda_param=25, mu_param=20, nu_param=3)(A, 0.3 * B)
    assert float(losses.vicreg(A, 0.3 * B, 25, 20, 3)) == pytest.approx(float(theirs), rel=1e-9)


def test_sinkhorn_equals_lightly() -> None:
    torch.testing.assert_close(losses.sinkhorn(SCORES, 0.05, 3), lightly_sinkhorn(SCORES.clone(), 3, 0.05), rtol=1e-9, atol=1e-12)


def test_swapped_assignments_equal_lightly() -> None:
    crops, queue = [torch.tanh(spherical(N, 4, i)) for i in range(4)], [torch.tanh(spherical(9, 4, i)) for i in (8, 9)]
    theirs = SwaVLoss(0.1, 3, 0.05)(crops[:2], crops[2:], queue)
    terms = []
    for g in range(2):
        codes = losses.sinkhorn(torch.cat([crops[g], queue[g]]), 0.05, 3)[:N]
        terms += [losses.assignment_cross_entropy(crops[v], codes, 0.1) for v in range(4) if v != g]
    assert float(torch.stack(terms).mean()) == pytest.approx(float(theirs), rel=1e-9)


def test_sharpened_targets_equal_lightly() -> None:
    theirs = DINOLoss(output_dim=P, teacher_temp=0.04, student_temp=0.1).double()
    theirs.center.fill_(0.0).add_(torch.linspace(-1, 1, P))
    student, teacher = [spherical(N, P, i) for i in range(4)], [spherical(N, P, i) for i in (8, 9)]
    targets = [((t - torch.linspace(-1, 1, P)) / 0.04).softmax(-1) for t in teacher]
    terms = [losses.assignment_cross_entropy(student[v], targets[g], 0.1) for g in range(2) for v in range(4) if v != g]
    assert float(torch.stack(terms).mean()) == pytest.approx(float(theirs(teacher, student)), rel=1e-6)


# ---- closed forms -------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 5, 16])
def test_contrast_of_equal_rows_is_log_of_the_candidates(n: int) -> None:
    row = torch.ones(n, 3, dtype=torch.float64)
    assert float(losses.nt_xent(row, 2 * row, 0.2)) == pytest.approx(math.log(2 * n - 1), **EXACT)
    assert float(contrast(row, 2 * row, 0.2)) == pytest.approx(math.log(n), **EXACT)


def test_contrast_of_orthogonal_pairs_has_a_closed_form() -> None:
    a = torch.eye(4, dtype=torch.float64)
    assert float(losses.nt_xent(a, 3 * a, 0.5)) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 6)), **EXACT)


def test_negative_cosine_is_minus_one_at_agreement_and_one_at_opposition() -> None:
    assert float(losses.negative_cosine(A, 2 * A)) == pytest.approx(-1, **EXACT)
    assert float(losses.negative_cosine(A, -A)) == pytest.approx(1, **EXACT)


def test_uniform_logits_cost_log_k_and_certain_agreement_nothing() -> None:
    assert float(losses.assignment_cross_entropy(torch.full((N, P), 7.0).double(), TARGETS, 0.1)) == pytest.approx(math.log(P), **EXACT)
    certain = torch.eye(P, dtype=torch.float64)
    assert float(losses.assignment_cross_entropy(50 * certain, certain, 0.1)) == pytest.approx(0, abs=1e-12)


def test_barlow_of_a_whitened_batch_is_zero_and_of_shuffled_features_counts_them() -> None:
    z = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)  # uncorrelated, deviation 1
    assert float(losses.barlow(z, 5 * z + 2, 0.1)) == pytest.approx(0, abs=1e-9)
    assert float(losses.barlow(z, z.flip(1), 0.1)) == pytest.approx(2 + 0.1 * 2, rel=1e-9)


def test_vicreg_of_constant_equal_views_is_the_variance_hinge() -> None:
    z = torch.full((N, P), 3.0, dtype=torch.float64)
    assert float(losses.vicreg(z, z, 25, 20, 1)) == pytest.approx(20 * (1 - math.sqrt(1e-4)), **EXACT)


def test_vicreg_of_spread_uncorrelated_equal_views_is_zero() -> None:
    z = 2 * torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert float(losses.vicreg(z, z, 25, 25, 1)) == pytest.approx(0, abs=1e-12)


# ---- Sinkhorn -----------------------------------------------------------------------------------
def test_sinkhorn_rows_sum_to_one_and_columns_approach_equal_shares() -> None:
    scores = torch.tanh(spherical(40, 4))
    apart = []
    for iterations in (1, 3, 30):
        q = losses.sinkhorn(scores, 0.3, iterations)
        torch.testing.assert_close(q.sum(1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-12)
        apart.append(float((q.sum(0) - 10).abs().max()))
    assert apart[0] > apart[1] > apart[2] and apart[2] < 1e-6


def test_sinkhorn_stays_finite_for_huge_scores_and_few_rows() -> None:
    q = losses.sinkhorn(1e4 * spherical(3, 64).float(), 0.05, 3)
    assert torch.isfinite(q).all()
    torch.testing.assert_close(q.sum(1), torch.ones(3))


def test_sinkhorn_of_equal_scores_is_uniform() -> None:
    torch.testing.assert_close(losses.sinkhorn(torch.full((6, 4), 0.3), 0.05, 3), torch.full((6, 4), 0.25))


@given(st.permutations(range(N)), st.permutations(range(4)))
def test_sinkhorn_moves_with_its_rows_and_columns(rows: list[int], columns: list[int]) -> None:
    moved = losses.sinkhorn(SCORES[rows][:, columns], 0.1, 3)
    torch.testing.assert_close(moved, losses.sinkhorn(SCORES, 0.1, 3)[rows][:, columns])


# ---- invariances --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PAIRS)
@given(order=st.permutations(range(N)))
def test_the_order_of_the_batch_changes_nothing(name: str, order: list[int]) -> None:
    assert float(PAIRS[name](A[order], B[order])) == pytest.approx(float(PAIRS[name](A, B)), rel=1e-10)


@pytest.mark.parametrize("name", COSINE)
@given(scale=st.lists(st.floats(0.01, 100), min_size=N, max_size=N))
def test_the_length_of_rows_changes_nothing_where_cosine_is_meant(name: str, scale: list[float]) -> None:
    lengths = torch.tensor(scale, dtype=torch.float64)[:, None]
    assert float(PAIRS[name](A * lengths, B / lengths)) == pytest.approx(float(PAIRS[name](A, B)), rel=1e-10)


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_barlow_ignores_scale_and_shift_of_a_feature(scale: float, shift: float) -> None:
    a = A.clone()
    a[:, 1] = a[:, 1] * scale + shift
    assert float(losses.barlow(a, B, 0.01)) == pytest.approx(float(losses.barlow(A, B, 0.01)), rel=1e-7)


@given(shift=st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(shift: float) -> None:
    moved = losses.assignment_cross_entropy(A + shift, TARGETS, 0.1)
    assert float(moved) == pytest.approx(float(losses.assignment_cross_entropy(A, TARGETS, 0.1)), rel=1e-9)


@pytest.mark.parametrize("name", ["nt_xent", "barlow", "vicreg"])
def test_the_two_views_may_change_places(name: str) -> None:
    assert float(PAIRS[name](A, B)) == pytest.approx(float(PAIRS[name](B, A)), rel=1e-10)


# ---- weights ------------------------------------------------------------------------------------
def weighted(name: str, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    if name == "barlow":
        return losses.barlow(a, b, 0.02, weight)
    return losses.vicreg(a, b, 25, 20, 3, weight)


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
def test_rows_of_weight_zero_do_not_count_in_batch_statistics(name: str) -> None:
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 1], dtype=torch.float64)
    rows = keep.bool()
    expected = keep.mean() * weighted(name, A[rows], B[rows], torch.ones(5, dtype=torch.float64))
    assert float(weighted(name, A, B, keep)) == pytest.approx(float(expected), rel=1e-9)


def test_fractional_weights_of_barlow_equal_a_loop() -> None:
    weight = torch.linspace(0.1, 2, N, dtype=torch.float64)
    expected = oracles.barlow(plain(A), plain(B), 0.02, weight.tolist())
    assert float(losses.barlow(A, B, 0.02, weight)) == pytest.approx(expected, rel=1e-9)


def test_doubled_rows_equal_a_weight_of_two_in_the_biased_statistics() -> None:
    weight = torch.tensor([2.0, 1, 1, 1, 1, 1, 1], dtype=torch.float64)
    twice = losses.barlow(torch.cat([A[:1], A]), torch.cat([B[:1], B]), 0.02)
    assert float(losses.barlow(A, B, 0.02, weight)) == pytest.approx(float(weight.mean() * twice), rel=1e-9)


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
@pytest.mark.parametrize("rows", [0, 1])
def test_no_or_one_row_of_weight_gives_finite_gradients(name: str, rows: int) -> None:
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    weight = torch.zeros(N, dtype=torch.float64)
    weight[:rows] = 1
    value = weighted(name, a, b, weight)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()
    if not rows:
        assert value.item() == 0 and not a.grad.any() and not b.grad.any()


def test_weighted_mean_never_divides_by_the_number_of_valid_rows() -> None:
    rows = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(losses.weighted_mean(rows, torch.tensor([1.0, 0, 0, 1.0]))) == 5 / 4
    assert float(losses.weighted_mean(rows, torch.zeros(4))) == 0


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_equal_finite_differences(name: str) -> None:
    a, b = A[:, :3].clone().requires_grad_(), B[:, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(PAIRS[name], (a, b))
