"""An encoder as a folder for others: weights and a card for plain timm, ONNX with the preprocessing inside, both compared with the encoder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gnothi
from gnothi.contracts import DataError, EncoderError, Encoding, Pixels, RunError, SettingError, Source
from gnothi.data import DataSpec
from gnothi.data import open as open_data
from gnothi.data.folder import printable
from gnothi.encoders import Encoder, load
from gnothi.encoders.encoder import place_of
from gnothi.encoders.network import NetworkEncoder
from gnothi.ensemble.fitted import EnsembleEncoder
from gnothi.ensemble.fitted import write as write_ensemble
from gnothi.ensemble.graph import Combined
from gnothi.files import replace_folder
from gnothi.models.backbone import BackboneSpec, TimmForm, timm_form
from gnothi.models.weights import weights
from gnothi.training import twice

TOLERANCE = 1e-5
"""Largest difference that a reader may show, over the largest number in the embeddings."""
IMAGES = 12
"""Images that are compared."""
RESIZE = "central square of the short side, then bilinear with antialiasing"
TYPES = {(0.0, 255.0): torch.uint8, (0.0, 65535.0): torch.uint16}
"""Types of the ONNX input by range of the pixels; float32 for others."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its readers are from the source."""

    folder: str
    files: tuple[str, ...]
    encoder: str
    fingerprint: str
    dim: int
    n: int
    """Images compared."""
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    """By reader (timm, onnx): ``largest`` absolute difference, and ``relative``, the same over the largest number in the embeddings."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return asdict(self) | {"files": list(self.files)}

    def lines(self) -> list[str]:
        """What a person is told."""
        found = [f"{k:6s} differs by {v['largest']:.1e} at most, {v['relative']:.1e} of the largest number" for k, v in self.parity.items()]
        return [f"{self.encoder} -> {self.folder}: {', '.join(self.files)}", *found, f"compared on {self.n} images, in a process without gnothi"]


def export(encoder: str | Encoder, to: str | Path, *, onnx: bool | None = None, data: str | Source | None = None) -> Exported:
    """Write an encoder to a folder, whole or not at all, and check in a process without gnothi that it says the same there.

    Args:
        encoder: its name, or itself; a network, or an ensemble of networks that takes no steps of a descent.
        to: the folder; it may be new, empty, or an earlier export, which is replaced.
        onnx: write ``model.onnx`` too. None: where what it needs is installed.
        data: images to compare on. None: those the run was trained on, or the photographs where they fit.

    Returns:
        What was written, with the largest differences found.

    Raises:
        EncoderError: the encoder or a member is not a network, or not one that plain timm can make; or the ensemble descends.
        SettingError: the folder holds something else, or ONNX is not installed.
        RunError: a reader says something else than the encoder; nothing is written.
    """
    encoder = load(encoder, "cpu") if isinstance(encoder, str) else encoder
    to = Path(to).expanduser()
    combined = Combined(encoder) if isinstance(encoder, EnsembleEncoder) else None
    networks = [_network(encoder)] if combined is None else _members(encoder.name, combined)
    network = networks[0][0]
    _free(to)
    onnx = _onnx_possible(onnx)
    images = _images(network, data)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        if combined is None:
            _write(folder, *networks[0], onnx)
        else:
            _write_ensemble(folder, combined, networks, onnx)
        parity = _parity(folder, encoder, _given(network, images), onnx)
        config = folder / ("config.json" if combined is None else "ensemble.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"parity": parity}, indent=2) + "\n")
        files = tuple(sorted(p.name for p in folder.iterdir()))
        _settle(folder, to, Path(temporary) / "replaced")
    return Exported(str(to), files, encoder.name, encoder.fingerprint, encoder.dim, len(images), parity)


# ---- what can be exported, and where ------------------------------------------------------------
def _network(encoder: Encoder) -> tuple[NetworkEncoder, TimmForm]:
    if not isinstance(encoder, NetworkEncoder):
        raise EncoderError(f"{encoder.name} cannot be exported: it is not a network; runs, exported folders and timm:NAME are")
    try:
        return encoder, timm_form(encoder.backbone, encoder.channels)
    except SettingError as error:
        raise EncoderError(f"{encoder.name} cannot be exported: {error}") from None


def _members(name: str, combined: Combined) -> list[tuple[NetworkEncoder, TimmForm]]:
    """Those of an ensemble, which one graph must be able to feed with the same images."""
    found = []
    for member in combined.members:
        try:
            found.append(_network(member))
        except EncoderError as error:
            raise EncoderError(f"{name} cannot be exported: its member {str(error).replace(' be exported', '', 1)}") from None
    ranges = {(_pixels(network).low, _pixels(network).high): network.name for network, _ in found}
    if len(ranges) > 1:
        said = " and ".join(f"{n} from {low:g} to {high:g}" for (low, high), n in ranges.items())
        raise EncoderError(f"{name} cannot be exported: its members take images of different ranges, {said}")
    return found


def _free(to: Path) -> None:
    if not to.exists() or (to.is_dir() and (_is_export(to) or not any(to.iterdir()))):
        return
    raise SettingError(f"--to must be a new or empty folder or an earlier export, {to} is {'something else' if to.is_dir() else 'a file'}")


def _is_export(folder: Path) -> bool:
    for name in ("config.json", "ensemble.json"):
        try:
            return bool(json.loads((folder / name).read_text()).get("format") == "gnothi-export")
        except (OSError, ValueError, AttributeError):
            continue
    return False


def _settle(folder: Path, to: Path, aside: Path) -> None:
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    replace_folder(folder, to, aside)


def _onnx_possible(asked: bool | None) -> bool:
    missing = [m for m in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(m) is None]
    if asked and missing:
        raise SettingError(f"ONNX needs {missing[0]}, which is not installed: pip install 'gnothi[onnx]', or leave ONNX out with --no-onnx")
    return not missing if asked is None else asked


def _images(network: NetworkEncoder, data: str | Source | None) -> list[Tensor]:
    """A few real images, [C, H, W] each, of the type and size that the source has."""
    source = open_data(data) if isinstance(data, str) else data or _own_data(network)
    if source.channels != network.channels:
        raise SettingError(f"--data must have images of {network.channels} channels for {network.name}, these have {source.channels}")
    images = []
    for row in np.linspace(0, len(source) - 1, min(IMAGES, len(source))).astype(int):
        try:
            images.append(source.image(int(row)))
        except DataError:
            continue
    if not images:
        raise DataError("--data: none of the images that were to be compared can be read")
    return images


def _own_data(network: NetworkEncoder) -> Source:
    spec = Path(place_of(network.name)[0]).expanduser() / "spec.json"
    chosen = twice.read(spec.parent)["settings"]["data"] if spec.is_file() else {"name": "photos"}
    name, settings = chosen["name"], DataSpec.model_validate({key: chosen[key] for key in DataSpec.model_fields if key in chosen})
    if name == "photos" and not (network.channels == 3 and (network.any_range or (network.pixels.low, network.pixels.high) == (0, 255))):
        said = f"images to compare on, of {network.channels} channels and the range it was trained on"
        raise SettingError(f"--data must be given for {network.name}: {said}")
    try:
        return open_data(name, settings=settings)
    except DataError as error:
        raise SettingError(f"--data must be given for {network.name}, its own images cannot be opened: {error}") from None


# ---- writing ------------------------------------------------------------------------------------
def _pixels(network: NetworkEncoder) -> Pixels:
    # An encoder of any range takes 8-bit images as well as others; an exported one has to choose.
    return replace(network.pixels, high=255.0) if network.any_range else network.pixels


def _architecture(spec: BackboneSpec) -> BackboneSpec:
    # The same network without a download, whose ResNets keep their own stem, and without the token that only training needs.
    plain = {"pretrained": False, "stem": spec.stem or "plain"} if spec.pretrained else {}
    return spec.model_copy(update={"mask_token": False, **plain})


def _write(folder: Path, network: NetworkEncoder, form: TimmForm, onnx: bool) -> None:
    from safetensors.torch import save

    tensors = {k: v.contiguous().clone() for k, v in weights(network.backbone).items()}
    (folder / "model.safetensors").write_bytes(save(tensors))
    pixels = _pixels(network)
    config = {
        "format": "gnothi-export",
        "gnothi": gnothi.__version__,
        "encoder": network.name,
        "fingerprint": network.fingerprint,
        "backbone": _architecture(network.spec).model_dump(mode="json"),
        "channels": network.channels,
        "size": network.size,
        "pixels": {"low": pixels.low, "high": pixels.high, "mean": list(pixels.mean), "std": list(pixels.std)},
        "resize": RESIZE,
        "pooling": "token" if getattr(network.backbone, "cls_token", None) is not None else str(form.arguments.get("global_pool", "as timm pools")),
        "width": network.dim,
        "timm": {"name": form.name, "arguments": form.arguments, "first_convolution": form.stem},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(_card(network, form, pixels, onnx))
    if onnx:
        _write_onnx(folder / "model.onnx", Preprocessed(network.backbone, network.size, pixels), network, pixels)


def _write_ensemble(folder: Path, combined: Combined, networks: list[tuple[NetworkEncoder, TimmForm]], onnx: bool) -> None:
    """Each member as a folder of its own, what combines them beside these, and the card."""
    network, pixels = networks[0][0], _pixels(networks[0][0])
    near = [f"member-{j}" for j in range(len(networks))]
    for place, (member, form) in zip(near, networks, strict=True):
        (folder / place).mkdir()
        _write(folder / place, member, form, False)
    exported = [load(str(folder / place), "cpu") for place in near]
    for own, (member, _) in zip(exported, networks, strict=True):
        own.name = member.name
    more = {"format": "gnothi-export", "encoder": combined.encoder.name, "resize": RESIZE}
    write_ensemble(folder, combined.ensemble, exported, network.channels, {}, near, **more)
    text = combined.card(pixels.low, pixels.high, RESIZE)
    (folder / "README.md").write_text(text + (_card_onnx(network.channels, combined.encoder.dim, pixels) if onnx else ""))
    if onnx:
        parts = [Preprocessed(member.backbone, member.size, _pixels(member)) for member, _ in networks]
        _write_onnx(folder / "model.onnx", Whole(parts, combined), network, pixels)


def _card(network: NetworkEncoder, form: TimmForm, pixels: Pixels, onnx: bool) -> str:
    stem = ""
    if form.stem is not None:
        stem = f"net.conv1, net.maxpool = torch.nn.Conv2d({network.channels}, {form.stem}, 3, 1, 1, bias=False), torch.nn.Identity()\n"
    text = CARD.format(
        title=f"{network.spec.name}, {network.dim} numbers an image",
        parameters=f"{sum(p.numel() for p in network.backbone.parameters()):,}",
        encoder=printable(network.name),  # on one line, or a name could bring code of its own into a card that is run
        name=form.name,
        arguments=form.arguments,
        stem=stem,
        channels=network.channels,
        size=network.size,
        low=pixels.low,
        high=pixels.high,
        mean=list(pixels.mean),
        std=list(pixels.std),
        dim=network.dim,
        resize=RESIZE,
        fingerprint=network.fingerprint,
        version=gnothi.__version__,
    )
    return text + (_card_onnx(network.channels, network.dim, pixels) if onnx else "")


def _card_onnx(channels: int, dim: int, pixels: Pixels) -> str:
    return CARD_ONNX.format(kind=str(input_type(pixels)).removeprefix("torch."), channels=channels, dim=dim)


CARD = """# {title}

An image encoder of {parameters} parameters, written by gnothi {version} from {encoder}.
It takes images of {channels} channels with numbers from {low:g} to {high:g}. Each image is brought to {size} x {size} pixels
({resize}), scaled to [0, 1] and standardised by channel. Fingerprint {fingerprint}.

In gnothi, the path of this folder is the name of the encoder. Without gnothi, in this folder:

```python
import timm, torch
from safetensors.torch import load_file

net = timm.create_model("{name}", **{arguments})
{stem}net.load_state_dict(load_file("model.safetensors"), strict=True)
net.eval()
mean, std = torch.tensor({mean})[:, None, None], torch.tensor({std})[:, None, None]

@torch.inference_mode()
def embed(images):
    \"\"\"[N, {channels}, H, W], numbers from {low:g} to {high:g} -> [N, {dim}].\"\"\"
    side = min(images.shape[2:])
    top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
    x = (images[:, :, top : top + side, left : left + side].float() - {low}) / ({high} - {low})
    x = torch.nn.functional.interpolate(x, {size}, mode="bilinear", antialias=True)
    return net((x - mean) / std)
```

Where the long side exceeds the short one by an odd number of pixels, gnothi cuts in the middle of a pixel and this code half a pixel beside it.
"""

CARD_ONNX = """
`model.onnx` holds the preprocessing as well, for any number of images of any one size:
`images` [N, {channels}, H, W] of {kind} give `vectors` [N, {dim}].

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
vectors = session.run(None, {{"images": images}})[0]
```
"""


def input_type(pixels: Pixels) -> torch.dtype:
    """The type of the ONNX input: uint8 or uint16 where the range is theirs, else float32."""
    return TYPES.get((pixels.low, pixels.high), torch.float32)


class Preprocessed(nn.Module):
    """A backbone with everything that comes before it: images [N, C, H, W] of any one size to pooled vectors [N, D].

    The numbers of ``encoders.inputs.centre`` and ``views.crops.cut``, written without loops or branches so that the sizes can stay open in a graph.
    """

    def __init__(self, backbone: nn.Module, size: int, pixels: Pixels) -> None:
        super().__init__()
        self.backbone, self.size, self.pixels = backbone, size, pixels

    def _weights(self, pixels: int, side: Tensor) -> Tensor:
        """Triangle weights of the central ``side`` of so many source pixels: [size, pixels]."""
        scale = side / self.size
        source = torch.arange(pixels)[None].float() - (torch.scalar_tensor(pixels) - side) / 2
        target = torch.arange(self.size, dtype=torch.float32)[:, None]
        distance = (source + 0.5 - scale * (target + 0.5)).abs()
        weights = (1 - distance / scale.clamp(min=1)).clamp(min=0) * ((source > -1) & (source < side))
        return weights / weights.sum(1, keepdim=True)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2], images.shape[3]
        side = torch.minimum(torch.scalar_tensor(height), torch.scalar_tensor(width))
        x = self._weights(height, side) @ (images.float() @ self._weights(width, side).T)
        said: Encoding = self.backbone(self.pixels.normalise(self.pixels.unit(x)))
        return said.pooled


class Whole(nn.Module):
    """Members with what comes before them and what combines them: images [N, C, H, W] of any one size to vectors [N, width]."""

    def __init__(self, members: list[Preprocessed], combined: Combined) -> None:
        super().__init__()
        self.members, self.combined = nn.ModuleList(members), combined

    def forward(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.combined([member(images) for member in self.members])
        return vectors


def _write_onnx(path: Path, model: nn.Module, network: NetworkEncoder, pixels: Pixels) -> None:
    example = torch.zeros(2, network.channels, network.size + 8, network.size + 16).to(input_type(pixels))
    free = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        try:
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: free, 2: free, 3: free},),
                input_names=["images"],
                output_names=["embedding"],
                verbose=False,
            )
        except Exception as error:  # the exporter has a hundred kinds of its own
            raise RunError(f"{network.name} cannot be written as ONNX: {str(error).strip().splitlines()[0]}; leave it out with --no-onnx") from error
    assert program is not None  # only the older exporter gives nothing back
    program.save(path)


# ---- reading back without gnothi ----------------------------------------------------------------
READER = """
import re, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "gnothi":
            raise ImportError("gnothi is not to be had here")
sys.meta_path.insert(0, Absent())
import numpy as np
import torch
card, given, out = open("README.md").read(), np.load("../given.npz", allow_pickle=False), {}
code = re.findall(r"```python\\n(.*?)```", card, re.S)
reader = {}
exec(code[0], reader)
for key in given.files:
    out["timm." + key] = reader["embed"](torch.from_numpy(given[key])).numpy()
for key in given.files if len(code) > 1 else ():
    space = {"images": given[key]}
    exec(code[1], space)
    out["onnx." + key] = space["vectors"]
np.savez("../said.npz", allow_pickle=False, **out)
"""
"""Runs the code of the card, in a process of its own that cannot import gnothi."""


def _parity(folder: Path, encoder: Encoder, given: dict[str, Tensor], onnx: bool) -> dict[str, dict[str, float]]:
    """Largest differences of the readers from the encoder, over single images at their own size and all of one size together."""
    np.savez(folder.parent / "given.npz", allow_pickle=False, **{k: v.numpy() for k, v in given.items()})
    done = subprocess.run([sys.executable, "-I", "-c", READER], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"the exported folder could not be read back without gnothi: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    expected = {k: encoder.embed(v).numpy() for k, v in given.items()}
    with np.load(folder.parent / "said.npz", allow_pickle=False) as said:
        parity = {reader: _difference(reader, expected, said) for reader in ("timm", "onnx")[: 1 + onnx]}
    for reader, found in parity.items():
        if not found["relative"] <= TOLERANCE:  # also where it is not a number
            raise RunError(
                f"{reader} reads the exported encoder differently: by {found['relative']:.1e} of the largest number, "
                f"{TOLERANCE:.0e} is allowed; nothing was written"
            )
    return parity


def _difference(reader: str, expected: dict[str, np.ndarray], said: Any) -> dict[str, float]:
    largest = max(float(np.abs(said[f"{reader}.{k}"] - v).max()) for k, v in expected.items())
    scale = max(float(np.abs(v).max()) for v in expected.values())
    return {"largest": largest, "relative": largest / max(scale, float(np.finfo(np.float32).tiny))}


def _given(network: NetworkEncoder, images: list[Tensor]) -> dict[str, Tensor]:
    """Single images at their own size, those of the first one's size as a batch, and six of them side by side, which has to be cut and resized."""
    kind = input_type(_pixels(network))
    even = [_evenly(image).to(kind) for image in images]
    same = [i for i in even if i.shape == even[0].shape]
    six = [same[i % len(same)] for i in range(6)]
    mosaic = _evenly(torch.cat([torch.cat(six[:3], 2), torch.cat(six[3:], 2)], 1))
    return {f"image{i}": image[None] for i, image in enumerate(even)} | {"batch": torch.stack(same), "mosaic": mosaic[None]}


def _evenly(image: Tensor) -> Tensor:
    # Where the sides differ by an odd number the central squares differ by half a pixel (the card says so): a row or column less there.
    height, width = image.shape[-2:]
    odd = (height - width) % 2
    return image[:, : height - odd * (height > width), : width - odd * (width > height)]
