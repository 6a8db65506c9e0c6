"""CompRess with two queues: likeness to the teacher's last vectors, and to what a slow student said of the same images."""

from __future__ import annotations

from pathlib import Path

import oracles
import pytest
import torch
import toys
from oracles import plain
from pupils import distilled, source, vectors

from gnothi.contracts import SettingError, Want
from gnothi.methods.distil import Queue, similarity_divergence
from gnothi.training.objective import Objective


def test_two_spaces_with_the_same_angles_agree_and_others_do_not() -> None:
    """A student that turned and stretched everything sees the same likenesses, in its own space."""
    teachers, anchors = toys.spherical(4, 5, 0), toys.spherical(9, 5, 1)
    turn = torch.linalg.qr(toys.spherical(7, 7, 2)).Q[:5]  # [5, 7], rows at right angles
    same, _ = similarity_divergence(3 * teachers @ turn, teachers, anchors, 0.04, 0.04, student_anchors=2 * anchors @ turn)
    other, _ = similarity_divergence(3 * teachers @ turn, teachers, anchors, 0.04, 0.04, student_anchors=toys.spherical(9, 7, 3))
    assert same.item() == pytest.approx(0, abs=1e-12) and other > 0.1


def test_the_first_step_compares_with_nothing_and_the_next_ones_with_a_slow_student(tmp_path: Path) -> None:
    made, told = distilled(tmp_path, loss="compress", queues=2, queue=9, momentum=0.7), vectors()
    objective = Objective(made)
    theirs: list[list[list[float]]] = [[], []]
    mine: list[list[float]] = []
    for number in range(4):
        views, step = toys.views(4, seed=number), toys.step(number)
        total, terms, carries = objective(views, step)
        crops = [plain(made.backbone(crop).pooled) for crop in views.images]
        expected = []
        for t in range(2):
            rows = told[f"vectors.{t}"][views.index].double()
            for said in crops:
                expected += [divergence(s, r, mine, theirs[t]) for s, r in zip(said, plain(rows), strict=True)]
            theirs[t] = (theirs[t] + plain(rows))[-9:]
        assert terms["distil"].item() == pytest.approx(oracles.mean(expected), rel=1e-6, abs=1e-12)
        assert (terms["distil"] == 0) == (number == 0)
        total.backward()
        assert all(p.grad is not None and bool(p.grad.any()) == (number > 0) for p in made.backbone.parameters())
        mine = (mine + plain(made.slow(views.images[0]).pooled))[-9:]
        with torch.no_grad():
            for p in made.backbone.parameters():
                p -= 0.1 * p.grad
                p.grad = None
        before, now = toys.parameters(made.slow), toys.parameters(made.backbone)
        objective.after_step(carries, step)
        for key, value in toys.parameters(made.slow).items():
            torch.testing.assert_close(value, 0.7 * before[key] + 0.3 * now[key])


def divergence(said: list[float], told: list[float], mine: list[list[float]], theirs: list[list[float]]) -> float:
    """KL at temperature 0.04, one image; 0 without anchors."""
    if not mine:
        return 0.0
    p = oracles.softmax([oracles.cosine(told, a) for a in theirs], 0.04)
    return oracles.cross_entropy([oracles.cosine(said, a) for a in mine], p, 0.04) - oracles.entropy(p)


def test_a_queue_that_begins_empty_gives_what_it_got_and_knows_it_after_a_stop() -> None:
    queue = Queue(torch.zeros(5, 1), empty=True)
    assert len(queue.held()) == 0
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert queue.held()[:, 0].tolist() == [1, 2, 3]
    again = Queue(torch.zeros(5, 1), empty=True)
    again.load_state_dict(queue.state_dict())
    again.push(torch.tensor([[4.0], [5.0], [6.0]]))
    assert sorted(again.held()[:, 0].tolist()) == [2, 3, 4, 5, 6]
    assert len(Queue(torch.ones(5, 1)).held()) == 5


def test_the_student_has_no_head_and_only_neighbours_are_judged(tmp_path: Path) -> None:
    made = distilled(tmp_path, loss="compress", queues=2)
    assert {"mine.vectors", "mine.place", "mine.filled", "queues.1.vectors", "slow.norm.weight"} <= made.state_dict().keys()
    assert not list(made.heads.parameters()) and made.slow is not None and not any(p.requires_grad for p in made.slow.parameters())
    outputs = made(toys.views(3), Want(), toys.step())
    assert len(outputs.target) == 1 and not outputs.target[0].said.projection.requires_grad
    judged = made.judge(toys.spherical(100, 12), source())
    assert list(judged) == ["held_out_neighbours"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "seed"}, "method.queues=2 means nothing to method.loss=seed; compress has two"),
        ({"loss": "regression"}, "means nothing to method.loss=regression"),
        ({"loss": "compress", "head": "mlp"}, "in its own space and has no head, got method.head=mlp; leave it out"),
    ],
)
def test_two_queues_belong_to_compress_and_need_no_head(settings: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=words):
        distilled(tmp_path, queues=2, **settings)
