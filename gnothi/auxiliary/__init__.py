"""Auxiliary objectives, by name."""

from gnothi.auxiliary.auxiliary import Auxiliary, AuxiliarySpec

AUXILIARIES: dict[str, tuple[type[AuxiliarySpec], type[Auxiliary]]] = {}

__all__ = ["AUXILIARIES", "Auxiliary", "AuxiliarySpec"]
