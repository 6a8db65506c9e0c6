"""The verb that makes shards: pack."""

from __future__ import annotations

from pathlib import Path

import click

from gnothi.cli.options import AS_JSON, DATA_SET, data_settings, told


@click.command()
@click.argument("data")
@click.option("--out", required=True, metavar="FOLDER", help="Where the shards go.")
@click.option("--size", "megabytes", type=float, metavar="N", help="Megabytes of images in a shard; 256 by default.")
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="Images in a shard, instead of --size.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Seed of the order.")
@click.option("--in-order", is_flag=True, help="Keep the order of the data: with classes side by side.")
@click.option("--overwrite", is_flag=True, help="Replace shards in FOLDER that were packed otherwise.")
@DATA_SET
@AS_JSON
def pack(
    data: str,
    out: str,
    megabytes: float | None,
    images: int | None,
    seed: int,
    in_order: bool,
    overwrite: bool,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Pack images into shards: tar files that `shards:FOLDER` reads, and WebDataset too.

    Files are copied byte by byte, in an order drawn by a seed, with class and group beside each. Splits go into folders of their own. Interrupt it as
    you like: a second call goes on.

    \b
    gnothi pack my-images --out my-shards
    """  # noqa: D301
    from gnothi import data as sources
    from gnothi.data.open import divide
    from gnothi.data.packing import pack as packed
    from gnothi.training.progress import counted

    settings = data_settings(data, assignments)
    known = sources.splits(data, settings) if divide(data)[1] is None else ()
    parts: dict[str | None, Path] = {split: Path(out).expanduser() / split for split in known} or {None: Path(out).expanduser()}
    done = []
    for split, folder in parts.items():
        source = sources.open(data, settings=settings, split=split)
        name = data if split is None else f"{data}@{split}"
        with counted(f"packing {name}", not as_json) as progress:
            order = None if in_order else seed
            done.append(packed(source, folder, name=name, images=images, megabytes=megabytes, seed=order, overwrite=overwrite, progress=progress))
    told(as_json, {"data": data, "packed": [one.to_dict() for one in done]}, lambda: "\n".join(line for one in done for line in one.lines()))
