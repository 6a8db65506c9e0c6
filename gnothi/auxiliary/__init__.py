"""Auxiliary objectives, by name."""

from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.auxiliary.rotation import Rotation, RotationSpec

AUXILIARIES: dict[str, tuple[type[AuxiliarySpec], type[Auxiliary]]] = {
    "rotation": (RotationSpec, Rotation),
}

__all__ = ["AUXILIARIES", "Auxiliary", "AuxiliarySpec"]
