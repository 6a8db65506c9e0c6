"""Clothes in one channel, 28 pixels: what is left of self-supervision where there is neither colour nor much to see?

    python examples/fashion.py DATA_FOLDER

DATA_FOLDER holds train.npz and test.npz with `images` [N, 28, 28] and `labels` [N] (Fashion-MNIST, or a part of it). Clothes lie upright and in the
middle, so the crops stay large; the network takes one channel from its first layer on. A few minutes on two cores; what was stopped goes on.
"""

from __future__ import annotations

from outcome import options, study

SETTINGS = {
    "method": {"name": "simclr"},
    "backbone": {"name": "micro-resnet"},
    "views": {"recipe": "any-channels", "size": 28, "area": [0.4, 1.0]},
}


def main(argv: list[str] | None = None) -> None:
    """Train, measure."""
    given = options(__doc__, epochs=30, holds="train.npz and test.npz, with images and labels").parse_args(argv)
    study("fashion", str(given.data / "train.npz"), str(given.data / "test.npz"), given, SETTINGS)


if __name__ == "__main__":
    main()
