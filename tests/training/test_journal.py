"""The sums between lines of metrics, over a stop and in a checkpoint, and where the optimiser's state goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gnothi import distributed
from gnothi.contracts import RunError
from gnothi.training import state
from gnothi.training.journal import Journal


def noted(steps: int, value: float = 1.0) -> Journal:
    journal = Journal(None, 10)
    for _ in range(steps):
        journal.note({"simclr": torch.tensor(value), "gradient_norm": torch.tensor(2.0)}, 0.5)
    return journal


def test_after_a_stop_the_rate_is_that_of_the_steps_that_were_timed() -> None:
    journal = noted(0)
    journal.window = noted(49).window  # as a checkpoint gives them back
    journal.note({"simclr": torch.tensor(51.0), "gradient_norm": torch.tensor(2.0)}, 0.5)
    line = journal.means(50, 128, 0.0)
    assert line["terms"] == {"simclr": 2.0} and line["images_per_second"] == 256.0  # the mean is of all 50
    assert noted(4).means(4, 128, 0.0)["images_per_second"] == 256.0


def test_a_checkpoint_keeps_the_sums_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "mean", lambda x: x + 10)
    assert {k: float(v) for k, v in noted(3).sums(3).items()} == {"simclr": 13, "gradient_norm": 16, "steps": 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sums_that_are_not_finite_are_no_checkpoint(value: float) -> None:
    with pytest.raises(RunError, match=rf'term "simclr" became {value} at step 2; lower optimiser.lr'):
        noted(2, value).sums(2)


@pytest.mark.filterwarnings("ignore:.*non-meta parameter")
def test_a_step_count_goes_where_its_parameter_is() -> None:
    """Fused kernels read it there; torch's own loading moves it, too."""
    net = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    tensors = state.of(net, optimiser, {})
    elsewhere = nn.Linear(2, 2).to("meta")
    fresh = torch.optim.AdamW(elsewhere.parameters())
    state.restore(tensors, elsewhere, fresh)
    assert {v.device.type for values in fresh.state.values() for v in values.values()} == {"meta"}
