"""The folder of a fitted ensemble is an encoder: the same vectors, members checked, and what happens when one is gone."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gnothi import evaluate
from gnothi.contracts import DataError, EncoderError, GnothiError, SettingError
from gnothi.data import ArraySource, Subset
from gnothi.encoders import Encoder, features, load
from gnothi.ensemble import fit, make
from gnothi.randomness import generator

MEMBERS = ["hog", "colour"]
QUICK = {"epochs": 2, "hidden": 16, "width": 8, "batch": 32}


def drawn(n: int = 60, seed: int = 0, channels: int = 3, tint: float = 0) -> ArraySource:
    """Images whose colour goes with their class, more or less."""
    g = generator(seed, "images")
    labels = torch.arange(n) % 3
    base = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[labels, :channels]
    noise = 60 * torch.randn(n, channels, 16, 16, generator=g)
    noise += tint * torch.randn(n, channels, 1, 1, generator=g)
    return ArraySource((base[:, :, None, None] + noise).clamp(0, 255).byte(), labels, ("a", "b", "c"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


def made(tmp_path: Path, combiner: str = "pca", members: list[str] = MEMBERS, **options) -> Path:
    make(members, drawn(), tmp_path / "together", combiner, options)
    return tmp_path / "together"


@pytest.mark.parametrize(("combiner", "options"), [("pca", {"width": 20}), ("average", {}), ("best", {}), ("descent", QUICK), ("amortised", QUICK)])
def test_the_opened_folder_gives_the_vectors_of_the_fit(tmp_path: Path, combiner: str, options: dict) -> None:
    source, new = drawn(), drawn(seed=1)
    folder = made(tmp_path, combiner, **options)
    encoder = load(str(folder))
    members = [load(name).embed_source(source) for name in MEMBERS]
    expected = fit(members, combiner, labels=source.labels, **options).transform([load(name).embed_source(new) for name in MEMBERS])
    assert np.allclose(encoder.embed_source(new), expected, atol=1e-6)
    assert torch.allclose(encoder.embed(new.array), expected, atol=1e-6) and encoder.dim == expected.shape[1]
    assert encoder.embed(new.array[:0]).shape == (0, encoder.dim)
    assert {p.name for p in folder.iterdir()} == {"ensemble.json", "ensemble.safetensors"}


def test_rows_of_a_source_are_embedded_in_the_order_asked(tmp_path: Path) -> None:
    encoder, source = load(str(made(tmp_path))), drawn()
    rows = [5, 3, 59]
    assert np.allclose(encoder.embed_source(source, rows), encoder.embed_source(source)[rows], atol=1e-6)
    assert np.allclose(encoder.embed_source(Subset(source, rows)), encoder.embed_source(source)[rows], atol=1e-6)


def test_features_of_members_that_lie_on_the_disk_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, source = load(str(made(tmp_path))), drawn()  # the fit embedded these images
    monkeypatch.setattr(Encoder, "blocks", lambda *_: pytest.fail("features of a member were computed again"))
    expected = encoder.embed_source(source)
    for rows in (range(60), [5, 3, 59]):
        assert np.allclose(encoder.embed_source(source, rows), expected[rows], atol=1e-6)
    assert np.allclose(features(encoder, source, shared=True), expected, atol=1e-6)


def test_evaluation_takes_it_and_members_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path)
    ours, member = evaluate.run("knn", [str(folder), "hog"], drawn(), drawn(seed=1))
    x, y = ([features(load(name), s) for name in MEMBERS] for s in (drawn(), drawn(seed=1)))
    combined = fit(x)
    expected = evaluate.knn(combined.transform(x), drawn().labels, combined.transform(y), drawn(seed=1).labels)
    assert ours.value == expected.value and ours.encoder == str(folder) and "paired" in member.details
    monkeypatch.setattr(Encoder, "blocks", lambda *_: pytest.fail("features of a member were computed again"))
    assert evaluate.run("linear", [str(folder)], drawn(), drawn(seed=1))[0].n == 60


def test_an_unreadable_image_has_no_vector_and_no_part_in_the_fit(tmp_path: Path) -> None:
    class Broken(ArraySource):
        def image(self, row: int, shrink: int = 1) -> torch.Tensor:
            if row == 7:
                raise DataError("row 7: cut short")
            return drawn().array[row]

        def __len__(self) -> int:
            return 60

        def fingerprint(self) -> str:
            return "broken"

    source = Broken(drawn().array, drawn().labels, ("a", "b", "c"))
    source.array = None
    encoder = make(MEMBERS, source, tmp_path / "x")
    vectors = encoder.embed_source(source)
    assert np.flatnonzero(np.isnan(vectors).any(1)).tolist() == [7] and encoder.ensemble.record["n"] == 59


def test_the_fingerprint_changes_with_settings_and_not_with_the_place(tmp_path: Path) -> None:
    a, b, c = (make(MEMBERS, drawn(), tmp_path / name, "pca", {"power": p}) for name, p in (("a", 0.5), ("b", 0.5), ("c", 0.0)))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert load(str(tmp_path / "a")).fingerprint == a.fingerprint


def test_the_number_of_steps_is_a_part_of_the_name(tmp_path: Path) -> None:
    folder = made(tmp_path, "descent", **QUICK)
    at, whole = load(f"{folder}@steps-0"), load(str(folder))
    x = [load(name).embed(drawn().array) for name in MEMBERS]
    assert torch.allclose(at.embed(drawn().array), whole.ensemble.transform(x, steps=0)) and at.fingerprint != whole.fingerprint
    with pytest.raises(EncoderError, match="steps-N"):
        load(f"{folder}@teacher")
    with pytest.raises(EncoderError, match="takes no steps"):
        load(f"{made(tmp_path)}@steps-3")


# ---- members that changed or are gone ----------------------------------------------------------------
@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path]:
    """An ensemble of colour and of features in a file, which stands beside it."""
    path = tmp_path / "own.npy"
    np.save(path, torch.randn(60, 7, generator=generator(0, "own")).numpy())
    return made(tmp_path, members=["colour", f"features:{path}"]), path


def test_a_member_that_changed_is_named(stored: tuple[Path, Path]) -> None:
    folder, path = stored
    np.save(path, torch.randn(60, 7, generator=generator(1, "own")).numpy())
    with pytest.raises(EncoderError, match=rf"its member features:{path} changed since the fit .* fit again$"):
        load(str(folder))


def test_without_a_member_the_rest_works_and_a_warning_says_so(stored: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    folder, path = stored
    whole = load(str(folder))
    path.unlink()
    with caplog.at_level(logging.WARNING):
        rest = load(str(folder))
    assert f"works without its member features:{path}, which is missing" in caplog.text and "\n" not in caplog.messages[0]
    x = load("colour").embed_source(drawn())
    assert np.allclose(rest.embed_source(drawn()), rest.ensemble.transform([x, None]), atol=1e-6)
    assert rest.fingerprint != whole.fingerprint


def test_without_any_member_nothing_works(tmp_path: Path) -> None:
    path = tmp_path / "own.npy"
    np.save(path, torch.randn(60, 7, generator=generator(0, "own")).numpy())
    folder = made(tmp_path, members=[f"features:{path}"])
    path.unlink()
    with pytest.raises(EncoderError, match="none of its members can be opened"):
        load(str(folder))


def test_members_are_found_where_they_lie_beside_a_folder_that_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inner = make(MEMBERS, drawn(), "inner", "pca", {"width": 9})  # an ensemble may be a member, too
    outer = make(["inner", "colour"], drawn(), "outer", "concatenation")
    expected = outer.embed_source(drawn())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    assert np.array_equal(load("there/outer").embed_source(drawn()), expected) and outer.dim == inner.dim + 48


@pytest.mark.parametrize("damage", ["tensors gone", "tensors altered", "not JSON", "a key gone"])
def test_a_folder_that_is_not_whole_is_refused_in_a_line(tmp_path: Path, damage: str) -> None:
    folder = made(tmp_path)
    about, tensors = folder / "ensemble.json", folder / "ensemble.safetensors"
    if damage == "tensors gone":
        tensors.unlink()
    elif damage == "tensors altered":
        held = load_file(tensors)
        held["0.mean"][0] += 1
        save_file(held, tensors)
    elif damage == "not JSON":
        about.write_text("{")
    else:
        about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k != "members"}))
    with pytest.raises(EncoderError, match="altered" if "altered" in damage else "not a whole ensemble") as error:
        load(str(folder))
    assert "\n" not in str(error.value)


def test_members_that_disagree_on_the_data_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", torch.randn(59, 7, generator=generator(0, "own")).numpy())
    own = f"features:{tmp_path}/own.npy"
    with pytest.raises(EncoderError, match=f"^{own} holds 59 vectors, this source has 60 images"):
        make(["colour", own], drawn(), tmp_path / "together")
    inner = make(MEMBERS, drawn(channels=1), tmp_path / "grey")
    with pytest.raises(EncoderError, match="grey takes images of 1 channel, these have 3"):
        make([inner.name, "hog"], drawn(), tmp_path / "together")
    assert not (tmp_path / "together").exists()


@pytest.mark.parametrize(
    ("value", "words"), [(1.0, "says the same of every image, up to scale; leave it out"), (np.inf, "must be finite numbers, row 0")]
)
def test_a_member_that_says_nothing_is_named(tmp_path: Path, value: float, words: str) -> None:
    np.save(tmp_path / "own.npy", np.full((60, 7), value, dtype=np.float32))
    with pytest.raises(GnothiError, match=words) as error:
        make(["colour", f"features:{tmp_path}/own.npy"], drawn(), tmp_path / "together")
    assert "own.npy" in str(error.value) and not (tmp_path / "together").exists()


@pytest.mark.parametrize("combiner", ["descent", "amortised", "whitened"])
def test_every_kind_works_without_a_member(tmp_path: Path, combiner: str) -> None:
    np.save(tmp_path / "own.npy", torch.randn(60, 7, generator=generator(0, "own")).numpy())
    folder = made(tmp_path, combiner, ["colour", f"features:{tmp_path}/own.npy"], **({} if combiner == "whitened" else QUICK))
    whole = load(str(folder)).embed_source(drawn())
    (tmp_path / "own.npy").unlink()
    rest = load(str(folder))
    found = rest.embed_source(drawn())
    assert np.isfinite(found).all() and found.shape == whole.shape and not np.allclose(found, whole)
    assert torch.allclose(rest.embed(drawn().array), torch.from_numpy(found), atol=1e-5)


def test_images_of_other_channels_are_refused(tmp_path: Path) -> None:
    encoder = load(str(made(tmp_path)))
    with pytest.raises(EncoderError, match="takes images of 3 channels, these have 1"):
        encoder.embed_source(drawn(channels=1))


def test_what_is_no_ensemble_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingError, match="is no ensemble"):
        make(MEMBERS, drawn(), tmp_path / "mine")
    folder = made(tmp_path)
    before = load(str(folder)).fingerprint
    assert load(str(made(tmp_path, power=0.5))).fingerprint != before


def test_what_a_fit_leaves_that_is_killed_between_its_two_files_is_filled_again(tmp_path: Path) -> None:
    """Tensors without what says what they are, halves of either file, and the state of the fit."""
    folder = made(tmp_path)
    before = load(str(folder)).fingerprint
    (folder / "ensemble.json").unlink()
    (folder / ".fit-0123").mkdir()
    for half in (".ensemble.safetensors.123.tmp", ".ensemble.json.77.tmp"):
        (folder / half).write_bytes(b"half")
    assert load(str(made(tmp_path))).fingerprint == before
    assert {p.name for p in folder.iterdir()} == {"ensemble.json", "ensemble.safetensors"}
    (folder / "ensemble.json").unlink()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingError, match="is no ensemble"):
        made(tmp_path)
