from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import toys
from torch import Tensor
from torch.nn import functional as F

from gnothi.contracts import Carry, DataError, SettingError, Source, Want
from gnothi.data import ArraySource
from gnothi.data.targets import Targets, keys
from gnothi.methods import METHODS, Method
from gnothi.methods.classify import class_rows
from gnothi.methods.distil import Queue, regression, similarity_divergence
from gnothi.randomness import generator, seeded
from gnothi.recipes.resolve import resolve
from gnothi.training.objective import Objective


def source(n: int = 100) -> Source:
    return ArraySource(torch.randint(256, (n, 3, 16, 16), generator=generator(0, "images"), dtype=torch.uint8).numpy())


def student(tmp_path: Path, tensors: dict[str, Tensor], about: dict[str, Any], backbone: Any = toys.ToyBackbone, **settings: Any) -> Method:
    images, path = source(), tmp_path / "targets.safetensors"
    Targets(keys(images), tensors, about).write(path)
    name = "classify" if about["kind"] == "classes" else "distil"
    with seeded(0, "student"):
        made = METHODS[name][1](backbone(), METHODS[name][0](targets=str(path), **settings))  # type: ignore[arg-type]
        made.meet(images)
    return made.double()


def classes(n: int = 100, sizes: tuple[int, ...] = (5, 7), m: int = 2) -> tuple[dict[str, Tensor], dict[str, Any]]:
    g = generator(0, "classes")
    index = torch.stack([torch.stack([torch.randperm(k, generator=g)[:m] for k in sizes]) for _ in range(n)])  # [N, H, m]
    share = torch.rand(n, len(sizes), m, generator=g).softmax(-1)
    share[3] = 0  # of which nothing is known
    return {"index": index.int(), "share": share}, {"kind": "classes", "classes": list(sizes)}


def features(n: int = 100, widths: tuple[int, ...] = (6, 4)) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {f"vectors.{i}": F.normalize(toys.spherical(n, d, i), dim=1).float() for i, d in enumerate(widths)}
    return tensors, {"kind": "vectors", "dims": list(widths)}


# ---- losses --------------------------------------------------------------------------------------
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes_that_share_equal_a_slow_loop(smoothing: float) -> None:
    logits, index = toys.spherical(6, 5), torch.tensor([[0, 3], [1, 0], [2, 4], [4, 1], [3, 2], [0, 1]])
    share = torch.rand(6, 2, generator=generator(0, "share")).softmax(1).double()
    share[5] = 0
    expected = []
    for row, i, s in zip(oracles.plain(logits), index.tolist(), oracles.plain(share), strict=True):
        target = [smoothing / 5 * sum(s)] * 5
        for c, p in zip(i, s, strict=True):
            target[c] += (1 - smoothing) * p
        expected.append(oracles.cross_entropy(row, target, 1.0))
    np.testing.assert_allclose(class_rows(logits, index, share, smoothing), expected, rtol=1e-12)
    assert expected[5] == 0


@pytest.mark.parametrize("k", [701, 1000, 2000, 10000])
def test_alike_logits_give_the_logarithm_of_the_classes(k: int) -> None:
    zeros = torch.zeros(3, k)
    found = class_rows(zeros, torch.tensor([[0], [5], [k - 1]]), torch.ones(3, 1))
    np.testing.assert_allclose(found, math.log(k), rtol=1e-5)


def test_the_numbers_of_clusters_mean_nothing() -> None:
    logits, index, share = toys.spherical(6, 5), torch.arange(6)[:, None] % 5, torch.ones(6, 1, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])  # new number of each class
    renamed = torch.empty_like(logits)
    renamed[:, order] = logits
    torch.testing.assert_close(class_rows(logits, index, share), class_rows(renamed, order[index], share))


ANCHORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
TEACHER, STUDENT = torch.tensor([[0.8, 0.6]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "expected"), [(0.04, 5.2745), (0.07, 3.6082), (0.2, 1.4429), (1.0, 0.10699)])
def test_divergence_over_a_queue_in_numbers(temperature: float, expected: float) -> None:
    found, _ = similarity_divergence(STUDENT, TEACHER, ANCHORS, temperature, temperature)
    assert float(found) == pytest.approx(expected, abs=1e-4)
    same, _ = similarity_divergence(3 * TEACHER, TEACHER, ANCHORS, temperature, temperature)
    assert float(same) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("teacher", "expected"), [(1e-4, 2.4121), (0.01, 2.3941)])
def test_cross_entropy_with_the_teacher_s_own_vector_in_numbers(teacher: float, expected: float) -> None:
    _, found = similarity_divergence(STUDENT, TEACHER, ANCHORS, 0.2, teacher, own=True)
    assert float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_likeness_to_anchors_equals_a_slow_loop_and_teaches_the_student_only(own: bool) -> None:
    s, t, a = toys.spherical(4, 5, 0).requires_grad_(), toys.spherical(4, 5, 1).requires_grad_(), toys.spherical(7, 5, 2)
    divergence, cross = similarity_divergence(s, t, a, 0.1, 0.3, own)
    told, said = [], []
    for u, v in zip(oracles.plain(s), oracles.plain(t), strict=True):
        others = ([v] if own else []) + oracles.plain(a)
        p = oracles.softmax([oracles.cosine(v, w) for w in others], 0.3)
        told.append(oracles.entropy(p))
        said.append(oracles.cross_entropy([oracles.cosine(u, w) for w in others], p, 0.1))
    assert cross.item() == pytest.approx(oracles.mean(said), rel=1e-10)
    assert divergence.item() == pytest.approx(oracles.mean(said) - oracles.mean(told), rel=1e-9)
    cross.backward()
    assert s.grad is not None and t.grad is None


def test_regression_is_the_squared_distance_of_unit_vectors() -> None:
    e = torch.eye(2, dtype=torch.float64)
    assert float(regression(STUDENT, TEACHER)) == pytest.approx(0.8)
    assert float(regression(e[:1], e[1:])) == 2 and float(regression(e, -e)) == 4
    a, b = toys.spherical(5, 3), toys.spherical(5, 3, 1)
    expected = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(regression(7 * a, 0.1 * b), expected)


# ---- queue ---------------------------------------------------------------------------------------
def test_a_queue_drops_the_oldest_and_its_place_is_kept() -> None:
    queue = Queue(torch.zeros(8, 1))
    for first in (0, 3, 6, 9):
        queue.push(torch.arange(first, first + 3).float()[:, None])
    assert queue.vectors[:, 0].tolist() == [8, 9, 10, 11, 4, 5, 6, 7]
    again = Queue(torch.zeros(8, 1))
    again.load_state_dict(queue.state_dict())
    again.push(torch.tensor([[12.0]]))
    assert again.vectors[:, 0].tolist() == [8, 9, 10, 11, 12, 5, 6, 7]
    again.push(torch.arange(20.0, 30.0)[:, None])
    assert sorted(again.vectors[:, 0].tolist()) == list(range(22, 30))


# ---- methods -------------------------------------------------------------------------------------
def test_classification_equals_a_slow_loop_over_crops_heads_and_images(tmp_path: Path) -> None:
    tensors, about = classes()
    method, views, step = student(tmp_path, tensors, about, smoothing=0.1), toys.views(8), toys.step()
    views.index[2] = 3
    terms, _ = method.loss(views, method(views, Want(), step), step)
    values = []
    for crop in views.images:
        pooled = method.backbone(crop).pooled
        for h, head in enumerate(method.heads):
            for row, i in zip(oracles.plain(head(pooled)), views.index.tolist(), strict=True):
                k, known = len(row), float(tensors["share"][i, h].sum())
                target = [0.1 / k * known] * k
                for c, p in zip(tensors["index"][i, h].tolist(), tensors["share"][i, h].tolist(), strict=True):
                    target[c] += 0.9 * p
                values.append(oracles.cross_entropy(row, target, 1.0))
    assert terms["classify"].item() == pytest.approx(oracles.mean(values), rel=1e-6)


@pytest.mark.parametrize("loss", ["regression", "compress", "seed"])
def test_distillation_compares_each_image_with_its_own_vectors(tmp_path: Path, loss: str) -> None:
    tensors, about = features()
    method, views, step = student(tmp_path, tensors, about, loss=loss, head="linear", queue=9), toys.views(8), toys.step()
    terms, carry = method.loss(views, method(views, Want(), step), step)
    values = []
    for crop in views.images:
        for i, head in enumerate(method.heads):
            said, told = head(method.backbone(crop).pooled), tensors[f"vectors.{i}"][views.index].double()
            if loss == "regression":
                values.append(regression(said, told).item())
            else:
                t = (0.04, 0.04) if loss == "compress" else (0.2, 0.01)
                pair = similarity_divergence(said, told, method.queues[i].vectors, *t, own=loss == "seed")
                values.append(pair[loss == "seed"].item())
    assert terms["distil"].item() == pytest.approx(oracles.mean(values), rel=1e-5)
    assert (carry.rows == {}) == (loss == "regression")


def test_the_batch_joins_the_queue_after_it_was_learned_from(tmp_path: Path) -> None:
    tensors, about = features()
    method, views, step = student(tmp_path, tensors, about, loss="compress", queue=9), toys.views(4), toys.step()
    before = method.queues[0].vectors.clone()
    _, carry = method.loss(views, method(views, Want(), step), step)
    assert torch.equal(method.queues[0].vectors, before)
    method.after_step(carry, step)
    torch.testing.assert_close(method.queues[0].vectors[:4], tensors["vectors.0"][views.index].double())
    assert torch.equal(method.queues[0].vectors[4:], before[4:])
    assert all(float((before[i] @ tensors["vectors.0"].double().T).max()) > 1 - 1e-6 for i in range(9))  # it began with vectors of the teacher


@pytest.mark.parametrize("kind", ["classes", "vectors"])
def test_a_batch_in_parts_is_the_whole_batch(tmp_path: Path, kind: str) -> None:
    tensors, about = classes() if kind == "classes" else features()
    method, views, step = student(tmp_path, tensors, about), toys.views(8), toys.step()
    whole, _, carried = Objective(method.eval())(views, step)
    halves = [Objective(method)(views.rows(part), step) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(whole, (halves[0][0] + halves[1][0]) / 2)
    merged: Carry = halves[0][2]["method"] + halves[1][2]["method"]
    assert toys.same(merged.rows, carried["method"].rows)


def test_measures_of_images_held_out(tmp_path: Path) -> None:
    tensors, about = classes()
    method, images = student(tmp_path, tensors, about), source()
    pooled = toys.spherical(100, 12)
    judged = method.judge(pooled, images)
    known = [i for i in range(100) if i != 3]
    right = [float(method.heads[0](pooled[i]).argmax() == tensors["index"][i, 0, 0]) for i in known]
    assert judged["held_out_accuracy"].tolist() == right and len(judged["held_out_loss"]) == 99
    tensors, about = features()
    method = student(tmp_path, tensors, about, loss="compress")
    judged = method.judge(pooled, images)
    told, said = oracles.plain(tensors["vectors.0"]), oracles.plain(method.heads[0](pooled))
    assert judged["held_out_cosine"].tolist() == pytest.approx([oracles.cosine(a, b) for a, b in zip(said, told, strict=True)], abs=1e-6)

    def near(x: oracles.Matrix, i: int) -> int:
        return max((j for j in range(100) if j != i), key=lambda j: oracles.cosine(x[i], x[j]))

    rows, own = range(0, 100, 9), oracles.plain(pooled)
    assert [judged["held_out_neighbours"][i].item() for i in rows] == [float(near(own, i) == near(told, i)) for i in rows]


def test_without_targets_classification_takes_the_data_s_classes() -> None:
    images = torch.zeros(6, 3, 16, 16, dtype=torch.uint8).numpy()
    method = METHODS["classify"][1](toys.ToyBackbone(), METHODS["classify"][0]())  # type: ignore[arg-type]
    method.meet(ArraySource(images, labels=[0, 1, 2, 0, 1, 2]))
    assert method.index[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2] and method.heads[0].out_features == 3
    with pytest.raises(DataError, match="needs labels, these images have none; gnothi transfer makes some"):
        method.meet(ArraySource(images))


def test_what_students_cannot_do_is_refused() -> None:
    with pytest.raises(SettingError, match="distil needs method.targets=FILE"):
        METHODS["distil"][1](toys.ToyBackbone(), METHODS["distil"][0]())  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="auxiliary.layers needs a method that compares views, classify does not; rotation and jigsaw do without"):
        resolve("photos", settings={"method": {"name": "classify"}, "auxiliary": {"layers": {}}})


def test_chance_is_the_share_of_the_largest_cluster(tmp_path: Path) -> None:
    index = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[:, None, None].int()
    method = student(tmp_path, {"index": index, "share": torch.ones(100, 1, 1)}, {"kind": "classes", "classes": [3]})
    views = toys.views(8)
    found = method.eval().diagnose(views, toys.step())
    pooled = method.backbone(views.images[0]).pooled
    right = (method.heads[0](pooled).argmax(1) == index[views.index, 0, 0]).double().mean()
    assert found["chance"] == pytest.approx(0.6) and found["accuracy"] == pytest.approx(float(right))


def test_a_queue_holds_a_quarter_of_few_images_unless_told_otherwise(tmp_path: Path) -> None:
    tensors, about = features()
    for more, expected in (({}, 25), ({"queue": 80}, 80), ({"queue": 8192}, 100)):
        for loss in ("compress", "seed"):
            assert [len(q.vectors) for q in student(tmp_path, tensors, about, loss=loss, **more).queues] == [expected] * 2
    two = student(tmp_path, tensors, about, loss="compress", queues=2)
    assert len(two.mine.vectors) == len(two.queues[0].vectors) == 25
