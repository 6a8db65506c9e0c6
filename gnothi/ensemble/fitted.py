"""A fitted ensemble on disk, and the encoder that its folder is: ``ensemble.json`` and ``ensemble.safetensors``."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

import gnothi
from gnothi.contracts import EncoderError, GnothiError, SettingError, Source
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.encoders import Encoder, features, load
from gnothi.encoders.encoder import Images, Progress, wrong_channels
from gnothi.ensemble.combine import FORMS, Ensemble, fit, settings_of
from gnothi.ensemble.members import blocks
from gnothi.training.checkpoint import digest, replace_file, write_text

log = logging.getLogger(__name__)
ABOUT, TENSORS = "ensemble.json", "ensemble.safetensors"


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
        """The vectors of a source piece by piece; those of each member come from the store of features, or go there."""
        if source.channels != self.channels:
            raise EncoderError(wrong_channels(self.name, int(self.channels or 0), source.channels))
        found = [None if m is None else features(m, source, rows, progress=progress) for m in self.members]
        for part in blocks(len(source) if rows is None else len(rows)):
            vectors = [None if x is None else np.array(x[part]) for x in found]
            whole = readable([x for x in vectors if x is not None])
            combined = np.full((len(whole), self.dim), np.nan, dtype=np.float32)
            combined[whole] = self.ensemble.transform([None if x is None else x[whole] for x in vectors], **self.options).numpy()
            yield combined


def readable(features: Sequence[np.ndarray]) -> np.ndarray:
    """[N] bool: the images that every member could read."""
    return np.logical_and.reduce([~np.isnan(x[:, 0]) for x in features])


# ---- making -------------------------------------------------------------------------------------
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
) -> EnsembleEncoder:
    """Fit an ensemble of encoders and write its folder.

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

    Raises:
        SettingError: there is no such combiner or setting, or the folder holds something else.
        EncoderError: a member cannot be opened.
        DataError: the data cannot be used.
    """
    folder, options = Path(out).expanduser(), options or {}
    settings_of(combiner, options)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / ABOUT).exists())):
        raise SettingError(f"--out {folder} exists and is no ensemble; name a new folder")
    source = open_data(data, settings=settings, split="train") if isinstance(data, str) else data
    members = [load(name, device) for name in encoders]
    vectors = [features(m, source, cache=cache, progress=progress) for m in members]
    whole = readable(vectors)
    labels, groups = source.labels, source.groups
    if not whole.all():
        vectors = [x[whole] for x in vectors]
        labels, groups = (None if x is None else x[whole] for x in (labels, groups))
    made = fit(vectors, combiner, seed=seed, labels=labels, groups=groups, names=list(encoders), **options)
    about = {"name": data if isinstance(data, str) else None, "fingerprint": source.fingerprint(), "n": int(whole.sum())}
    write(folder, made, members, source.channels, about)
    return EnsembleEncoder(str(out), made, members, source.channels, {})


def write(folder: Path, made: Ensemble, members: Sequence[Encoder], channels: int, source: dict[str, Any]) -> None:
    """Write the two files, tensors first: without ``ensemble.json`` there is no ensemble."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in made.fitted.tensors().items()}
    about = {
        "gnothi": gnothi.__version__,
        "combiner": made.combiner,
        "settings": made.spec.model_dump(mode="json"),
        "fitted": made.fitted.about(),
        "members": [
            {"name": m.name, "near": _near(m.name, folder), "fingerprint": m.fingerprint, "width": d}
            for m, d in zip(members, made.widths, strict=True)
        ],
        "channels": channels,
        "source": source,
        "record": made.record,
        "digest": digest(tensors),
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
    """A member under its name, else where it lay relative to the folder."""
    opened, why = None, ""
    for name in (known["name"], str(folder / known["near"])):
        try:
            opened = load(name, device)
            break
        except GnothiError as error:
            why = why or str(error)
    if opened is None:
        log.warning("%s works without its member %s, which is missing: %s", folder, known["name"], why)
        return None
    if opened.fingerprint != known["fingerprint"]:
        raise EncoderError(
            f"{folder}: its member {known['name']} changed since the fit (fingerprint {opened.fingerprint}, was {known['fingerprint']}); fit again"
        )
    return opened


def _options(name: str, marks: list[str], fitted: Any) -> dict[str, Any]:
    if not marks:
        return {}
    mark = marks[0]
    if len(marks) > 1 or not mark.startswith("steps-") or not mark[6:].isdigit() or not hasattr(fitted, "log"):
        what = "steps-N, such as steps-20" if hasattr(fitted, "log") else "nothing: it takes no steps"
        raise EncoderError(f"{name}: after @ of this ensemble stands {what}, got {'@'.join(marks)}")
    return {"steps": int(mark[6:])}
