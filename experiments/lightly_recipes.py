"""lightly's own CIFAR-10 recipes on any backbone: its transforms, losses, heads and settings, in a plain loop.

From the benchmark script in its documentation (cifar10_benchmark.py): batch 128, SGD at 0.06 with momentum 0.9 and a decay of 5e-4 on everything
(SwAV: Adam at 1e-3, decay 1e-6), a cosine an epoch, no warm-up, teachers at a momentum of 0.99, one forward a view. VICReg is not in that script;
its settings here are those of lightly's Imagenette script: LARS at 0.3 for a batch of 256 with a decay of 1e-4 (without LARS it diverges, says the
script, and with SGD it did), and a tenth of warm-up. Inputs are PIL images, as lightly's data set gives them.

Two things differ from the script, besides the backbone. Its ResNet for MoCo has BatchNorm split into eight parts of 16 images; backbones here take
whole batches, with the keys shuffled all the same. And the script computes in fp32; `train` takes the precision of what it is compared with.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightly import loss as losses
from lightly import transforms
from lightly.models import utils
from lightly.models.modules import heads
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from PIL import Image
from torch import Tensor, nn

Views = list[Tensor]
Loss = Callable[[Views], Tensor]


def transform(method: str, size: int = 32) -> Any:
    """lightly's views; of small images without blur, as the published recipes for CIFAR-10 have it, and as ours."""
    sharp: dict[str, Any] = {} if size > 64 else {"gaussian_blur": 0.0}
    byol = transforms.BYOLTransform(transforms.BYOLView1Transform(input_size=size, **sharp), transforms.BYOLView2Transform(input_size=size, **sharp))
    simclr = transforms.SimCLRTransform(input_size=size, cj_strength=0.5, **sharp)
    crops: dict[str, Any] = {"crop_sizes": (size,), "crop_counts": (2,), "crop_min_scales": (0.14,), "crop_max_scales": (1.0,)}
    return {
        "simclr": simclr,
        "moco": simclr,
        "byol": byol,
        "barlow": byol,
        "simsiam": transforms.SimSiamTransform(input_size=size, **sharp),
        "swav": transforms.SwaVTransform(**crops, cj_strength=0.5, **sharp),
        "dino": transforms.DINOTransform(global_crop_size=size, n_local_views=0, **({"gaussian_blur": (0.0, 0.0, 0.0)} if sharp else {})),
        "vicreg": transforms.VICRegTransform(input_size=size, **sharp),
    }[method]


def simclr(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    model = nn.Sequential(encode, heads.SimCLRProjectionHead(width, 512, 128))
    criterion = losses.NTXentLoss()
    return model, lambda v: criterion(model(v[0]), model(v[1]))


def moco(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    model = nn.Sequential(encode, heads.MoCoProjectionHead(width, 512, 128))
    slow, criterion = frozen_copy(model), losses.NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))

    def keys(x: Tensor) -> Tensor:
        x, order = utils.batch_shuffle(x)
        return utils.batch_unshuffle(slow(x), order)

    def loss(v: Views) -> Tensor:
        utils.update_momentum(model, slow, 0.99)
        return 0.5 * (criterion(model(v[0]), keys(v[1])) + criterion(model(v[1]), keys(v[0])))

    return model, loss


def byol(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    online, predictor = nn.Sequential(encode, heads.BYOLProjectionHead(width, 1024, 256)), heads.BYOLPredictionHead(256, 1024, 256)
    slow, criterion = frozen_copy(online), losses.NegativeCosineSimilarity()

    def loss(v: Views) -> Tensor:
        utils.update_momentum(online, slow, 0.99)
        (p, q), (y, z) = ([predictor(online(x)) for x in v], [slow(x) for x in v])
        return 0.5 * (criterion(p, z) + criterion(q, y))

    return nn.ModuleList([online, predictor]), loss


def simsiam(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    projector = heads.ProjectionHead([(width, 2048, nn.BatchNorm1d(2048), nn.ReLU()), (2048, 2048, nn.BatchNorm1d(2048), None)])
    online, predictor, criterion = nn.Sequential(encode, projector), heads.SimSiamPredictionHead(2048, 512, 2048), losses.NegativeCosineSimilarity()

    def loss(v: Views) -> Tensor:
        z = [online(x) for x in v]
        return 0.5 * (criterion(z[0].detach(), predictor(z[1])) + criterion(z[1].detach(), predictor(z[0])))

    return nn.ModuleList([online, predictor]), loss


def swav(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    online, prototypes, criterion = (
        nn.Sequential(encode, heads.SwaVProjectionHead(width, 512, 128)),
        heads.SwaVPrototypes(128, 512),
        losses.SwaVLoss(),
    )

    def loss(v: Views) -> Tensor:
        prototypes.normalize()
        return criterion([prototypes(F.normalize(online(x), dim=1)) for x in v], []).squeeze()

    return nn.ModuleList([online, prototypes]), loss


def dino(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    def head() -> nn.Module:
        made = heads.DINOProjectionHead(width, 2048, 256, 2048, batch_norm=True)
        made.layers = heads.ProjectionHead([(width, 2048, nn.BatchNorm1d(2048), nn.GELU()), (2048, 256, None, None)]).layers
        return made

    online = nn.Sequential(encode, head())
    slow = nn.Sequential(frozen_copy(encode), head()).requires_grad_(False)  # the script gives the teacher's head a start of its own
    criterion = losses.DINOLoss(output_dim=2048)

    def loss(v: Views) -> Tensor:
        utils.update_momentum(online, slow, 0.99)
        return criterion([slow(x) for x in v], [online(x) for x in v])

    return online, loss


def barlow(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    projector = heads.ProjectionHead([(width, 2048, nn.BatchNorm1d(2048), nn.ReLU()), (2048, 2048, None, None)])
    model, criterion = nn.Sequential(encode, projector), losses.BarlowTwinsLoss()
    return model, lambda v: criterion(model(v[0]), model(v[1]))


def vicreg(encode: nn.Module, width: int) -> tuple[nn.Module, Loss]:
    model, criterion = nn.Sequential(encode, heads.BarlowTwinsProjectionHead(width, 2048, 2048)), losses.VICRegLoss()
    return model, lambda v: criterion(model(v[0]), model(v[1]))


RECIPES: dict[str, Callable[[nn.Module, int], tuple[nn.Module, Loss]]] = {
    "simclr": simclr,
    "moco": moco,
    "byol": byol,
    "simsiam": simsiam,
    "swav": swav,
    "dino": dino,
    "barlow": barlow,
    "vicreg": vicreg,
}


def frozen_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


class Pooled(nn.Module):
    """A backbone of gnothi as one that gives vectors; it alone computes in bf16, where that is asked for."""

    def __init__(self, backbone: nn.Module, precision: str = "fp32") -> None:
        super().__init__()
        self.backbone, self.half = backbone, precision == "bf16"

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
            return self.backbone(images).pooled.float()


class Pictures(torch.utils.data.Dataset):
    """Views of images, an [N, H, W, C] array or files, made one at a time as lightly makes them."""

    def __init__(self, images: np.ndarray | Files, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Views:
        image = self.images[row]
        return self.transform(image if isinstance(image, Image.Image) else Image.fromarray(image))


class Files:
    """Images of files, read as lightly's data set reads them."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Image.Image:
        with Image.open(self.paths[row]) as opened:
            return opened.convert("RGB")


def optimiser(method: str, model: nn.Module) -> torch.optim.Optimizer:
    if method == "vicreg":
        return LARS(model.parameters(), lr=0.15, momentum=0.9, weight_decay=1e-4)
    if method == "swav":
        return torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6)
    return torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)


def schedule(method: str, optim: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    if method == "vicreg":
        return CosineWarmupScheduler(optim, epochs // 10, epochs)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optim, epochs)


class Recipe:
    """A method of lightly's with its optimiser, in the memory format of ours."""

    def __init__(self, method: str, backbone: nn.Module, precision: str = "fp32") -> None:
        self.model, self.loss = RECIPES[method](Pooled(backbone, precision), int(backbone.width))  # type: ignore[arg-type]
        self.model.to(memory_format=torch.channels_last)
        self.optimiser = optimiser(method, self.model)

    def step(self, views: Views) -> Tensor:
        """Learn from a batch; gives its loss."""
        value = self.loss([v.contiguous(memory_format=torch.channels_last) for v in views])
        self.optimiser.zero_grad()
        value.backward()
        self.optimiser.step()
        return value.detach()


def loader(
    images: np.ndarray | Files, method: str, batch: int = 128, workers: int = 0, size: int = 32, steps: int | None = None
) -> torch.utils.data.DataLoader:
    """Batches of views of an epoch; or of so many steps, without an epoch's end between them."""
    pictures = Pictures(images, transform(method, size))
    sampler = torch.utils.data.RandomSampler(pictures, num_samples=None if steps is None else steps * batch)
    return torch.utils.data.DataLoader(pictures, batch_size=batch, sampler=sampler, drop_last=True, num_workers=workers)


def train(
    method: str, images: np.ndarray, backbone: nn.Module, epochs: int, seed: int, said: Callable[[str], None] = print, precision: str = "fp32"
) -> float:
    """Train a backbone of gnothi as lightly would; gives the seconds it took.

    Raises:
        FloatingPointError: the loss is not finite any more.
    """
    random.seed(seed)
    np.random.seed(seed)  # lightly's solarisation draws from it
    torch.manual_seed(seed)
    recipe = Recipe(method, backbone, precision)
    rates = schedule(method, recipe.optimiser, epochs)
    batches, began = loader(images, method), time.monotonic()
    for epoch in range(epochs):
        for views in batches:
            value = recipe.step(views)
        if not math.isfinite(float(value)):
            raise FloatingPointError(f"lightly {method} seed {seed}: the loss is {float(value)} in epoch {epoch + 1}")
        rates.step()
        said(f"lightly {method} seed {seed} epoch {epoch + 1} of {epochs}, loss {float(value):.3f}, {time.monotonic() - began:.0f} s")
    return time.monotonic() - began
