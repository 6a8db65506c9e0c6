from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from gnothi.contracts import Said, Step
from gnothi.methods import Space

N, M = 6, 9
ROWWISE = tuple(n for n in toys.NAMES if n not in ("barlow", "vicreg"))
STEP = toys.step(7)


def compared(name: str, grad: bool = False) -> tuple[Space, Tensor, Tensor]:
    """A Space, N predictions and M targets as ``targets`` makes them."""
    space = toys.method(name, queue=0).space if name == "swav" else toys.method(name).space
    predictions = toys.spherical(N, {"swav": 9, "dino": 11}.get(name, 8), 5).requires_grad_(grad)
    projection = F.normalize(toys.spherical(M, 8, 6), dim=-1)
    return space, predictions, space.targets([Said(projection, space.head.predict(projection))], STEP).detach()


INDEX = torch.tensor([8, 0, 3, 3, 7, 1])


@pytest.mark.parametrize("name", ROWWISE)
@pytest.mark.parametrize("kept", [[0], [1, 2, 5], [0, 1, 2, 3, 4, 5]])
def test_weights_of_zero_and_one_give_the_loss_of_the_subset_times_the_mean_weight(name: str, kept: list[int]) -> None:
    space, predictions, targets = compared(name)
    weight = torch.zeros(N, dtype=torch.float64)
    weight[kept] = 1
    whole = space.match(predictions, targets, index=INDEX, weight=weight, step=STEP)
    subset = space.match(predictions[kept], targets, index=INDEX[kept], step=STEP)
    assert whole.item() == pytest.approx(weight.mean().item() * subset.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
@pytest.mark.parametrize("kept", [[1, 2, 5], [0, 1, 2, 3, 4, 5]])
def test_weights_choose_the_rows_of_batch_statistics(name: str, kept: list[int]) -> None:
    space, predictions, targets = compared(name)
    weight = torch.zeros(N, dtype=torch.float64)
    weight[kept] = 1
    whole = space.match(predictions, targets, index=INDEX, weight=weight, step=STEP)
    subset = space.match(predictions[kept], targets, index=INDEX[kept], step=STEP)
    assert whole.item() == pytest.approx(weight.mean().item() * subset.item(), rel=1e-9)


@pytest.mark.parametrize("name", toys.NAMES)
def test_weights_of_zero_give_exactly_zero_and_no_nan_in_gradients(name: str) -> None:
    space, predictions, targets = compared(name, grad=True)
    value = space.match(predictions, targets, index=INDEX, weight=torch.zeros(N, dtype=torch.float64), step=STEP)
    value.backward()
    assert value.item() == 0
    assert predictions.grad is not None and not predictions.grad.any()  # NaN counts as true


@pytest.mark.parametrize("name", toys.NAMES)
def test_row_i_is_the_partner_of_row_i_unless_an_index_says_otherwise(name: str) -> None:
    space, predictions, targets = compared(name)
    own = torch.arange(N)
    targets = targets[:N]
    assert torch.equal(space.match(predictions, targets, step=STEP), space.match(predictions, targets, index=own, step=STEP))


@pytest.mark.parametrize("name", toys.NAMES)
def test_ones_as_weights_change_nothing(name: str) -> None:
    space, predictions, targets = compared(name)
    ones = torch.ones(N, dtype=torch.float64)
    a, b = (space.match(predictions, targets, index=INDEX, weight=w, step=STEP) for w in (None, ones))
    assert a.item() == pytest.approx(b.item(), rel=1e-12)


@pytest.mark.parametrize("name", ROWWISE)
def test_a_weighted_match_is_linear_in_its_weights(name: str) -> None:
    space, predictions, targets = compared(name)

    def value(weight: Tensor) -> float:
        return space.match(predictions, targets, index=INDEX, weight=weight, step=STEP).item()

    a, b = torch.linspace(0, 2, N, dtype=torch.float64), torch.linspace(3, 1, N, dtype=torch.float64)
    assert value(2 * a + b) == pytest.approx(2 * value(a) + value(b), rel=1e-10)


def test_targets_of_patches_never_meet_the_memory_of_images() -> None:
    """A second Space of the same method moves its own centre only."""
    method = toys.method("dino")
    patches = method.fresh_space(12).double()
    said = patches.say([toys.spherical(5, 12)])
    patches.settle(patches.keep(said), Step(0, 0, 10))
    assert patches.centre.any() and not method.space.centre.any()
