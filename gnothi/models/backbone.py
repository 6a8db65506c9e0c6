"""Backbones by name behind one contract. The only file that knows timm, which it imports only when a timm name is asked for."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gnothi.contracts import Block, Encoding, SettingError, Spec, Want, did_you_mean
from gnothi.models.adopted import adopt
from gnothi.models.alexnet import AlexNet, NormedAlexNet
from gnothi.models.micro_resnet import MicroResNet
from gnothi.models.micro_vit import MicroViT, cells
from gnothi.models.weights import flops, initialise, parameters, weights
from gnothi.randomness import seeded

__all__ = [
    "BackboneSpec",
    "TimmBackbone",
    "TimmForm",
    "adopt",
    "build",
    "flops",
    "initialise",
    "parameters",
    "pretrained_input",
    "timm_form",
    "weights",
]

log = logging.getLogger(__name__)

BACKBONES: dict[str, Callable[..., nn.Module]] = {"micro-resnet": MicroResNet, "micro-vit": MicroViT, "alexnet": AlexNet, "alexnet-bn": NormedAlexNet}
LEAST_CELLS, MOST_CELLS = 7, 32
"""Cells a side of a derived patch grid: what 224 pixels give with patches of 32, and what is still affordable (1,024 tokens)."""
SMALL = 64
"""Crops of up to this many pixels get the CIFAR stem."""
LARGEST = 1 << 16
"""A network with more of anything would take longer to build than to train."""
RESERVED = (
    *("num_classes", "in_chans", "features_only", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit"),
)
"""Arguments of ``timm.create_model`` that gnothi sets, or that would read or fetch weights which nobody named."""


class BackboneSpec(Spec):
    """The network that learns."""

    name: str = "micro-resnet"
    """micro-resnet, micro-vit, alexnet, alexnet-bn, or any timm name."""
    stem: str | None = None
    """First layers of a ResNet: "cifar" (3x3 of stride 1, no max-pool) or "plain" (timm's). None: cifar up to 64 pixels, unless pretrained."""
    patch_size: int | None = Field(default=None, ge=1)
    """Side of a ViT's patches in pixels. None: the network's own, or the largest power of two below that leaves 7 to 32 cells a side."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the last block, in [0, 1)."""
    mask_token: bool = False
    """Learn a token that stands for hidden patches; ViTs only, for masked views."""
    pretrained: bool = False
    """Start from timm's weights; the first use downloads them."""
    args: dict[str, Any] = {}
    """Passed on to the network's constructor."""


def build(spec: BackboneSpec, channels: int, size: int, seed: int) -> nn.Module:
    """Make a backbone.

    Args:
        spec: which.
        channels: of the images.
        size: side of the global crops, in pixels.
        seed: of the initial weights.

    Returns:
        A module with ``forward(images, want=Want(), mask=None) -> Encoding``, ``width`` and ``block_widths``.

    Raises:
        SettingError: there is no such network, or it cannot take such images or settings.
    """
    for word, value in spec.args.items():
        if isinstance(value, int) and value > LARGEST:
            raise SettingError(f"backbone.args.{word} must be at most {LARGEST:,}, got {value}")
    if spec.stem not in (None, "cifar", "plain"):
        raise SettingError(f"backbone.stem must be cifar or plain, got {spec.stem!r}; {did_you_mean(spec.stem, ('cifar', 'plain'))}")
    with seeded(seed, "init backbone"):
        return _micro(spec, channels, size) if spec.name in BACKBONES else TimmBackbone(spec, channels, size)


def _micro(spec: BackboneSpec, channels: int, size: int) -> nn.Module:
    kind = BACKBONES[spec.name]
    vit = kind is MicroViT
    _refuse(spec, "stem", "its first layers are fixed", unless=not vit and spec.stem == "cifar")
    _refuse(spec, "pretrained", "there are no weights of it to download")
    given: dict[str, Any] = {"channels": channels}
    if vit:
        given |= {"size": size, "patch_size": spec.patch_size or patch_size(size, 16), "drop_path": spec.drop_path, "mask_token": spec.mask_token}
    if isinstance(kind, type) and issubclass(kind, AlexNet):
        given["size"] = size
    for setting in ("patch_size", "drop_path", "mask_token"):
        _refuse(spec, setting, "it is a convolutional network; micro-vit has it", unless=vit)
    known = inspect.signature(kind).parameters
    for word in spec.args:
        if word not in known or word in given:
            free = [k for k in known if k not in given]
            raise SettingError(f"backbone.args.{word}: {spec.name} has no such argument; {did_you_mean(word, free)}")
    try:
        return kind(**given, **spec.args)
    except (SettingError, MemoryError):
        raise
    except Exception as error:
        raise SettingError(f"backbone.args: {spec.name} cannot be made with {spec.args}: {_first_line(error)}") from error


def _refuse(spec: BackboneSpec, setting: str, why: str, *, unless: bool = False) -> None:
    if getattr(spec, setting) and not unless:
        raise SettingError(f"backbone.{setting} means nothing to {spec.name}: {why}; got {getattr(spec, setting)}")


def patch_size(size: int, own: int) -> int:
    """The patch size for crops of ``size`` pixels: the network's own, or the largest power of two below that leaves 7 to 32 cells a side."""
    for p in (own, *(1 << k for k in range(own.bit_length() - 1, 0, -1) if 1 << k < own)):
        if size % p == 0 and LEAST_CELLS <= size // p <= MOST_CELLS:
            return p
    if size % own == 0 and size // own > MOST_CELLS:
        return own  # such as DINOv2's 14 at 518 pixels
    low = size // 8 * 8
    raise SettingError(
        f"views.size must give a patch grid of {LEAST_CELLS} to {MOST_CELLS} cells a side, got {size}, which no power of two up to {own} so divides; "
        f"{low} and {low + 8} are nearest, or give backbone.patch_size"
    )


def windows(size: int, own_patch: int, own_window: int, stages: int = 4) -> tuple[int, int]:
    """Patch and window of a windowed transformer (Swin) for crops of ``size`` pixels.

    The patch is the network's own, halved until the last stage has whole cells and at least 2 a side. The window is the largest, up to the network's
    own, that divides the grid of every stage or covers it. 224 pixels give Swin's own (4, 7), 32 pixels (2, 4), 96 pixels (4, 6).
    """
    halvings = 2 ** (stages - 1)
    for patch in (p for p in (own_patch, own_patch // 2, own_patch // 4) if p):
        if size % (patch * halvings) == 0 and size // (patch * halvings) >= 2:
            grids = [size // (patch * 2**s) for s in range(stages)]
            return patch, next(w for w in range(own_window, 0, -1) if all(g % w == 0 or g <= w for g in grids))
    low = max(size // 16, 1) * 16
    raise SettingError(f"views.size must be a multiple of 16 for a windowed transformer, got {size}; {low} and {low + 16} are nearest")


class TimmBackbone(nn.Module):
    """A timm network behind the contract; the network itself is ``net``.

    Block i is what timm's ``forward_intermediates`` counts as i: for a ViT a transformer block, for others a stage, where timm has one with the stem
    as 0. ``pooled`` is timm's own pooling before the classifier, which for some (VGG, MobileNetV3) has layers of its own, so that patches may be of
    another width than ``width``: ``patch_width``.
    """

    net: Any

    def __init__(self, spec: BackboneSpec, channels: int, size: int) -> None:
        super().__init__()
        timm = _timm(spec.name)
        _config(timm, spec.name)
        self.name = spec.name
        self.arguments = _arguments(timm, spec, channels, size)
        """What ``timm.create_model`` gets besides the name."""
        self.net = _create(timm, spec, self.arguments)
        self.stem = _stem(timm, spec, self.net, channels, size)
        """"cifar" where the first layers were replaced, else "plain"."""
        self.prefix = {"return_prefix_tokens": True} if _gives_prefix(self.net) else {}
        embed: Any = getattr(self.net, "patch_embed", nn.Identity())
        self.multiple = _own_patch(embed) or 1
        self.only = embed.img_size if getattr(embed, "strict_img_size", False) else None
        self.last = 0
        self.mask_token = None
        self.width, self.patch_width, self.block_widths = self._measure(channels, size)
        if spec.mask_token:
            if not self.prefix or not hasattr(self.net, "patch_embed"):
                raise SettingError(f"backbone.mask_token means nothing to {spec.name}: it has no patch tokens to hide; vit_tiny_patch16_224 has")
            self.mask_token = nn.Parameter(torch.zeros(self.net.embed_dim))

    @torch.no_grad()
    def _measure(self, channels: int, size: int) -> tuple[int, int, tuple[int, ...]]:
        # One small forward pass says the widths, and whether the network takes such crops at all.
        self.eval()
        images = torch.zeros(1, channels, size, size)
        try:
            blocks = self.net.forward_intermediates(images, intermediates_only=True)
            self.last = len(blocks) - 1
            encoding = self(images, Want(patches=True, blocks=(self.last,)))
            tokens = encoding.patches.shape[1]
            if tokens != encoding.grid[0] * encoding.grid[1]:
                raise ValueError(f"its {tokens} tokens do not form the grid of {encoding.grid[0]} x {encoding.grid[1]} that its last block has")
        except SettingError:
            raise
        except Exception as error:  # whatever the network stumbles over
            raise SettingError(f"backbone.name {self.name} cannot take crops of {size} pixels: {_first_line(error)}") from error
        finally:
            self.train()
        return encoding.pooled.shape[1], encoding.patches.shape[2], tuple(b.shape[1] for b in blocks)

    def forward(self, images: Tensor, want: Want = Want(), mask: Tensor | None = None) -> Encoding:
        """Encode crops.

        Args:
            images: [B, C, H, W] normalised floats.
            want: what the encoding must hold besides the pooled vector.
            mask: [B, N] bool, True where the mask token stands in for a patch; ViTs only.
        """
        for side in images.shape[2:]:
            cells(side, self.multiple)
        if self.only is not None and tuple(images.shape[2:]) != tuple(self.only):
            raise SettingError(f"backbone.name {self.name} takes crops of {self.only[0]} pixels only, got {images.shape[2]}; vit_* take any size")
        with self._hidden(mask):
            x, taken = self.net.forward_intermediates(images, indices=sorted({*want.blocks, self.last}), **self.prefix)
        if mask is None and self.mask_token is not None and torch.is_grad_enabled():
            x = x + 0 * self.mask_token.sum()  # so that every process has a gradient for it in every step
        taken = [t if isinstance(t, tuple) else (t, None) for t in taken]
        last = taken[-1][0]
        pooled = self.net.forward_head(x, pre_logits=True)
        if x.ndim == 4:
            x = x if getattr(self.net, "output_fmt", "NCHW") == "NHWC" else x.permute(0, 2, 3, 1)
            grid, patches = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        else:
            grid, patches = (last.shape[2], last.shape[3]), x[:, getattr(self.net, "num_prefix_tokens", 0) :]
        blocks = {i: self._block(t, p, pooled if i == self.last else None, want) for i, (t, p) in zip(sorted(want.blocks), taken, strict=False)}
        return Encoding(pooled, patches if want.patches else None, grid, blocks)

    def _block(self, x: Tensor, prefix: Tensor | None, end: Tensor | None, want: Want) -> Block:
        patches = x.flatten(2).mT  # [B, N, D]
        grid = (x.shape[2], x.shape[3])
        pooled = prefix[:, 0] if prefix is not None and self.net.global_pool == "token" else patches.mean(1)
        final = pooled
        if end is not None and end.shape == pooled.shape:
            final = end
        elif _is_columnar(self.net, pooled.shape[1]):
            tokens = patches if prefix is None else torch.cat([prefix, patches], 1)
            final = self.net.forward_head(self.net.norm(tokens), pre_logits=True)
        return Block(pooled, final, patches if want.patches else None, grid)

    @contextlib.contextmanager
    def _hidden(self, mask: Tensor | None) -> Iterator[None]:
        if mask is None:
            yield
            return
        token = self.mask_token
        if token is None:
            raise SettingError("backbone.mask_token must be true for masked views, got false")

        def hide(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            return torch.where(mask.view(*tokens.shape[:-1], 1), token.to(tokens.dtype), tokens)

        handle = self.net.patch_embed.register_forward_hook(hide)
        try:
            yield
        finally:
            handle.remove()


def pretrained_input(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Crop size in pixels, channel means and channel deviations (of pixels in [0, 1]) with which timm's weights of a name were trained."""
    timm = _timm(name)
    config = _config(timm, name)
    if config is None or not config.has_weights:
        raise SettingError(f"timm has no weights for {name}; {did_you_mean(name, timm.list_models(pretrained=True))}")
    return config.input_size[-1], tuple(config.mean), tuple(config.std)


@dataclass(frozen=True)
class TimmForm:
    """How plain timm makes the network of a backbone, so that ``weights.weights`` loads into it strictly."""

    name: str
    arguments: dict[str, Any]
    """What ``timm.create_model`` gets besides the name."""
    stem: int | None
    """Width of the 3x3 first convolution of stride 1 that replaces the network's own, max-pool and all; None where nothing is replaced."""


def timm_form(backbone: nn.Module, channels: int) -> TimmForm:
    """Say how plain timm makes this backbone's network.

    Raises:
        SettingError: it cannot, because the network came from Python or is a micro ResNet of a shape that timm does not have.
    """
    if isinstance(backbone, TimmBackbone):
        return TimmForm(backbone.name, backbone.arguments, backbone.net.bn1.num_features if backbone.stem == "cifar" else None)
    common = {"in_chans": channels, "num_classes": 0}
    if isinstance(backbone, MicroResNet):
        widths = backbone.block_widths
        if widths[0] % 2 or len(widths) != 4:
            raise SettingError(f"timm's ResNets have four stages, the first of an even width; got backbone.args.widths {list(widths)}")
        shape = {"layers": (1, 1, 1, 1), "channels": widths, "stem_type": "deep", "stem_width": widths[0] // 2}
        return TimmForm("resnet18", {**common, **shape}, widths[0])
    if isinstance(backbone, MicroViT):
        first: Any = backbone.blocks[0]
        size = {"img_size": backbone.stored_grid[0] * backbone.patch_size, "patch_size": backbone.patch_size, "dynamic_img_size": True}
        shape = {"embed_dim": backbone.width, "depth": len(backbone.blocks), "num_heads": first.attn.heads}
        return TimmForm("vit_tiny_patch16_224", {**common, **size, **shape, "mlp_ratio": first.mlp.fc1.out_features / backbone.width}, None)
    raise SettingError(f"timm has no network like {type(backbone).__name__}; micro-resnet, micro-vit and timm names can be made by it")


# ---- making a timm network ----------------------------------------------------------------------
def _timm(name: str) -> ModuleType:
    try:
        import timm
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        raise SettingError(
            f"backbone.name {name}: timm networks need timm and torchvision, which cannot be imported here ({_first_line(error)}); "
            "micro-resnet and micro-vit work without them"
        ) from error
    return timm


def _config(timm: ModuleType, name: str) -> Any:
    # What timm knows of a name's weights, None where there are none; SettingError where there is no such name.
    if not timm.is_model(name):
        raise SettingError(f"backbone.name {name!r}: no such network; {did_you_mean(name, [*BACKBONES, *timm.list_models()])}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag that does not exist
        tags = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise SettingError(f"backbone.name {name!r}: no such weights; {did_you_mean(name, tags)}") from error


def _arguments(timm: ModuleType, spec: BackboneSpec, channels: int, size: int) -> dict[str, Any]:
    for word in RESERVED:
        if word in spec.args:
            raise SettingError(f"backbone.args.{word}: gnothi sets it itself; leave it out")
    given: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    try:
        with torch.device("meta"):  # costs no memory and draws no random numbers
            net = timm.create_model(spec.name, **given, **spec.args)
    except Exception as error:  # constructors raise anything about arguments that they were not made for
        raise SettingError(f"backbone.args: {spec.name} cannot be made with {spec.args}: {_first_line(error)}") from error
    if not hasattr(net, "forward_intermediates"):
        raise SettingError(f"backbone.name {spec.name} does not fit: it does not give its intermediate features (timm's forward_intermediates)")
    takes = _constructor(type(net))
    if "drop_path_rate" in takes:
        given["drop_path_rate"] = spec.drop_path
    else:
        _refuse(spec, "drop_path", "it has no stochastic depth")
    if "img_size" in takes:
        given["img_size"] = size
    if "dynamic_img_size" in takes:
        given["dynamic_img_size"] = True
    elif "strict_img_size" in takes:
        given["strict_img_size"] = False
    own = _own_patch(net)
    if {"img_size", "patch_size", "window_size"} <= takes and own:
        window = next(m.window_size for m in net.modules() if hasattr(m, "window_size"))
        given["patch_size"], given["window_size"] = windows(size, spec.patch_size or own, window[0] if isinstance(window, tuple) else window)
    elif {"img_size", "patch_size"} <= takes and own:
        patch = spec.patch_size or patch_size(size, own)
        given |= {"patch_size": patch} if patch != own else {}
    else:
        _refuse(spec, "patch_size", "it has no patches of a free size")
    return given | spec.args


def _constructor(kind: type) -> set[str]:
    # A class that passes **kwargs on takes what its parents take.
    takes: set[str] = set()
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        takes |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return takes


def _own_patch(net: nn.Module) -> int:
    for module in net.modules():
        own = getattr(module, "patch_size", None)
        if own is not None:
            return int(own[0] if isinstance(own, tuple) else own)
    return 0


def _gives_prefix(net: Any) -> bool:
    takes = inspect.signature(net.forward_intermediates).parameters
    return getattr(net, "num_prefix_tokens", 0) > 0 and "return_prefix_tokens" in takes


def _is_columnar(net: Any, width: int) -> bool:
    # Blocks of one width over one set of tokens, all of which timm gives: the final norm and head then make sense after every block.
    whole = getattr(net, "num_prefix_tokens", 0) == 0 or _gives_prefix(net)
    return (
        whole
        and isinstance(getattr(net, "norm", None), nn.Module)
        and isinstance(getattr(net, "blocks", None), nn.Module)
        and width == net.num_features
    )


def _create(timm: ModuleType, spec: BackboneSpec, arguments: dict[str, Any]) -> nn.Module:
    if spec.pretrained:
        pretrained_input(spec.name)
        log.warning("backbone.pretrained: timm's weights of %s come over the network, unless they were fetched before", spec.name)
    try:
        network: nn.Module = timm.create_model(spec.name, pretrained=spec.pretrained, **arguments)
        return network
    except Exception as error:  # networks, and the hosts of their weights, have errors of their own
        shown = {k: v for k, v in arguments.items() if k != "num_classes"}
        what = "backbone.pretrained: weights" if spec.pretrained else "backbone.name: a network"
        raise SettingError(f"{what} of {spec.name} with {shown} could not be had: {_first_line(error)}") from error


def _stem(timm: ModuleType, spec: BackboneSpec, net: Any, channels: int, size: int) -> str:
    if not isinstance(net, timm.models.resnet.ResNet):
        _refuse(spec, "stem", "only ResNets have stems to choose", unless=spec.stem == "plain")
        return "plain"
    if spec.pretrained and spec.stem == "cifar":
        raise SettingError("backbone.stem must be plain with backbone.pretrained, got cifar, which would throw the pretrained first layer away")
    if spec.stem == "plain" or spec.pretrained or (spec.stem is None and size > SMALL):
        return "plain"
    cifar_stem(net, channels)
    return "cifar"


def cifar_stem(net: Any, channels: int) -> None:
    """Give a timm ResNet a first convolution of 3x3 with stride 1 and no max-pool, in place (He et al., arXiv 1512.03385, section 4.2)."""
    net.conv1 = nn.Conv2d(channels, net.bn1.num_features, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
