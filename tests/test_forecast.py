"""Predictions against closed forms, and their formulas against what the library holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gnothi import forecast as model
from gnothi.data import ArraySource
from gnothi.data.index import build
from gnothi.data.order import Order
from gnothi.data.packing import pack
from gnothi.evaluate.nearest import MEMORY
from gnothi.forecast import BUCKET, Demand, Forecast, Link, Plan, Rack, Rates, Study, Taken, fit, forecast, limits, transformer
from gnothi.models.micro_vit import MicroViT
from gnothi.transfer.clusters import BLOCK

DEMAND = Demand(flops=1e9, kept=2e6, once=3e6, crops=1e5, learned=40_000_000, state=120_000_000, waits=10, look=2e8)
RATES = Rates((1e-11, 1e-9, 2e-9, 1e-10, 0.004), (9e7, 1.25))


def demands() -> list[tuple[Demand, float]]:
    changes = [{}, {"flops": 5e9}, {"kept": 9e6}, {"crops": 3e6}, {"state": 10**9}, {"flops": 2e8, "kept": 1e5}]
    return [(replace(DEMAND, **change), 8.0 * (i + 1)) for i, change in enumerate(changes)]


# ---- time ---------------------------------------------------------------------------------------
def test_a_step_is_the_sum_of_what_it_is_made_of() -> None:
    expected = 16 * (1e9 * 1e-11 + 2e6 * 1e-9 + 1e5 * 2e-9) + 120e6 * 1e-10 + 0.004
    assert RATES.step(DEMAND, 16) == pytest.approx(expected)


def test_rates_are_found_again_from_steps_that_they_made() -> None:
    """And the room that arithmetic takes, from those steps of which it was seen."""
    steps = [Taken(d, n, RATES.step(d, n), RATES.memory(d.held(n)) if n != 16 else None) for d, n in demands()]
    found = fit(steps)
    assert found.seconds == pytest.approx(RATES.seconds, rel=1e-6) and found.room == pytest.approx(RATES.room, rel=1e-6)
    assert fit([replace(s, memory=None) for s in steps]).room == (0.0, 1.0)


def test_no_rate_is_below_zero() -> None:
    """Steps that take less the more they keep say nothing of a rate."""
    samples = [Taken(replace(DEMAND, kept=k), 8.0, 0.1 - 1e-9 * k) for k in (1e6, 2e6, 3e7)]
    assert min(fit(samples).seconds) == 0


def test_errors_are_relative() -> None:
    """A long step counts no more than a short one: the sum over steps of (rate x FLOPs / seconds - 1) squared is least."""
    steps = [(1e9, 0.01), (1e9, 0.01), (1e10, 0.3)]
    found = fit([Taken(replace(DEMAND, flops=f, kept=0, crops=0, state=0), 1.0, s) for f, s in steps])
    speeds = [f / s for f, s in steps]
    assert found.seconds == pytest.approx((sum(speeds) / sum(x * x for x in speeds), 0, 0, 0, 0))


@pytest.mark.parametrize(("parallel", "processes", "times"), [("ddp", 1, 0), ("ddp", 2, 1), ("ddp", 4, 1.5), ("fsdp", 2, 1.5), ("fsdp", 4, 2.25)])
def test_gradients_go_round_in_a_ring(parallel: str, processes: int, times: float) -> None:
    """2 (N - 1) / N of their bytes by reducing; scattered and gathered twice, half as much more."""
    link = Link(1e-3, 1e9)
    words = (10 + -(-40_000_000 // BUCKET)) * 1e-3 if processes > 1 else 0
    assert link.exchange(DEMAND, processes, parallel) == pytest.approx(times * 0.04 + words)
    more = 2 * 10 * 1e-3 + (2 * times * 0.04 if parallel == "fsdp" else 0) if processes > 1 else 0  # two more micro-batches
    assert link.exchange(DEMAND, processes, parallel, 3) == pytest.approx(times * 0.04 + words + more)


def test_a_forecast_is_its_closed_form() -> None:
    plan = Plan(images=10_000, batch=64, epochs=3.0, processes=4, accumulate=2, looks=5000)
    link = Link(1e-3, 1e9)
    found = forecast(DEMAND, plan, RATES, link, base=7e8)
    step = RATES.step(DEMAND, 16) + link.exchange(DEMAND, 4, accumulate=2)
    assert found.steps == 3 * 156 and found.step_seconds == pytest.approx(step)
    assert found.images_per_second == pytest.approx(64 / step) and found.waiting == pytest.approx(link.exchange(DEMAND, 4, accumulate=2) / step)
    look = 2e8 * 1e-11 + 1e-9 * 2e6 * 2e8 / 1e9
    assert found.seconds == pytest.approx(468 * step + 5000 * look)
    assert found.memory == pytest.approx(7e8 + 9e7 + 1.25 * (160e6 + 3e6 + 8 * 2e6 + 16 * 1e5)) and found.checkpoint == 120_000_000


def test_shards_divide_what_a_process_holds_of_the_network() -> None:
    plan = Plan(10_000, 64, 1.0, 4)
    whole, shared = (forecast(DEMAND, replace(plan, parallel=p), RATES, Link(0, 1e9)) for p in ("ddp", "fsdp"))
    assert whole.memory - shared.memory == pytest.approx(1.25 * 160e6 * 3 / 4)


def test_the_flops_of_a_transformer_are_those_that_are_counted() -> None:
    net = MicroViT(size=16, patch_size=4, width=24, depth=3, heads=2, mlp_ratio=4.0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 16, 16))
    patches = 2 * 16 * 24 * 3 * 4 * 4
    flops, parameters = transformer(3, 24, 17)
    assert counter.get_total_flops() - patches == flops
    assert parameters == sum(p.numel() for p in net.blocks.parameters() if p.ndim > 1)


# ---- limits -------------------------------------------------------------------------------------
RUN = Forecast(steps=1000, step_seconds=1.0, waiting=0.1, images_per_second=64_000.0, seconds=15_625.0, memory=5e10, checkpoint=5 * 10**9)


def by_name(study: Study) -> dict[str, model.Limit]:
    return {limit.what: limit for limit in limits(study, Rack(), RUN)}


def test_what_breaks_first_stands_first() -> None:
    shares = [limit.share for limit in limits(Study(), Rack(), RUN)]
    assert shares == sorted(shares, reverse=True) and len(shares) == len({limit.what for limit in limits(Study(), Rack(), RUN)})


def test_what_grows_with_the_images_doubles_with_them_and_the_rest_stays() -> None:
    few, many = by_name(Study(images=10**8)), by_name(Study(images=2 * 10**8))
    grows = {what for what in few if many[what].needs == pytest.approx(2 * few[what].needs)}
    assert grows == {"order of an epoch", "index of the shards", "labels", "features", "k-means, time", "k-NN, time"}
    assert all(many[what].needs == few[what].needs for what in few.keys() - grows)


def test_the_formulas_hold_what_the_library_holds(tmp_path: Path) -> None:
    """The order of an epoch, the index of a shard, the blocks of k-means and of the search."""
    n, limit = 1000, by_name(Study(images=1000))
    order = Order(n, 10, 0)
    assert order.rows(0).untyped_storage().nbytes() == limit["order of an epoch"].needs
    pack(ArraySource(np.zeros((n, 4, 4, 3), dtype=np.uint8)), tmp_path / "shards", name="grey", images=n)
    shard = next((tmp_path / "shards").glob("*.tar"))
    with shard.open("rb") as file:
        found = build(file, shard.stat().st_size)
    assert sum(v.nbytes for v in vars(found).values() if len(v) == n) == model.INDEX * n
    assert limit["index of the shards"].needs == (model.INDEX + Study().name) * n
    assert limit["k-NN, memory"].needs == model.SEARCH == MEMORY
    study = Study()
    assert limit["k-means, memory"].needs == 8 * (study.clusters + BLOCK) * study.width


def test_a_search_reads_the_bank_as_often_as_its_queries_need() -> None:
    """Twice the processes: half the products, and as many rounds as are left."""
    study, one = Study(queries=64_000, images=10**6), Rack(processes=1)
    held = model.SEARCH // 2 // (8 * (study.width + 6 * study.k))
    found = {limit.what: limit for limit in limits(study, one, RUN)}["k-NN, time"]
    rounds = -(-64_000 // held)
    assert found.needs == pytest.approx(rounds * 4 * 1024 * 1e6 / one.disk + 2 * 1024 * 1e6 * 64_000 / one.exact)
