"""gnothi learns visual representations from unlabelled images, and says honestly how good they are."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "load", "train"]

if TYPE_CHECKING:
    from gnothi.comparison import compare
    from gnothi.encoders import load
    from gnothi.pretrain import train

_LAZY = {"compare": "gnothi.comparison", "load": "gnothi.encoders", "train": "gnothi.pretrain"}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that ``import gnothi`` and ``gnothi --help`` stay light; subpackages too."""
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return import_module(f"gnothi.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"gnothi has no {name}") from None
