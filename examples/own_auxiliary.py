"""An auxiliary of your own: beside any method, say where the second crop lies, seen from the first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import gnothi
from gnothi.auxiliary import AUXILIARIES, Auxiliary, AuxiliarySpec
from gnothi.contracts import Carry, Outputs, SettingError, Step, Views
from gnothi.methods import Method
from gnothi.views.batches import ViewsSpec


class PlaceSpec(AuxiliarySpec):
    """Settings beside weight and start: auxiliary.place.hidden=512 then works."""

    hidden: int = Field(default=256, gt=0)


class Place(Auxiliary):
    """A small head that reads both representations."""

    name = "place"
    spec: PlaceSpec

    def __init__(self, method: Method, spec: PlaceSpec) -> None:
        super().__init__(method, spec)
        width = int(method.backbone.width)
        self.head = nn.Sequential(nn.Linear(2 * width, spec.hidden), nn.ReLU(), nn.Linear(spec.hidden, 4))

    @classmethod
    def check(cls, views: ViewsSpec) -> None:
        """Refuse what leaves no place to tell, before anything is built."""
        if len(views.global_crops) < 2 or any(crop.turns for crop in views.global_crops):
            raise SettingError("auxiliary.place needs two global views with an up; take another views.recipe, or leave it out")

    def forward(self, method: Method, views: Views, outputs: Outputs, step: Step) -> tuple[dict[str, Tensor], Carry]:
        said = self.head(torch.cat([branch.encoding.pooled for branch in outputs.online[:2]], 1))
        return {self.name: F.smooth_l1_loss(said, seen_from_the_first(views))}, Carry()


def seen_from_the_first(views: Views) -> Tensor:
    """Offset of the centres in sides of the first crop, mirrored as that crop is, and the logarithm of the sides' ratio: [B, 4]."""
    (a, b), mirrored = views.boxes[:2], views.flips[0]
    offset = ((b[:, :2] + b[:, 2:] / 2) - (a[:, :2] + a[:, 2:] / 2)) / a[:, 2:]
    across = torch.where(mirrored, -offset[:, 0], offset[:, 0])
    return torch.cat([torch.stack([across, offset[:, 1]], 1), (b[:, 2:] / a[:, 2:]).log()], 1)


AUXILIARIES["place"] = (PlaceSpec, Place)  # from now on a name like any other

if __name__ == "__main__":
    settings = {"auxiliary": {"place": {"weight": 0.5}}, "training": {"epochs": 2}, "data": {"per_class": 40}}
    run = gnothi.train("photos", out="runs/own-auxiliary", settings=settings)
    lines = [line for line in run.metrics if line["kind"] == "train"]
    print("place: {:.3f} at first, {:.3f} at the end".format(*(lines[i]["terms"]["place"] for i in (0, -1))))
