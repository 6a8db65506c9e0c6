"""The eight methods, none, and the two of students, by name."""

from gnothi.methods.barlow import Barlow, BarlowSpec
from gnothi.methods.byol import BYOL, BYOLSpec
from gnothi.methods.classify import Classify, ClassifySpec
from gnothi.methods.dino import DINO, DINOSpec
from gnothi.methods.distil import Distil, DistilSpec
from gnothi.methods.method import Group, Method, MethodSpec, Space, TeacherSpec
from gnothi.methods.moco import MoCo, MoCoSpec
from gnothi.methods.none import NoMethod, NoneSpec
from gnothi.methods.simclr import SimCLR, SimCLRSpec
from gnothi.methods.simsiam import SimSiam, SimSiamSpec
from gnothi.methods.swav import SwAV, SwAVSpec
from gnothi.methods.vicreg import VICReg, VICRegSpec

METHODS: dict[str, tuple[type[MethodSpec] | type[NoneSpec] | type[ClassifySpec] | type[DistilSpec], type[Method]]] = {
    "simclr": (SimCLRSpec, SimCLR),
    "moco": (MoCoSpec, MoCo),
    "byol": (BYOLSpec, BYOL),
    "simsiam": (SimSiamSpec, SimSiam),
    "swav": (SwAVSpec, SwAV),
    "dino": (DINOSpec, DINO),
    "barlow": (BarlowSpec, Barlow),
    "vicreg": (VICRegSpec, VICReg),
    "none": (NoneSpec, NoMethod),
    "classify": (ClassifySpec, Classify),
    "distil": (DistilSpec, Distil),
}
STUDENTS = ("classify", "distil")
"""Methods that are told what to say of each image."""

__all__ = ["METHODS", "STUDENTS", "Group", "Method", "MethodSpec", "Space", "TeacherSpec"]
