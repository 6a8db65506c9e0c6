from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from gnothi.auxiliary import AuxiliarySpec
from gnothi.contracts import Want
from gnothi.training.objective import Objective


def objective(spec: AuxiliarySpec | None, name: str = "byol") -> Objective:
    method = toys.method(name).float()
    return Objective(method, {} if spec is None else {"nudge": toys.Nudge(method, spec)})


def trained(spec: AuxiliarySpec | None, total: int = 8, **training: object) -> Objective:
    made = objective(spec)
    toys.learner(made, toys.Feed(), total=total, training=training).fit()
    return made


def method_state(made: Objective) -> dict[str, Tensor]:
    return {k: v for k, v in made.state_dict().items() if k.startswith("method.")}


@pytest.mark.parametrize("clip", [None, 0.05])
def test_an_auxiliary_that_has_not_begun_changes_nothing_and_does_not_move(clip: float | None) -> None:
    """Bit for bit, clipping included; afterwards it does both."""
    without, late = trained(None, clip=clip), trained(AuxiliarySpec(start=0.99), clip=clip)
    assert all(torch.equal(v, method_state(late)[k]) for k, v in method_state(without).items())
    assert torch.equal(late.auxiliaries["nudge"].centre, torch.ones(12)) and not late.auxiliaries["nudge"].memory.any()


def test_an_auxiliary_that_starts_half_way_moves_from_there_on() -> None:
    made = objective(AuxiliarySpec(start=0.5))
    run = toys.learner(made, toys.Feed(), optimiser={"weight_decay": 0.3})
    for number in range(8):
        run.step()
        moved = not torch.equal(made.auxiliaries["nudge"].centre, torch.ones(12))
        assert moved == (number >= 4), number
        assert bool(made.auxiliaries["nudge"].memory.any()) == (number >= 4)


def test_terms_are_weighed_and_added() -> None:
    views, step = toys.views(6, dtype=torch.float32), toys.step()
    made = objective(AuxiliarySpec(weight=0.3))
    total, terms, carries = made(made.draw(views, step), step)
    assert made.weights(step) == {"byol": 1.0, "nudge": 0.3}
    assert total.item() == pytest.approx(terms["byol"].item() + 0.3 * terms["nudge"].item(), rel=1e-6)
    assert not any(t.requires_grad for t in terms.values())
    assert set(carries) == {"method", "nudge"}


def test_random_numbers_of_an_auxiliary_are_a_function_of_the_step() -> None:
    made, views = objective(AuxiliarySpec()), toys.views(6, dtype=torch.float32)
    first, again, other = (made.draw(views, toys.step(n)).drawn["nudge"] for n in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_wants_of_all_auxiliaries_merge() -> None:
    class Asks(toys.Nudge):
        def want(self) -> Want:
            return Want(blocks=(1,))

    class AsksMore(toys.Nudge):
        def want(self) -> Want:
            return Want(patches=True, blocks=(0, 1))

    method = toys.method("byol")
    made = Objective(method, {"a": Asks(method, AuxiliarySpec()), "b": AsksMore(method, AuxiliarySpec())})
    assert made.want() == Want(patches=True, blocks=(0, 1))
    assert Objective(method).want() == Want()
