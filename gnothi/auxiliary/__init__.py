"""Auxiliary objectives, by name."""

from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec
from gnothi.auxiliary.jigsaw import Jigsaw, JigsawSpec
from gnothi.auxiliary.layers import Layers, LayersSpec
from gnothi.auxiliary.local import Local, LocalSpec
from gnothi.auxiliary.rotation import Rotation, RotationSpec

AUXILIARIES: dict[str, tuple[type[AuxiliarySpec], type[Auxiliary]]] = {
    "rotation": (RotationSpec, Rotation),
    "jigsaw": (JigsawSpec, Jigsaw),
    "layers": (LayersSpec, Layers),
    "local": (LocalSpec, Local),
}

__all__ = ["AUXILIARIES", "Auxiliary", "AuxiliarySpec"]
