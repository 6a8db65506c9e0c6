"""Photographs of flowers in a folder a class: does a network that learned from them without labels tell five kinds apart?

    python examples/flowers.py DATA_FOLDER

DATA_FOLDER holds train/CLASS/*.jpg and val/CLASS/*.jpg (TensorFlow's flowers, short side 64 pixels). Flowers are told apart by colour as much as by
shape, so the views change brightness and contrast and leave the colours alone. A few minutes on two cores; what was stopped goes on.
"""

from __future__ import annotations

from outcome import options, study

SETTINGS = {
    "method": {"name": "simclr"},
    "backbone": {"name": "micro-resnet"},
    "views": {"recipe": "simclr-cifar", "size": 48, "saturation": 0.0, "hue": 0.0, "grey": 0.0},
}


def main(argv: list[str] | None = None) -> None:
    """Train, measure."""
    given = options(__doc__, epochs=20, holds="train/CLASS/*.jpg and val/CLASS/*.jpg").parse_args(argv)
    study("flowers", f"{given.data}@train", f"{given.data}@val", given, SETTINGS)


if __name__ == "__main__":
    main()
