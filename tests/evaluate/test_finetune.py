"""Fine-tuning: who learns, from which rows, by which rate; and that a stopped run goes on as if it had not stopped."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from terminal import gnothi, said

from gnothi.contracts import DataError, EncoderError, Pixels, SettingError, Want
from gnothi.data import ArraySource, Subset
from gnothi.encoders import load
from gnothi.encoders.network import NetworkEncoder
from gnothi.evaluate import FinetuneSpec, finetune, paired, table
from gnothi.evaluate.finetune import over_repeats
from gnothi.evaluate.freezing import below, freeze, renew
from gnothi.evaluate.labelled import chosen
from gnothi.evaluate.tuning import Start
from gnothi.models.backbone import BackboneSpec, build
from gnothi.randomness import generator
from gnothi.training.lock import owned
from gnothi.training.signals import Interrupted

TUNING, FITTING = sys.modules["gnothi.evaluate.tuning"], sys.modules["gnothi.evaluate.fitting"]
MICRO = BackboneSpec(args={"widths": [4, 8]})
QUICK = {"epochs": 2.0, "batch": 8, "lr": 0.05}


def coloured(n=48, seed=0, groups=False):
    """Images of three classes that differ in colour."""
    g = generator(seed, "coloured")
    y = torch.randperm(n, generator=g) % 3
    base = torch.tensor([[200.0, 90, 90], [90, 200, 90], [90, 90, 200]])[y]
    images = (base[:, :, None, None] + 40 * torch.randn(n, 3, 8, 8, generator=g)).clamp(0, 255).byte()
    return ArraySource(images, y, ("a", "b", "c"), [f"p{i // 6}" for i in range(n)] if groups else None)


def encoder(seed=0, spec=MICRO, name="micro"):
    pixels = Pixels(0.0, 255.0, (0.5,) * 3, (0.25,) * 3)
    return NetworkEncoder(name, build(spec, 3, 8, seed), spec, 3, 8, pixels)


# ---- which rows ---------------------------------------------------------------------------------
def test_a_share_takes_its_part_of_every_class_and_a_larger_one_holds_it():
    labels = np.repeat([0, 1, 2], [200, 100, 20])
    few, words = chosen(labels, "abc", 3, share=0.1)
    more, _ = chosen(labels, "abc", 3, share=0.5)
    assert np.bincount(labels[few]).tolist() == [20, 10, 2] and "32 of 320 labels" in words
    assert set(few) <= set(more) and (np.diff(few) > 0).all()
    assert chosen(labels, "abc", 3, share=0.1)[0].tolist() == few.tolist() != chosen(labels, "abc", 4, share=0.1)[0].tolist()
    assert chosen(labels, "abc", 3)[0].tolist() == list(range(320))


def test_shots_are_so_many_of_every_class_and_more_hold_fewer():
    labels = np.repeat([0, 2], [9, 30])
    two, five = (chosen(labels, "abc", 1, shots=k)[0] for k in (2, 5))
    assert np.bincount(labels[two]).tolist() == [2, 0, 2] and set(two) < set(five)
    with pytest.raises(DataError, match="--shots 10: the class a has 9 labelled rows; at most 9"):
        chosen(labels, "abc", 1, shots=10)


def test_a_share_that_leaves_a_class_without_labels_is_refused():
    with pytest.raises(DataError, match="leaves 1 of 2 classes without any, such as b; --shots 1 gives each one"):
        chosen(np.repeat([0, 1], [97, 3]), "ab", 0, share=0.02)


# ---- who learns ---------------------------------------------------------------------------------
def test_below_a_block_lies_what_its_vector_depends_on():
    resnet = build(BackboneSpec(args={"widths": [4, 8, 8]}), 3, 8, 0)
    assert {n.partition(".")[0] for n in below(resnet, 0, 3, 8)} == {"conv1", "bn1", "layer1"}
    assert {n.partition(".")[0] for n in below(resnet, 2, 3, 8)} == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    vit = build(BackboneSpec(name="micro-vit", args={"width": 12, "depth": 3, "heads": 2}, patch_size=4), 3, 32, 0)
    names = below(vit, 1, 3, 32)
    assert {n for n in names if n.startswith("blocks.")} == {n for n, _ in vit.named_parameters() if n.startswith(("blocks.0", "blocks.1"))}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} < names and "norm.weight" not in names
    assert all(p.requires_grad and p.grad is None for p in vit.parameters()) and vit.training


def trained(start, spec, source, seed=0):
    from gnothi.evaluate.finetune import _Job
    from gnothi.evaluate.run import DataSpec, split

    rows = split(source, coloured(30, 9), DataSpec(), 0)
    return _Job(start, FinetuneSpec(**{**QUICK, **spec}), rows.train, rows, "", seed, DataSpec(), None, False)


def test_frozen_blocks_keep_weights_and_statistics_and_the_rest_learns():
    start = Start("micro", encoder())
    before = toys.parameters(start.encoder.backbone)
    method = trained(start, {"freeze": 0}, coloured())._train(np.arange(48), 0.05, "final")
    for name, value in method.backbone.state_dict().items():
        still = name.startswith(("conv1", "bn1", "layer1"))
        assert torch.equal(value, before[name]) == (still or name.endswith("num_batches_tracked") and still), name
    whole = trained(start, {}, coloured())._train(np.arange(48), 0.05, "final")
    assert not any(torch.equal(v, before[k]) for k, v in whole.backbone.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in start.encoder.backbone.state_dict().items())  # the encoder itself stays


def test_anew_takes_what_lies_above_from_fresh_weights_and_keeps_the_rest():
    own, fresh = build(MICRO, 3, 8, 0), build(MICRO, 3, 8, 1)
    with torch.no_grad():
        for b in own.buffers():
            b.add_(1)
    before = toys.parameters(own)
    frozen = below(own, 0, 3, 8)
    renew(own, fresh, frozen)
    for name, value in own.state_dict().items():
        still = name.startswith(("conv1", "bn1", "layer1"))
        assert torch.equal(value, before[name] if still else fresh.state_dict()[name]), name
    freeze(own, frozen)
    assert not own.layer1.training and not own.bn1.training and own.layer2.training and own.training


def test_frozen_to_the_last_block_it_is_logistic_regression_by_sgd():
    """The head alone, against torch's SGD on the same crops in the same order."""
    source = Subset(coloured(), np.arange(24))
    job = trained(Start("micro", encoder()), {"freeze": -1}, source)
    seen = []
    module = TUNING

    class Listening(module.Batches):
        def __call__(self, number):
            views = super().__call__(number)
            seen.append((views.images[0], views.index))
            return views

    kept, module.Batches = module.Batches, Listening
    try:
        method = job._train(np.arange(24), 0.05, "final")
    finally:
        module.Batches = kept
    seen = seen[:6]
    from gnothi.methods.classify import Classify, ClassifySpec
    from gnothi.randomness import seeded
    from gnothi.schedules import warm_up_cosine

    with seeded(0, "init", 1):
        again = Classify(encoder().backbone, ClassifySpec())
        again.meet(source)
    head, velocity = again.heads[0], {}
    for number, (images, index) in enumerate(seen):
        with torch.no_grad():
            x = encoder().backbone(images, Want()).pooled
        F.cross_entropy(head(x), torch.from_numpy(source.labels)[index]).backward()
        for p in head.parameters():
            slope = p.grad + (1e-4 * p.detach() if p.ndim > 1 else 0)
            velocity[p] = 0.9 * velocity.get(p, 0) + slope
            p.data -= warm_up_cosine(number / 6, 0 / 6, 0.05) * velocity[p]
            p.grad = None
    torch.testing.assert_close(method.heads[0].weight, head.weight)
    torch.testing.assert_close(method.heads[0].bias, head.bias)


# ---- measuring ----------------------------------------------------------------------------------
def test_fine_tuning_learns_what_can_be_learnt_and_compares_by_row():
    train, test = coloured(), coloured(30, 9)
    spec = FinetuneSpec(epochs=8, batch=8, lr=0.05)
    first, second, control = finetune([encoder(), encoder(1, name="other")], train, test, spec=spec, control=True)
    assert first.value > 0.8 and first.n == 30 and control.encoder == "micro-resnet, random weights"
    for r in (second, control):
        expected = paired(r.correct, first.correct)
        assert (r.details["paired"]["value"], r.details["paired"]["low"]) == (expected.value, expected.low) and r.details["paired"][
            "against"
        ] == "micro"
    assert "whole network fine-tuned; all 48 labels; sgd at 0.05 (as given)" in first.protocol and "last epoch" in first.protocol
    assert "minus micro" in table([first, second, control])


def test_the_rate_is_chosen_on_held_out_labels_and_the_test_rows_choose_nothing():
    train, test = coloured(), coloured(30, 9)
    spec = FinetuneSpec(epochs=2, batch=8)
    (a,) = finetune([encoder()], train, test, spec=spec)
    (b,) = finetune([encoder()], train, ArraySource(test.array.flip(0), (test.labels + 1) % 3, test.classes), spec=spec)
    assert a.details["tried"] == b.details["tried"] and a.details["rate"] == b.details["rate"]
    best = max(a.details["tried"], key=lambda t: (t["accuracy"], -t["cross_entropy"]))
    assert a.details["rate"] == best["setting"] and len(a.details["tried"]) == 4 and "10 held-out labelled rows" in a.protocol
    (few,) = finetune([encoder()], train, test, spec=FinetuneSpec(epochs=1, shots=2))
    assert few.details["tried"] == [] and few.details["rate"] == 0.01 and few.details["labelled"] == 6 and "fixed" in few.protocol


def test_a_rate_that_breaks_is_not_chosen():
    job = trained(Start("micro", encoder()), {}, coloured())
    tried = job._try(1e30, np.arange(40), np.arange(40, 48))
    assert tried["accuracy"] == 0 and tried["cross_entropy"] == pytest.approx(np.log(3))


def test_every_encoder_sees_the_same_labels_and_repeats_see_others(tmp_path):
    train, test = coloured(), coloured(30, 9)
    spec = FinetuneSpec(epochs=1, batch=4, lr=0.05, share=0.25)
    once = [finetune([encoder(), encoder(1, name="other")], train, test, spec=spec, seed=s) for s in (5, 6)]
    many = finetune([encoder(), encoder(1, name="other")], train, test, spec=spec, seed=5, repeats=2)
    for i, r in enumerate(many):
        values = [results[i].value for results in once]
        assert r.details["values"] == values and r.value == pytest.approx(np.mean(values)) and r.seeds == (5, 6)
    apart = np.array([results[1].value - results[0].value for results in once])
    half = 12.706204736 * apart.std(ddof=1) / np.sqrt(2)
    p = many[1].details["paired"]
    assert (p["value"], p["high"]) == (pytest.approx(apart.mean()), pytest.approx(apart.mean() + half))
    assert over_repeats(once)[0] == many[0]


def test_a_stopped_run_goes_on_as_if_it_had_not_and_is_an_encoder(tmp_path, monkeypatch):
    train, test = coloured(), coloured(30, 9)
    spec = FinetuneSpec(**QUICK)
    (whole,) = finetune([encoder()], train, test, spec=spec, out=tmp_path / "whole")

    class Stopping(FITTING.Learner):
        def step(self):
            super().step()
            if self.number == 7:
                self.save()
                raise Interrupted("stopped", 2)

    monkeypatch.setattr(FITTING, "Learner", Stopping)
    with pytest.raises(Interrupted, match="stopped after step 7 of 12; the same command goes on") as caught:
        finetune([encoder()], train, test, spec=spec, out=tmp_path / "parts")
    assert caught.value.exit_code == 130
    monkeypatch.undo()
    steps = []

    class Counting(FITTING.Learner):
        def step(self):
            steps.append(self.number)
            super().step()

    monkeypatch.setattr(FITTING, "Learner", Counting)
    (parts,) = finetune([encoder()], train, test, spec=spec, out=tmp_path / "parts")
    assert parts == whole and steps == [7, 8, 9, 10, 11]
    (a,), (b,) = (list((tmp_path / name).glob("*/final/step-0000012.safetensors")) for name in ("whole", "parts"))
    assert a.read_bytes()[-1000:] == b.read_bytes()[-1000:]
    tuned = load(str(a.parent))
    assert tuned.dim == 8 and tuned.embed_source(test).shape == (30, 8)
    assert not np.allclose(tuned.embed_source(test), encoder().embed_source(test))


def test_rates_that_were_tried_are_not_tried_again(tmp_path):
    train, test = coloured(), coloured(30, 9)
    spec = FinetuneSpec(epochs=1, batch=16)
    (first,) = finetune([encoder()], train, test, spec=spec, out=tmp_path)
    tried = sorted(tmp_path.glob("*/rate-*/tried.json"))
    assert len(tried) == 4 and not list(tmp_path.glob("*/rate-*/*.safetensors"))
    said = json.loads(tried[0].read_text())
    tried[0].write_text(json.dumps(said | {"accuracy": 2.0}))
    shutil.rmtree(next(tmp_path.glob("*/final")))
    (second,) = finetune([encoder()], train, test, spec=spec, out=tmp_path)
    assert second.details["rate"] == said["setting"] and first.details["tried"][0]["accuracy"] < 2
    finetune([encoder()], train, test, spec=spec, out=tmp_path, seed=1)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("encoders", "data", "spec", "line"),
    [
        (["pixels"], coloured(), {}, "pixels cannot be fine-tuned, it is not a network"),
        ([encoder()], ArraySource(coloured().array), {}, "needs labels"),
        ([encoder()], coloured(), {"freeze": 2}, "--freeze must lie between -2 and 1 for micro, which has 2 blocks, got 2"),
        ([encoder()], coloured(), {"views": "plein"}, "did you mean plain"),
        ([encoder()], ArraySource(coloured().array[:, :1], coloured().labels), {}, "takes images of 3 channels, these have 1"),
        ([encoder()], ArraySource(coloured().array, np.zeros(48, dtype=int)), {}, "needs two classes"),
    ],
)
def test_a_mistake_is_one_line(encoders, data, spec, line):
    with pytest.raises((SettingError, DataError, EncoderError), match=line) as caught:
        finetune(encoders, data, spec=FinetuneSpec(**spec))
    assert "\n" not in str(caught.value)


def test_a_folder_in_use_and_several_processes_are_refused(tmp_path, monkeypatch):
    spec = FinetuneSpec(**QUICK)
    finetune([encoder()], coloured(), coloured(30, 9), spec=spec, out=tmp_path)
    with owned(next(tmp_path.glob("*/final"))), pytest.raises(SettingError, match="final is in use by another run"):
        finetune([encoder()], coloured(), coloured(30, 9), spec=spec, out=tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="start them without torchrun"):
        finetune([encoder()], coloured(), spec=spec)


def test_settings_that_cannot_be_are_named():
    for given, line in (
        ({"shres": 1}, "finetune.shres: no such setting; did you mean share"),
        ({"share": 0.0}, "finetune.share must be greater than 0"),
        ({"share": 0.1, "shots": 3}, "--share 0.1 and --shots 3 both say"),
        ({"anew": True}, "--anew is about what lies above frozen blocks"),
    ):
        with pytest.raises(SettingError, match=line):
            FinetuneSpec.of(given)
    with pytest.raises(DataError, match="is both training and test data"):
        finetune([encoder()], coloured(), coloured())


@pytest.mark.slow
def test_photographs_by_a_few_labels_from_the_command_line(tmp_path):
    small = ("--set", "data.per_class=6", "--set", "data.per_class_test=3", "--shots", "2", "--epochs", "1", "--batch", "16")
    results = said("evaluate", "finetune", "timm:resnet10t@untrained", "--data", "photos", "--control", "--out", tmp_path / "runs", *small)["results"]
    assert [r["metric"] for r in results] == ["finetune"] * 2 and results[1]["encoder"] == "resnet10t, random weights"
    done = gnothi("evaluate", "finetune", "timm:resnet10t@untrained", "--data", "photos", "--share", "0.1", "--shots", "2")
    assert done.code == 2 and "--share 0.1 and --shots 2 both say" in done.err
