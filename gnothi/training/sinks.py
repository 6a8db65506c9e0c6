"""Other places that metrics can go: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnothi.contracts import SettingError
from gnothi.training.learner import TrainingSpec

Sink = Callable[[dict[str, Any]], None]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics by slashed names: train/terms/simclr, health/std, evaluation/knn."""
    kind = line["kind"]
    if kind == "evaluation":
        return {f"evaluation/{line['metric']}": line["value"]}
    values = {k: v for k, v in line.items() if isinstance(v, float | int) and k not in ("step", "epoch", "seconds")}
    return {f"{kind}/{k}": v for k, v in values.items()} | {f"{kind}/terms/{k}": v for k, v in line.get("terms", {}).items()}


def sinks(spec: TrainingSpec, folder: Path) -> list[Sink]:
    """Those that the settings ask for.

    Raises:
        SettingError: the package for one is not installed.
    """
    made: list[Sink] = []
    if spec.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SettingError("training.tensorboard needs a package more: pip install 'gnothi[tensorboard]'") from None
        writer = SummaryWriter(str(folder / "tensorboard"))

        def write(line: dict[str, Any]) -> None:
            for name, value in numbers(line).items():
                writer.add_scalar(name, value, line["step"])

        made.append(write)
    if spec.wandb is not None:
        try:
            import wandb
        except ImportError:
            raise SettingError("training.wandb needs a package more: pip install 'gnothi[wandb]'") from None
        run = wandb.init(project=spec.wandb, name=folder.name, dir=str(folder))
        made.append(lambda line: run.log(numbers(line), step=line["step"]))
    return made
