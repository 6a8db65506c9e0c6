"""What else was tried with the members of an ensemble: arms ``tried/NAME/SEED`` of experiments/ensemble.py.

The descent's loss leaves the geometry open in which k-NN looks. Each idea here says something of that geometry, and makes codes of training and of
asked images from members' features, without labels. Settings are those of a first, small look at other members; nothing was tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnothi import ensemble
from gnothi.ensemble.rows import RowAdam
from gnothi.randomness import generator, seeded
from gnothi.schedules import cosine

Members = Sequence[Tensor]
"""[N, D_j] a member."""
Codes = tuple[Tensor, Tensor]
"""Of the images that train and of those that ask."""
Idea = Callable[[Members, Members, int], Codes]
"""Features of images that train and that ask, and a seed."""
BATCH = 512


def spectral(power: float, width: int | None = None) -> Idea:
    """PCA by a power: the control."""

    def codes(train: Members, asked: Members, seed: int) -> Codes:
        made = ensemble.fit(train, "pca", power=power, width=width, seed=seed)
        return made.transform(train), made.transform(asked)

    return codes


def flat(train: Members, asked: Members, seed: int) -> list[Codes]:
    """Each member by itself, by a power of 0.25 and at unit length."""
    found = (spectral(0.25)([x], [y], seed) for x, y in zip(train, asked, strict=True))
    return [(F.normalize(x, dim=1), F.normalize(y, dim=1)) for x, y in found]


def side_by_side(train: Members, asked: Members, seed: int) -> Codes:
    """Flat members, whose cosines are averaged."""
    parts = flat(train, asked, seed)
    return torch.cat([x for x, _ in parts], dim=1), torch.cat([y for _, y in parts], dim=1)


def neighbours(k: int, rounds: int = 3) -> Idea:
    """Codes near PCA's and near their neighbours' codes: rounds towards the least |c - c0|^2 + sum_j w_j |c - c_j|^2, w a softmax of cosines / 0.1.

    Those of asked images look at the finished codes of the images that train.
    """

    def pulled(codes: Tensor, first: Tensor, bank: Tensor, itself: bool) -> Tensor:
        found = []
        for i in range(0, len(codes), BATCH):
            near = codes[i : i + BATCH] @ bank.T
            if itself:
                near[torch.arange(len(near)), torch.arange(i, i + len(near))] = -torch.inf
            value, which = near.topk(k, dim=1)
            mean = ((value / 0.1).softmax(dim=1)[..., None] * bank[which]).sum(1)
            found.append(F.normalize((first[i : i + BATCH] + mean) / 2, dim=1))
        return torch.cat(found)

    def codes(train: Members, asked: Members, seed: int) -> Codes:
        x0, y0 = (F.normalize(c, dim=1) for c in spectral(0.25)(train, asked, seed))
        x, y = x0, y0
        for _ in range(rounds):
            x = pulled(x, x0, x, itself=True)
        for _ in range(rounds):
            y = pulled(y, y0, x, itself=False)
        return x, y

    return codes


def discriminant(k: int, ridge: float = 0.01) -> Idea:
    """White where neighbours differ: linear discriminant analysis in which an image and its ``k`` nearest are a class."""

    def codes(train: Members, asked: Members, seed: int) -> Codes:
        x, y = (torch.cat([F.normalize(m, dim=1) for m in part], dim=1).double() for part in (train, asked))
        near = F.normalize(spectral(0.25)(train, asked, seed)[0], dim=1)
        within = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for i in range(0, len(x), BATCH):
            cosines = near[i : i + BATCH] @ near.T
            cosines[torch.arange(len(cosines)), torch.arange(i, i + len(cosines))] = -torch.inf
            apart = (x[i : i + BATCH, None] - x[cosines.topk(k, dim=1).indices]).flatten(0, 1)
            within += apart.T @ apart / (2 * k * len(x))
        mean, spread = x.mean(0), torch.cov(x.T, correction=0)
        within += ridge * spread.trace() / len(spread) * torch.eye(len(spread), dtype=torch.float64)
        half = torch.linalg.cholesky(torch.linalg.inv(within))
        _, vectors = torch.linalg.eigh(half.T @ spread @ half)
        axes = half @ vectors.flip(1)[:, : max(m.shape[1] for m in train)]
        axes = axes / ((x - mean) @ axes).std(0)
        return ((x - mean) @ axes).float(), ((y - mean) @ axes).float()

    return codes


def pairs(train: Members, asked: Members, seed: int, epochs: int = 20, steps: int = 50, anchors: int = 2048) -> Codes:
    """A descent whose loss is of pairs: cosines of codes shall be the mean of the flat members' cosines.

    Batches of training images among themselves; then each asked image beside ``anchors`` training images, whose codes no longer move.
    """
    (x, y), (told, other) = spectral(0.25)(train, asked, seed), side_by_side(train, asked, seed)
    x, y, share = F.normalize(x, dim=1), F.normalize(y, dim=1), 1 / len(train)
    optimiser = RowAdam(x, 0.05 * x.shape[1] ** -0.5, 1e-5)
    batches = [b for e in range(epochs) for b in torch.randperm(len(x), generator=generator(seed, "pairs", e)).split(BATCH)]
    for step, rows in enumerate(batches):
        free = x[rows].requires_grad_()
        unit = F.normalize(free, dim=1)
        (gradient,) = torch.autograd.grad((unit @ unit.T - share * told[rows] @ told[rows].T).square().mean(1).sum(), free)
        optimiser.step(rows, gradient, cosine(step / len(batches), 1.0, 0.0))
    some = torch.randperm(len(x), generator=generator(seed, "anchors"))[:anchors]
    fixed, optimiser = F.normalize(x[some], dim=1), RowAdam(y, 0.05 * y.shape[1] ** -0.5, 1e-5)
    for step in range(steps):
        free = y.clone().requires_grad_()
        missed = F.normalize(free, dim=1) @ fixed.T - share * other @ told[some].T
        (gradient,) = torch.autograd.grad(missed.square().mean(1).sum(), free)
        optimiser.step(slice(None), gradient, cosine(step / steps, 1.0, 0.0))
    return x, y


def contrast(train: Members, asked: Members, seed: int, epochs: int = 15, temperature: float = 0.1) -> Codes:
    """A small network of all members, which learns to tell an image by some of its members from others by the rest of theirs (InfoNCE)."""
    parts = flat(train, asked, seed)
    x, y = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
    of = torch.cat([torch.full((p.shape[1],), j) for j, (p, _) in enumerate(parts)])
    width = max(m.shape[1] for m in train)
    with seeded(seed, "contrast"):
        network = nn.Sequential(nn.Linear(x.shape[1], 4 * width), nn.BatchNorm1d(4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                heard = (torch.rand(len(rows), len(parts)).argsort(1) < len(parts) // 2)[:, of]
                a, b = (F.normalize(network(2 * x[rows] * side), dim=1) for side in (heard, ~heard))
                cosines = a @ b.T / temperature
                target = torch.arange(len(rows))
                loss = F.cross_entropy(cosines, target) + F.cross_entropy(cosines.T, target)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    network.eval()
    with torch.no_grad():
        return network(x), network(y)


def descent(train: Members, asked: Members, seed: int) -> Codes:
    """As it is."""
    made = ensemble.fit(train, "descent", seed=seed)
    return made.transform(train), made.transform(asked)


def averaged(idea: Idea) -> Idea:
    """Of the mean of each member's two views: the second half of the members are the first half's, of mirrored images."""

    def codes(train: Members, asked: Members, seed: int) -> Codes:
        x, y = (
            [F.normalize(a, dim=1) + F.normalize(b, dim=1) for a, b in zip(m[: len(m) // 2], m[len(m) // 2 :], strict=True)] for m in (train, asked)
        )
        return idea(x, y, seed)

    return codes


IDEAS: dict[str, Idea] = {
    **{f"pca {p:g} of width {w}": spectral(p, w) for w in (64, 256) for p in (0.0, 0.25)},
    **{f"near {k} neighbours": neighbours(k) for k in (5, 20)},
    "discriminant of neighbours": discriminant(10),
    "flat members side by side": side_by_side,
    "cosines of pairs": pairs,
    "contrast of members": contrast,
}
"""Of the members' features."""
VIEWS: dict[str, Idea] = {
    "mirrored too, pca 0.25": spectral(0.25),
    "mirrored too, descent": descent,
    "mirrored too, mean and pca 0.25": averaged(spectral(0.25)),
    "mirrored too, mean and descent": averaged(descent),
}
"""Of these and those of mirrored images."""
