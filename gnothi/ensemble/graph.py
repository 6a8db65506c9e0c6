"""A fitted ensemble without loops: what members say of images in, vectors out. For ONNX, and in words of plain torch for a card."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

import gnothi
from gnothi.contracts import EncoderError
from gnothi.encoders import Encoder
from gnothi.ensemble.combine import Ensemble
from gnothi.ensemble.descent import Descent
from gnothi.ensemble.fitted import EnsembleEncoder


class Combined(nn.Module):
    """What combines the members of an ensemble: a linear map, or that and a network.

    Args:
        encoder: the ensemble.

    Raises:
        EncoderError: it descends, or a member is missing.
    """

    def __init__(self, encoder: EnsembleEncoder) -> None:
        super().__init__()
        self.encoder, self.ensemble, fitted = encoder, encoder.ensemble, encoder.ensemble.fitted
        self.members: list[Encoder] = [m for m in encoder.members if m is not None]
        if len(self.members) < len(encoder.members):
            raise EncoderError(f"{encoder.name} cannot be exported: a member of it is missing, and an export holds all of them")
        if isinstance(fitted, Descent):
            if encoder.options.get("steps", fitted.spec.steps):
                remedy = (
                    f"{encoder.name.partition('@')[0]}@steps-0 is the network alone, which can" if not fitted.free else "--combiner amortised can"
                )
                raise EncoderError(f"{encoder.name} cannot be exported: every image takes steps of a descent, which is no fixed graph; {remedy}")
            alone = fitted.spec.model_copy(update={"steps": 0})
            self.ensemble = Ensemble(self.ensemble.combiner, alone, self.ensemble.widths, fitted, self.ensemble.record)
        self.fitted, self.finish = fitted, None
        if isinstance(fitted, Descent) and not fitted.free:
            self.finish = fitted.finish  # free codes that take no step are the start

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[N, D_j] a member to [N, width]."""
        if not isinstance(self.fitted, Descent):
            return self.fitted.transform(features)
        codes = self.fitted.start.transform(features)
        return codes if self.finish is None else self.finish.transform([codes])

    def card(self, low: float, high: float, resize: str) -> str:
        """The page of an exported folder; the range of the pixels and how images are resized are the members'."""
        encoder, names = self.encoder, ", ".join(m.name for m in self.members)
        shared = {"low": low, "high": high, "resize": resize, "channels": encoder.channels, "dim": encoder.dim, "code": self.code}
        known = {"combiner": self.ensemble.combiner, "count": len(self.members), "names": names, "encoder": encoder.name}
        return CARD.format(**shared, **known, version=gnothi.__version__, fingerprint=encoder.fingerprint)

    @property
    def code(self) -> str:
        """The same in plain torch, as the last lines of ``CARD``'s function."""
        if not isinstance(self.fitted, Descent):
            return '    return linear("", about["fitted"], features)'
        lines = ['    start = about["fitted"]["start"]', '    codes = linear("start.", start, features)']
        if not self.fitted.free:
            lines[1] = '    codes = linear("start.linear.", start["linear"], features)'
            lines += NETWORK
        finish = 'linear("finish.", about["fitted"]["finish"], [codes])'
        return "\n".join([*lines, f"    return {'codes' if self.finish is None else finish}"])


NETWORK = [
    '    scaled = [normalize(x) - held[f"targets.{j}.mean"] for j, x in enumerate(features)]',
    '    scales = [held[f"targets.{j}.scale"] for j in range(len(features))]',
    '    seen = start["scale"] * torch.cat([x @ s if s.ndim == 2 else x * s for x, s in zip(scaled, scales)], 1)',
    '    hidden = (seen @ held["start.network.0.weight"].T + held["start.network.0.bias"]).relu()',
    '    codes = codes + hidden @ held["start.network.2.weight"].T + held["start.network.2.bias"]',
]
CARD = """# {combiner} of {count} encoders, {dim} numbers an image

Written by gnothi {version} from {encoder}: {names}.
It takes images of {channels} channels with numbers from {low:g} to {high:g}; each member has its own size and statistics in `member-*/config.json`
({resize}). Fingerprint {fingerprint}.

In gnothi, the path of this folder is the name of the encoder. Without gnothi, in this folder:

```python
import json
import timm, torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate, normalize, pad

with open("ensemble.json") as file:
    about = json.load(file)
held, members = load_file("ensemble.safetensors"), []
for member in about["members"]:
    with open(member["near"] + "/config.json") as file:
        config = json.load(file)
    net = timm.create_model(config["timm"]["name"], **config["timm"]["arguments"])
    if config["timm"]["first_convolution"] is not None:
        net.conv1 = torch.nn.Conv2d(config["channels"], config["timm"]["first_convolution"], 3, 1, 1, bias=False)
        net.maxpool = torch.nn.Identity()
    net.load_state_dict(load_file(member["near"] + "/model.safetensors"), strict=True)
    members.append((net.eval(), config["size"], config["pixels"]))

def said(net, size, pixels, images):
    mean, std = (torch.tensor(pixels[k])[:, None, None] for k in ("mean", "std"))
    side = min(images.shape[2:])
    top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
    x = (images[:, :, top : top + side, left : left + side].float() - pixels["low"]) / (pixels["high"] - pixels["low"])
    return net((interpolate(x, size, mode="bilinear", antialias=True) - mean) / std)

def linear(front, about, features):
    total = 0
    for j, (x, at) in enumerate(zip(features, about["at"])):
        x = normalize(x) - held[f"{{front}}{{j}}.mean"]
        x = x @ held[f"{{front}}{{j}}.matrix"] if f"{{front}}{{j}}.matrix" in held else x
        total = total + pad(x, (at, about["width"] - at - x.shape[1]))
    return normalize(total) if about["unit"] else total

@torch.inference_mode()
def embed(images):
    \"\"\"[N, {channels}, H, W], numbers from {low:g} to {high:g} -> [N, {dim}].\"\"\"
    features = [said(*member, images) for member in members]
{code}
```

Where the long side exceeds the short one by an odd number of pixels, gnothi cuts in the middle of a pixel and this code half a pixel beside it.
"""
