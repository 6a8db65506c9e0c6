"""The same first hour with lightly 1.6: what one writes to learn from a folder of images and to know how good it is.

    python -m experiments.with_lightly TRAIN VAL [--epochs N] [--size PIXELS] [--batch N]

TRAIN and VAL hold a folder a class. SimCLR on torchvision's ResNet-18 as lightly's documentation builds it, then k-NN of the trained and of the
untrained network by lightly's own function. It writes simclr.pt, and prints two accuracies; nothing resumes, and nothing has an interval.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.utils.benchmarking import knn_predict
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def train(backbone: nn.Module, folder: str, size: int, epochs: int, batch: int) -> None:
    head = SimCLRProjectionHead(512, 512, 128)
    images = LightlyDataset(folder, transform=SimCLRTransform(input_size=size))
    loader = DataLoader(images, batch, shuffle=True, drop_last=True)
    optimiser = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    loss_of = NTXentLoss()
    for epoch in range(epochs):
        total = 0.0
        for views, _, _ in loader:
            a, b = (head(backbone(view).flatten(1)) for view in views)
            loss = loss_of(a, b)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss)
        schedule.step()
        print(f"epoch {epoch}: {total / len(loader):.4f}", flush=True)


@torch.no_grad()
def embed(backbone: nn.Module, folder: str, size: int) -> tuple[Tensor, Tensor]:
    whole = Compose([Resize(size), CenterCrop(size), ToTensor(), Normalize(MEAN, STD)])
    parts = [(backbone(images).flatten(1), labels) for images, labels, _ in DataLoader(LightlyDataset(folder, transform=whole), 256)]
    vectors, labels = (torch.cat(found) for found in zip(*parts, strict=True))
    return F.normalize(vectors, dim=1), labels


def knn(backbone: nn.Module, known: str, asked: str, size: int) -> float:
    (bank, names), (vectors, truth) = (embed(backbone.eval(), folder, size) for folder in (known, asked))
    said = knn_predict(vectors, bank.T, names, int(names.max()) + 1, knn_k=20)[:, 0]
    return float((said == truth).float().mean())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args(argv)
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    untrained = copy.deepcopy(backbone)
    train(backbone, given.train, given.size, given.epochs, given.batch)
    torch.save(backbone.state_dict(), "simclr.pt")
    for name, network in (("trained", backbone), ("untrained", untrained)):
        print(f"{name}: k-NN {knn(network, given.train, given.val, given.size):.4f}")


if __name__ == "__main__":
    main()
