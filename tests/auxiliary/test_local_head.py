"""The token head of local self-distillation: what learns, what follows, and sums over prototypes that are never held."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from patched import beside, crops, run
from torch import Tensor
from toys import NAMES, parameters, step

from gnothi.auxiliary.patches import Partners, match_patches, speak
from gnothi.methods import Space
from gnothi.models import prototypes
from gnothi.randomness import generator


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_backbone_and_the_token_head_and_nothing_else(name):
    objective = beside(name)
    _, _, terms, _ = run(objective, crops(name))
    terms["local"].backward()
    reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-12}
    expected = {n for n, _ in objective.named_parameters() if n.startswith(("method.backbone.", "auxiliaries.local.space.head."))}
    assert reached <= expected
    # A shift of all projections alike means nothing to statistics over the batch.
    assert expected - reached <= {n for n in expected if name in ("barlow", "vicreg") and n.endswith("bias")}


def test_relations_teach_the_online_backbone_and_nothing_else():
    """A shift of all tokens alike means nothing to centred kernels."""
    for settings in ({"gram": 1.0}, {"kernel": 1.0}):
        objective = beside("dino", match="none", **settings)
        _, _, terms, _ = run(objective, crops("dino"))
        sum(terms.values()).backward()
        reached = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-12}
        expected = {n for n, _ in objective.named_parameters() if n.startswith("method.backbone.")}
        assert reached == expected - ({"method.backbone.norm.bias"} if "kernel" in settings else set())


@pytest.mark.parametrize(("name", "chunk"), [("dino", 40), ("dino", 1 << 22), ("swav", 1 << 22), ("sinkhorn", 1 << 22)])
def test_the_form_that_copies_no_targets_equals_the_plain_one(name, chunk, monkeypatch):
    """Value, carry and gradient of every parameter and token, in float64; a few prototypes at a time, and all at once."""
    monkeypatch.setattr(prototypes, "CHUNK", chunk)
    settings = {"centring": "sinkhorn", "joint_views": True} if name == "sinkhorn" else {}
    objective = beside("dino" if name == "sinkhorn" else name, spec=settings)
    space = objective.auxiliaries["local"].space
    g = generator(0, "tokens")
    tokens = [torch.randn(3, n, 12, generator=g, dtype=torch.float64, requires_grad=True) for n in (16, 16, 4)]
    target = [torch.randn(3, 16, 12, generator=g, dtype=torch.float64) for _ in range(2)]
    partners = [
        Partners(v, t, torch.randint(16, (3, tokens[v].shape[1]), generator=g), torch.rand(3, tokens[v].shape[1], generator=g, dtype=torch.float64))
        for v, t in ((1, 0), (0, 1), (2, 0), (2, 1))
    ]
    found = []
    for form in (match_patches, match_patches.dispatch(Space)):
        if name == "sinkhorn" and found:  # the plain form assigns crop by crop
            said, answered = speak(space, tokens, target)
            known = space.targets(answered, step()).split(48)
            values = [
                space.match(said[p.crop].prediction, known[p.target], index=p.rows(16), weight=p.weight.flatten(), step=step()) for p in partners
            ]
            carry = space.keep(answered)
        else:
            values, carry = form(space, tokens, target, partners, step())
        wanted = [*tokens, *(p for p in space.head.parameters())]
        grads = torch.autograd.grad(sum((k + 1) * v for k, v in enumerate(values)), wanted)
        found.append((values, carry.sums, grads))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for key in found[1][1]:
        torch.testing.assert_close(found[0][1][key], found[1][1][key], rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_sums_over_prototypes_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(prototypes, "CHUNK", 6)
    g = generator(0, "prototypes")
    rows, own, mine = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((3, 4), (7, 4), (7, 4)))
    centre = torch.randn(7, generator=g, dtype=torch.float64)
    free = rows.clone().requires_grad_(), mine.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: prototypes.lse(x, w, 0.3), free)
    assert torch.autograd.gradcheck(lambda w: prototypes.expected(rows, own, centre, 0.2, w), (free[1],))
    torch.testing.assert_close(prototypes.lse(rows, mine, 0.3), (rows @ mine.T / 0.3).logsumexp(1))
    torch.testing.assert_close(prototypes.expected(rows, own, centre, 0.2, mine), ((rows @ own.T - centre) / 0.2).softmax(1) @ mine)


@pytest.fixture
def benchmark() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "local_memory.py"
    spec = importlib.util.spec_from_file_location("local_memory", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_loss_needs_less_than_one_copy_of_the_student_s_logits_and_the_plain_form_several(benchmark, monkeypatch):
    """As bytes of tensors that are made and freed; prototypes and tokens are as many more than their widths as in a real run."""
    monkeypatch.setattr(prototypes, "CHUNK", 1 << 15)
    row = benchmark.measure(2048, batch=4, grid=7, n_local=1, device=torch.device("cpu"), most=1.0, hidden=16, out=16)
    assert row["logits"] == 4 * 2048 * 4 * (2 * 49 + 9)
    assert row["streamed"] < row["logits"] < row["plain"] / 2


def test_nothing_as_large_as_the_logits_is_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(prototypes, "CHUNK", 1 << 10)
    space = beside("dino", prototypes=256).auxiliaries["local"].space
    g = generator(0, "tokens")
    tokens = [torch.randn(8, 16, 12, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    partners = [Partners(v, 1 - v, torch.randint(16, (8, 16), generator=g), torch.ones(8, 16).double()) for v in range(2)]

    def kept(form: Any) -> int:
        saved: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            sum(form(space, tokens, [t.detach() for t in tokens], partners, step())[0])
        return max(saved.values())

    logits = 8 * 256 * 8 * 16  # of a crop
    assert kept(match_patches) < logits <= kept(match_patches.dispatch(Space))


@pytest.mark.slow
def test_65536_prototypes_need_less_than_one_copy_of_the_student_s_logits(benchmark):
    row = benchmark.measure(65_536, batch=12, grid=7, n_local=8, device=torch.device("cpu"), most=0.0)
    assert row["tokens"] == 12 * 170 and row["streamed"] < row["logits"]


def test_the_centre_of_patches_is_the_mean_over_all_tokens_of_both_crops_after_use():
    objective, given = beside("dino"), crops("dino")
    local, now = objective.auxiliaries["local"], step()
    before = local.space.centre.clone()
    _, outputs, _, carry = run(objective, given)
    tokens = torch.cat([b.encoding.patches.flatten(0, 1) for b in outputs.target])
    logits = local.space.slow(tokens).prediction
    assert torch.equal(local.space.centre, before)
    local.after_step(objective.method, carry, now)
    torch.testing.assert_close(local.space.centre, 0.9 * before + 0.1 * logits.mean(0))
    assert not objective.method.space.centre.any()


@pytest.mark.parametrize("number", [0, 5])
def test_the_token_head_s_last_layer_is_frozen_with_the_method_s(number):
    objective, given = beside("dino"), crops("dino")
    before = parameters(objective)
    optimiser = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.5, weight_decay=0.1)
    drawn = objective.draw(given, step(number))
    total, _, carries = objective(drawn, step(number))
    total.backward()
    for p in objective.frozen(step(number)):
        p.grad = None
    optimiser.step()
    objective.after_step(carries, step(number))
    key = "auxiliaries.local.space.head.last.weight"
    after = parameters(objective)
    assert torch.equal(after[key], before[key]) == (number == 0)
    slow = key.replace("head", "slow")
    momentum = objective.auxiliaries["local"].space.momentum(step(number))
    torch.testing.assert_close(after[slow], momentum * before[slow] + (1 - momentum) * after[key])


def test_the_token_head_has_prototypes_and_temperature_of_its_own():
    space = beside("dino", spec={"prototypes": 5000}).auxiliaries["local"].space
    assert space.head.last.weight.shape[0] == 4096
    space = beside("dino", prototypes=7, teacher_temperature=0.05).auxiliaries["local"].space
    assert len(space.centre) == 7 and space.temperature(step(0)) == space.temperature(step(9)) == 0.05
    space = beside("swav", prototypes=6).auxiliaries["local"].space
    assert space.head.last.weight.shape[0] == 6 and space.queue.numel() == 0


def test_the_method_s_own_loss_keeps_its_weight_unless_asked():
    now = step()
    assert beside("dino").weights(now) == {"dino": 1.0, "local": 0.5}
    assert beside("dino", view_weight=0.5, gram=2).weights(now) == {"dino": 0.5, "local": 0.5, "local_gram": 2}
    assert beside("dino", match="none", kernel=1).weights(now) == {"dino": 1.0, "local_kernel": 1}
