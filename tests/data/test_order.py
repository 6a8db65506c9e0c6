import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gnothi.contracts import SettingError
from gnothi.data import Order


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_meets_no_row_twice_and_leaves_out_less_than_a_batch(n, batch, seed, epoch):
    batch = min(batch, n)
    order = Order(n, batch, seed)
    rows = torch.cat([order.rows(epoch * order.steps_per_epoch + i) for i in range(order.steps_per_epoch)])
    assert len(rows) == n - n % batch
    assert len(set(rows.tolist())) == len(rows) and set(rows.tolist()) <= set(range(n))


def test_the_rows_of_a_step_depend_on_seed_and_step_alone():
    forwards = [Order(50, 8, 3).rows(step) for step in range(20)]
    order = Order(50, 8, 3)
    torch.manual_seed(0)
    backwards = [order.rows(step) for step in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not torch.equal(Order(50, 8, 4).rows(0), forwards[0])


def test_epochs_have_different_orders_and_rows_all_places():
    order = Order(6, 6, 0)
    first = torch.stack([order.rows(epoch) for epoch in range(1200)])
    counts = torch.stack([(first == row).sum(0) for row in range(6)])  # expected 200 each, deviation 13
    assert 130 < counts.min() and counts.max() < 270


@pytest.mark.parametrize("batch", [0, 11])
def test_a_batch_that_cannot_be_filled_is_refused(batch):
    with pytest.raises(SettingError, match="training.batch must lie between 1 and the number of images, 10"):
        Order(10, batch, 0)
