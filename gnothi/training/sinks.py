"""Other places that metrics can go: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnothi.contracts import SettingError
from gnothi.training.spec import TrainingSpec

Sink = Callable[[dict[str, Any]], None]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics by slashed names: train/terms/simclr, health/std, evaluation/knn."""
    kind = line["kind"]
    if kind == "evaluation":
        return {f"evaluation/{line['metric']}": line["value"]}
    values = {k: v for k, v in line.items() if isinstance(v, float | int) and k not in ("step", "epoch", "seconds")}
    return {f"{kind}/{k}": v for k, v in values.items()} | {f"{kind}/terms/{k}": v for k, v in line.get("terms", {}).items()}


def check(spec: TrainingSpec) -> None:
    """See whether the packages are installed that the settings ask for.

    Raises:
        SettingError: one is not.
    """
    for name in ("tensorboard", "wandb"):
        if getattr(spec, name) and importlib.util.find_spec(name) is None:
            raise SettingError(f"training.{name} needs a package more: pip install 'gnothi[{name}]'")


def sinks(spec: TrainingSpec, folder: Path) -> list[Sink]:
    """Those that the settings ask for; ``check`` comes first."""
    made: list[Sink] = []
    if spec.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))

        def write(line: dict[str, Any]) -> None:
            for name, value in numbers(line).items():
                writer.add_scalar(name, value, line["step"])

        made.append(write)
    if spec.wandb is not None:
        import wandb

        run = wandb.init(project=spec.wandb, name=folder.name, dir=str(folder))
        made.append(lambda line: run.log(numbers(line), step=line["step"]))
    return made
