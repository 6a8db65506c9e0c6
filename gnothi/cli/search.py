"""The verb that searches: neighbours."""

from __future__ import annotations

from typing import Any

import click

from gnothi.cli.options import AS_JSON, DATA_SET, DEVICE, data_settings, told


@click.command()
@click.argument("encoder")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--in", "among", required=True, metavar="FEATURES|DATA", help="What to search: a file of gnothi embed, or images.")
@click.option("-k", type=int, default=10, show_default=True, metavar="N", help="Neighbours of each image.")
@click.option("--html", metavar="PAGE", help="Write a page with pictures, too.")
@DEVICE
@DATA_SET
@AS_JSON
def neighbours(
    encoder: str, images: tuple[str, ...], among: str, k: int, html: str | None, device: str | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Find the images most like some images.

    IMAGE is a file, or the name of one of the images searched. FEATURES is a .parquet, .npz or .safetensors file that `gnothi embed` wrote with the
    same encoder; DATA is embedded once and kept.

    \b
    gnothi neighbours runs/mine scan.png --in my-images
    gnothi neighbours runs/mine scan.png cells/017.png -k 20 --in features.parquet --html like-these.html
    """  # noqa: D301
    from gnothi import search
    from gnothi.training.progress import counted

    settings = data_settings(among, assignments)
    with counted("embedding", not as_json) as progress:
        found = search.similar(encoder, images, among, k, settings=settings, device=device, progress=progress)
    page: dict[str, Any] = {}
    if html is not None:
        words = ["gnothi", "neighbours", encoder, *images, "--in", among, "-k", str(k), *(w for a in assignments for w in ("--set", a))]
        page = {"page": str(search.write(found, html, [*words, "--html", html]))}
    told(as_json, found.to_dict() | page, lambda: "\n".join([*found.lines(), *(f"page  {p}" for p in page.values())]))
