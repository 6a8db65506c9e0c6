"""torchvision's data sets by name. torchvision is imported only here, and only when one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gnothi.contracts import DataError, Source
from gnothi.data.arrays import ArraySource
from gnothi.data.dataset import from_dataset

_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TWO = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
# name: torchvision's class, and what to hand it for each split, the one for training first
SETS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", _TRAIN_FLAG),
    "cifar100": ("CIFAR100", _TRAIN_FLAG),
    "mnist": ("MNIST", _TRAIN_FLAG),
    "fashionmnist": ("FashionMNIST", _TRAIN_FLAG),
    "kmnist": ("KMNIST", _TRAIN_FLAG),
    "usps": ("USPS", _TRAIN_FLAG),
    "svhn": ("SVHN", {**_TWO, "extra": {"split": "extra"}}),
    "stl10": ("STL10", {**_TWO, "unlabeled": {"split": "unlabeled"}}),
    "dtd": ("DTD", _THREE),
    "eurosat": ("EuroSAT", {}),
    "fgvcaircraft": ("FGVCAircraft", _THREE),
    "flowers102": ("Flowers102", _THREE),
    "food101": ("Food101", _TWO),
    "gtsrb": ("GTSRB", _TWO),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "val": {"split": "val"}}),
    "oxfordiiitpet": ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "pcam": ("PCAM", _THREE),
}


def open_set(name: str, split: str | None, root: str, download: bool) -> Source:
    """Open one of ``SETS``; those that torchvision holds in memory become arrays.

    The files of CIFAR are pickles, which torchvision reads only where their MD5 is the published one.

    Args:
        name: a key of ``SETS``.
        split: one of its splits, None where it has none.
        root: the folder where it lies or goes to.
        download: whether it may be fetched.

    Raises:
        DataError: it is not there and may not be fetched, or fetching fails.
    """
    try:
        import torchvision.datasets as sets
    except ImportError as error:
        raise DataError(f"{name} needs torchvision, which cannot be imported here ({error}); photos, arrays and folders work without it") from error
    kind, choices = SETS[name]
    where = Path(root).expanduser()
    try:
        dataset = getattr(sets, kind)(str(where), download=download, **(choices[split] if split else {}))
    except (RuntimeError, OSError) as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{name}: cannot be fetched to {where}: {said}"
            if download
            else f"{name} is not in {where}; set data.root to where it lies, or data.download=true to fetch it from the network"
        ) from error
    return _in_memory(dataset, name) or from_dataset(dataset)


def _in_memory(dataset: Any, name: str) -> ArraySource | None:
    images = getattr(dataset, "data", None)
    if images is None or not hasattr(images, "ndim"):
        return None
    labels = next((getattr(dataset, key) for key in ("targets", "labels") if getattr(dataset, key, None) is not None), None)
    if labels is not None and (np.asarray(labels) < 0).all():  # STL-10's unlabelled part says -1 everywhere
        labels = None
    axes = "NHW" if images.ndim == 3 else "NCHW" if images.shape[1] == 3 else "NHWC"
    classes = getattr(dataset, "classes", None) if labels is not None else None
    return ArraySource(images, labels, classes, axes=axes, source=name)
