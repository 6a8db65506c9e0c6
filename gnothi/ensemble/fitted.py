"""A fitted ensemble on disk, and the encoder that its folder is: ``ensemble.json`` and ``ensemble.safetensors``."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import gnothi
from gnothi import distributed
from gnothi.contracts import EncoderError, GnothiError, SettingError, Source
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, features, load
from gnothi.encoders.encoder import Images, Progress, wrong_channels
from gnothi.encoders.features import kept
from gnothi.ensemble.combine import FORMS, Ensemble, fit, settings_of
from gnothi.ensemble.descent import Descent
from gnothi.ensemble.fitting import Hears
from gnothi.ensemble.members import blocks, readable, together
from gnothi.files import replace_file, write_text
from gnothi.training.checkpoint import digest

log = logging.getLogger(__name__)
ABOUT, TENSORS = "ensemble.json", "ensemble.safetensors"
FORM = 2
"""Of what an unfinished fit holds; one of another form begins again."""
HALF = re.compile(r"\.ensemble\.(json|safetensors)\.\d+\.tmp")
"""What a process leaves that is killed while it writes one of the two."""
UNFINISHED = ".fit-"
"""How a folder begins in which a fit keeps its state; what follows says of which fit, so that no other goes on from it."""


class EnsembleEncoder(Encoder):
    """Members and what combines them.

    Args:
        name: what a person calls it.
        ensemble: the fitted combiner.
        members: in the order of the fit; None for one that is missing.
        channels: of the images it was fitted on.
        options: of ``Ensemble.transform``.
    """

    def __init__(self, name: str, ensemble: Ensemble, members: Sequence[Encoder | None], channels: int, options: dict[str, Any]) -> None:
        self.name, self.ensemble, self.members, self.channels, self.options = name, ensemble, list(members), channels, options
        self.dim = ensemble.width
        about = [ensemble.fingerprint, [None if m is None else m.fingerprint for m in members], options]
        self.fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def embed(self, images: Images) -> Tensor:
        """Embed images that are in memory, as every encoder does."""
        if len(images) == 0:
            return torch.empty(0, self.dim)
        return self.ensemble.transform([None if m is None else m.embed(images) for m in self.members], **self.options)

    def blocks(self, source: Source, rows: Sequence[int] | np.ndarray | None = None, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """The vectors of a source piece by piece; those of each member come from the store of features, all or these rows, or go there."""
        if source.channels != self.channels:
            raise EncoderError(wrong_channels(self.name, int(self.channels or 0), source.channels))
        chosen = None if rows is None else np.asarray(rows)
        readers = [None if m is None else _reader(m, source, chosen, progress) for m in self.members]
        for part in blocks(len(source) if chosen is None else len(chosen)):
            vectors = [None if read is None else read(part) for read in readers]
            whole = readable([x for x in vectors if x is not None])
            combined = np.full((len(whole), self.dim), np.nan, dtype=np.float32)
            combined[whole] = self.ensemble.transform([None if x is None else x[whole] for x in vectors], **self.options).numpy()
            yield combined


def _reader(member: Encoder, source: Source, rows: np.ndarray | None, progress: Progress | None) -> Callable[[slice], np.ndarray]:
    """Gives a part of a member's vectors of the rows: from those of the whole source where they are on disk."""
    if rows is not None and (whole := kept(member, source)) is not None:
        return lambda part: whole[rows[part]]
    vectors = features(member, source, rows, progress=progress)
    return lambda part: np.array(vectors[part])


# ---- making -------------------------------------------------------------------------------------
@distributed.together()
def make(
    encoders: Sequence[str],
    data: str | Source,
    out: str | Path,
    combiner: str = "pca",
    options: dict[str, Any] | None = None,
    *,
    settings: DataSpec = DataSpec(),  # noqa: B008
    seed: int = 0,
    cache: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    hears: Hears | None = None,
) -> EnsembleEncoder | None:
    """Fit an ensemble of encoders and write its folder; a fit that descends and was cut off goes on where the same call is made again.

    Args:
        encoders: names of the members.
        data: images to fit on; their training split where they have splits and none is named. Labels are used by ``best`` only.
        out: the folder.
        combiner: a name of ``COMBINERS``.
        options: its settings.
        settings: of the data, where it is named.
        seed: of all that is random.
        cache: folder of the stored features.
        device: where encoders compute.
        progress: told how many images of a member are embedded.
        hears: told of the steps of a fit that descends, as by ``fit``.

    Returns:
        The ensemble. Under ``torchrun`` each process embeds its share of the images, the first one fits and writes, and the others get None.

    Raises:
        SettingError: there is no such combiner or setting, or the folder holds something else.
        EncoderError: a member cannot be opened.
        DataError: the data cannot be used.
    """
    folder, options = Path(out).expanduser(), options or {}
    spec = settings_of(combiner, options)
    _free(folder)
    source = open_data(data, settings=settings, split="train") if isinstance(data, str) else data
    members = [load(name, device) for name in encoders]
    distributed.start(distributed.device_of(device))  # a wrong name is said before processes wait for each other
    vectors, rows = together([features(m, source, cache=cache, progress=progress, shared=True) for m in members])
    if distributed.rank():
        return None
    labels, groups = (None if x is None else x[rows] for x in (source.labels, source.groups))
    asked = [FORM, combiner, spec.model_dump(mode="json"), seed, [m.fingerprint for m in members], source.fingerprint()]
    state = folder / f"{UNFINISHED}{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}"
    made = fit(vectors, combiner, seed=seed, labels=labels, groups=groups, names=list(encoders), folder=state, hears=hears, **options)
    about = {"name": data if isinstance(data, str) else None, "fingerprint": source.fingerprint(), "n": len(rows)}
    write(folder, made, members, source.channels, about)
    for done in folder.glob(UNFINISHED + "*"):
        shutil.rmtree(done)
    for half in (p for p in folder.iterdir() if HALF.fullmatch(p.name)):
        half.unlink(missing_ok=True)
    return EnsembleEncoder(str(out), made, members, source.channels, {})


def _free(folder: Path) -> None:
    """Refuse what is neither new nor an ensemble's, finished or not."""
    if not folder.exists() or (folder / ABOUT).exists():
        return
    if not folder.is_dir() or not all(p.name.startswith(UNFINISHED) or p.name == TENSORS or HALF.fullmatch(p.name) for p in folder.iterdir()):
        raise SettingError(f"--out {folder} exists and is no ensemble; name a new folder")


def write(
    folder: Path, made: Ensemble, members: Sequence[Encoder], channels: int, source: dict[str, Any], near: Sequence[str] | None = None, **more: Any
) -> None:
    """Write the two files, tensors first: without ``ensemble.json`` there is no ensemble.

    Args:
        folder: where.
        made: the fitted combiner.
        members: whose names and fingerprints are kept.
        channels: of the images.
        source: what is known of the images that were fitted.
        near: where each member lies, relative to the folder; None finds it out.
        more: what else ``ensemble.json`` says.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in made.fitted.tensors().items()}
    places = near or [_near(m.name, folder) for m in members]
    about = {
        "gnothi": gnothi.__version__,
        "combiner": made.combiner,
        "settings": made.spec.model_dump(mode="json"),
        "fitted": made.fitted.about(),
        "members": [
            {"name": m.name, "near": place, "fingerprint": m.fingerprint, "width": d}
            for m, place, d in zip(members, places, made.widths, strict=True)
        ],
        "channels": channels,
        "source": source,
        "record": made.record,
        "digest": digest(tensors),
        **more,
    }
    replace_file(folder / TENSORS, lambda path: _bytes(path, save(tensors)))
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")


def _near(name: str, folder: Path) -> str:
    """Where a folder lies relative to the ensemble's, so that both may be moved together; any other name as it is."""
    return os.path.relpath(name, folder) if Path(name.partition("@")[0]).expanduser().exists() else name


def _bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


# ---- opening ------------------------------------------------------------------------------------
def ensemble_encoder(name: str, folder: Path, marks: list[str], device: torch.device) -> EnsembleEncoder:
    """The encoder of a folder; ``folder@steps-20`` says how many steps an ensemble that descends takes.

    Raises:
        EncoderError: a member changed, all are missing, or the folder is not whole. Of a missing one a warning is logged.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        tensors = load_file(folder / TENSORS)
        spec = settings_of(about["combiner"], about["settings"])
        fitted = FORMS[about["fitted"]["form"]](about["fitted"], tensors, spec)
        widths, channels = [int(m["width"]) for m in about["members"]], int(about["channels"])
        changed = digest(tensors) != about["digest"]
    except (KeyError, TypeError, ValueError, OSError, SafetensorError, SettingError) as error:
        raise EncoderError(f"{folder} is not a whole ensemble: {type(error).__name__} {str(error)[:80]}") from None
    if changed:
        raise EncoderError(f"{folder}/{TENSORS} was altered since it was written; fit the ensemble again")
    members = [_member(folder, known, device) for known in about["members"]]
    if not any(members):
        raise EncoderError(f"{folder}: none of its members can be opened, the first is {about['members'][0]['name']}")
    made = Ensemble(about["combiner"], spec, widths, fitted, about["record"])
    return EnsembleEncoder(name, made, members, channels, _options(name, marks, fitted))


def _member(folder: Path, known: dict[str, Any], device: torch.device) -> Encoder | None:
    """A member where it lay relative to the folder, else under its name."""
    other, why = None, ""
    for name in (str(folder / known["near"]), known["name"]):
        try:
            opened = load(name, device)
        except GnothiError as error:
            why = str(error)
            continue
        if opened.fingerprint == known["fingerprint"]:
            return opened
        other = opened
    if other is not None:
        raise EncoderError(
            f"{folder}: its member {known['name']} changed since the fit (fingerprint {other.fingerprint}, was {known['fingerprint']}); fit again"
        )
    log.warning("%s works without its member %s, which is missing: %s", folder, known["name"], why)
    return None


def _options(name: str, marks: list[str], fitted: Any) -> dict[str, Any]:
    if not marks:
        return {}
    mark = marks[0]
    if len(marks) > 1 or not mark.startswith("steps-") or not mark[6:].isdigit() or not isinstance(fitted, Descent):
        what = "steps-N, such as steps-20" if isinstance(fitted, Descent) else "nothing: it takes no steps"
        raise EncoderError(f"{name}: after @ of this ensemble stands {what}, got {'@'.join(marks)}")
    return {"steps": int(mark[6:])}
