"""Training on labels, by the loop of pre-training: begun, or gone on with where a folder stands."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnothi.contracts import Views
from gnothi.methods.alone import Alone
from gnothi.training import checkpoint
from gnothi.training.learner import Learner
from gnothi.training.lock import owned
from gnothi.training.objective import Objective
from gnothi.training.optimisers import OptimiserSpec
from gnothi.training.progress import Silent, display
from gnothi.training.signals import Interrupted
from gnothi.training.spec import TrainingSpec


def fit(
    method: Alone,
    batches: Callable[[int], Views],
    *,
    optimiser: OptimiserSpec,
    total: int,
    per_epoch: int,
    seed: int,
    folder: Path | None,
    words: str,
    shown: bool,
    **settings: Any,
) -> None:
    """Train to the last step.

    Args:
        method: what learns, on its device.
        batches: step number -> Views; closed at the end where it can be.
        optimiser: with its rate.
        total: steps.
        per_epoch: steps of an epoch.
        seed: of everything random.
        folder: where checkpoints lie, and the newest is gone on with; None keeps nothing.
        words: what is trained, for the display.
        shown: whether to show progress.
        settings: of training: batch, clip.

    Raises:
        RunError: a term is not finite.
        SettingError: the folder is in use.
        Interrupted: a signal came; a checkpoint was written first.
    """
    training = TrainingSpec(log_every="5%", checkpoint_every="10%", keep=1, **settings)
    learner = Learner(Objective(method), batches, spec=training, optimiser=optimiser, total=total, per_epoch=per_epoch, seed=seed, folder=folder)
    with contextlib.nullcontext() if folder is None else owned(folder):
        saved = None if folder is None else checkpoint.newest(folder)
        if saved is not None:
            learner.resume(saved)
        elif folder is not None:
            (folder / "metrics.jsonl").unlink(missing_ok=True)
        learner.journal.progress = display(total, learner.number) if shown and learner.number < total else Silent()
        learner.journal.progress.say(words + (f", goes on after step {learner.number}" if learner.number else ""))
        try:
            learner.fit()
        except Interrupted as stopped:
            later = "nothing was kept, for there is no --out" if folder is None else "the same command goes on"
            raise Interrupted(f"stopped after step {learner.number} of {total}; {later}", stopped.exit_code - 128) from None
        finally:
            learner.journal.progress.close()
            getattr(batches, "close", bool)()


def named(name: str, seed: int, about: list[Any]) -> str:
    """A folder's name that tells runs apart: by who, the seed, and a digest of all that training depends on."""
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    words = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    return f"{words}-seed-{seed}-{digest}"
