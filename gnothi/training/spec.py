"""Settings of the loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gnothi.contracts import Spec


class TrainingSpec(Spec):
    """How long, in what portions, and what happens along the way."""

    epochs: float | None = Field(default=None, gt=0, le=1e9)
    """Passes over the data. None: by a rule of the recipe."""
    batch: int | None = Field(default=None, gt=1)
    """Images a step, over all processes. None: by a rule of the recipe."""
    accumulate: int = Field(default=1, gt=0)
    """Micro-batches a step, where the method's loss is a mean over images."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient. None: not clipped."""
    clip_kind: Literal["global", "tensor"] = "global"
    """Norm of all gradients together, or of each tensor's (as DINO's code)."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the backbone's matrix products; heads and losses stay in fp32. None: bf16 where the processor has instructions for it, else fp32."""
    channels_last: bool = True
    """Memory format of images and convolutions; the faster one nearly everywhere."""
    compile: bool = False
    """Compile the backbone; pays on long runs."""
    recompute: bool = False
    """Activation checkpointing: the backbone's blocks keep their inputs only and compute the rest once more for the gradient. Same numbers."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each process of torchrun holds: "ddp" all parameters; "fsdp" its share of parameters, gradients, teacher and optimiser (FSDP2)."""
    plain_statistics: bool = True
    """After the last step, BatchNorm takes its running statistics anew from whole images with their own colours, which is what evaluation shows."""
    threads: int | None = Field(default=None, gt=0, le=4096)
    """Compute threads. None: all cores, less the loader processes. Recorded in the run, so that a resumed run repeats it bit for bit."""
    workers: int | None = Field(default=None, ge=0, le=1024)
    """Loader processes. None: none for images in memory, else by the number of cores."""
    log_every: str = "0.5%"
    """How often a line of metrics is written."""
    health_every: str = "5%"
    """How often health is measured."""
    evaluate_every: str = "10%"
    """How often k-NN runs on the part held out."""
    checkpoint_every: str = "5%"
    """How often a checkpoint is written."""
    keep: int = Field(default=2, gt=0)
    """How many checkpoints stay."""
    tensorboard: bool = False
    """Write metrics for TensorBoard into the run's folder too (extra: tensorboard)."""
    wandb: str | None = None
    """Send metrics to this Weights & Biases project too (extra: wandb)."""
