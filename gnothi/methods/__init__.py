"""The eight methods, and none, by name."""

from gnothi.methods.barlow import Barlow, BarlowSpec
from gnothi.methods.byol import BYOL, BYOLSpec
from gnothi.methods.dino import DINO, DINOSpec
from gnothi.methods.method import Group, Method, MethodSpec, Space, TeacherSpec
from gnothi.methods.moco import MoCo, MoCoSpec
from gnothi.methods.none import NoMethod, NoneSpec
from gnothi.methods.simclr import SimCLR, SimCLRSpec
from gnothi.methods.simsiam import SimSiam, SimSiamSpec
from gnothi.methods.swav import SwAV, SwAVSpec
from gnothi.methods.vicreg import VICReg, VICRegSpec

METHODS: dict[str, tuple[type[MethodSpec] | type[NoneSpec], type[Method]]] = {
    "simclr": (SimCLRSpec, SimCLR),
    "moco": (MoCoSpec, MoCo),
    "byol": (BYOLSpec, BYOL),
    "simsiam": (SimSiamSpec, SimSiam),
    "swav": (SwAVSpec, SwAV),
    "dino": (DINOSpec, DINO),
    "barlow": (BarlowSpec, Barlow),
    "vicreg": (VICRegSpec, VICReg),
    "none": (NoneSpec, NoMethod),
}

__all__ = ["METHODS", "Group", "Method", "MethodSpec", "Space", "TeacherSpec"]
