"""What pre-training is worth to a detector: Faster R-CNN over an encoder, over its frozen network, and over random weights, by seed, with intervals.

    python -m experiments.detection DATA [--test DATA] [--encoder NAME] [--images FOLDER] [--backbone ARCH] [--epochs N] [--seeds N] [--steps N]
        [--shots N,N] [--size S] [--gpu] [--tiny] [--out FOLDER]

DATA is a folder in PASCAL VOC layout or a COCO file. Without --encoder one is pre-trained first on the images that train the detectors of every
seed, never on those that test one (or on --images), without their boxes, one seed for all. --shots trains on so many images, too. What was trained
lies in the folder and is gone on with; every result is written to results/detection.json as it comes (results/detection_gpu.json for --gpu, the
folder for --tiny), where arms stay, and one with fewer seeds drives out none with more. Where results of other data, another encoder or another
detector lie there, nothing begins.

On two cores a step of the default (a micro ResNet at 160 px) takes about a second, and its 220 epochs of pre-training, without --encoder, some 20
core-minutes more. --gpu takes a ResNet-18 at 480 px, 800 epochs of pre-training and 3,000 steps of 16 images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gnothi import evaluate
from gnothi.contracts import SettingError, Source
from gnothi.data import Subset
from gnothi.evaluate.finetune import over_repeats
from gnothi.evaluate.result import Result
from gnothi.evaluate.scenes import split_scenes
from gnothi.files import write_text
from gnothi.pretrain import train

RESULTS = Path(__file__).parent / "results"
SMALL = {"size": 160, "width": 64, "regions": 128, "proposals": 300, "batch": 4, "steps": 600}
LARGE = {"size": 480, "width": 256, "regions": 512, "proposals": 1000, "batch": 16, "steps": 3000}
TINY = {"size": 64, "width": 16, "regions": 16, "proposals": 50, "batch": 2, "steps": 3}


def pretrained(asked: argparse.Namespace, images: str | Source) -> str:
    """The run of an encoder that saw the images without their boxes."""
    out = asked.out / "encoder"
    settings: dict[str, Any] = {"backbone": {"name": asked.backbone}, "views": {"size": 96}, "training": {"epochs": asked.epochs}}
    settings |= {"method": {"name": "simclr"}, "data": {"holdout": 0.0}}
    train(images, settings=settings, out=out, resume=out.exists())  # one that is finished takes no step, and must have seen the same images
    return str(out)


def images_of(data: str, test: str | None, seeds: int) -> Source:
    """The images that train in every seed: without a list of test images, each seed holds out others."""
    trains = [split_scenes(data, test, seed=seed)[0].source for seed in range(seeds)]
    every = set.intersection(*({source.name(row) for row in range(len(source))} for source in trains))
    return Subset(trains[0], [row for row in range(len(trains[0])) if trains[0].name(row) in every])


def known(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Arms that stand in the results.

    Raises:
        SettingError: they are of other data, another encoder or detector, and would be lost.
    """
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    arms: dict[str, Any] = before.pop("arms")
    there, here = ({**of, **of["detector"]} for of in (before, about))
    apart = [key for key in dict.fromkeys([*there, *here]) if key != "detector" and there.get(key) != here.get(key)]
    if apart:
        words = ", ".join(f"{key} {there.get(key, 'none')}, not {here.get(key, 'none')}" for key in apart)
        raise SettingError(f"{path} has results of {words}; move it elsewhere, or ask for the same")
    return arms


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--test")
    parser.add_argument("--encoder")
    parser.add_argument("--images")
    parser.add_argument("--backbone")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--shots", type=lambda text: [int(n) for n in text.split(",")], default=[])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a few images and steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/detection"))
    asked = parser.parse_args(words)
    asked.backbone = asked.backbone or ("resnet18" if asked.gpu else "micro-resnet")
    asked.epochs = asked.epochs or (1 if asked.tiny else 800 if asked.gpu else 220)
    shape = dict(TINY if asked.tiny else LARGE if asked.gpu else SMALL)
    shape |= {key: value for key, value in (("steps", asked.steps), ("size", asked.size)) if value is not None}
    spec = evaluate.DetectSpec(**shape)
    path = asked.out / "results.json" if asked.tiny else RESULTS / f"detection{'_gpu' if asked.gpu else ''}.json"
    about: dict[str, Any] = {"data": Path(asked.data).name, "encoder": Path(asked.encoder or "encoder").name, "detector": shape}
    about |= {} if asked.encoder else {"backbone": asked.backbone, "epochs": asked.epochs}
    try:
        arms = known(path, about)
    except SettingError as error:  # before hours of training
        parser.error(str(error))
    encoder = asked.encoder or pretrained(asked, asked.images or images_of(asked.data, asked.test, asked.seeds))
    for images in [8] if asked.tiny else [*asked.shots, None]:
        by_seed: list[list[Result]] = []
        for seed in range(asked.seeds):
            more: dict[str, Any] = {"frozen": True, "control": True, "images": images, "test_images": 8 if asked.tiny else None, "shown": True}
            by_seed.append(evaluate.detect([encoder], asked.data, asked.test, spec=spec, seed=seed, out=asked.out / "detectors", **more))
            many = len({r.encoder for r in by_seed[0]})
            means = [r for i in range(0, len(by_seed[0]), many) for r in over_repeats([results[i : i + many] for results in by_seed], ("classes",))]
            arm = f"{images or 'all'} images"
            if len(by_seed) >= len(arms.get(arm, {"by seed": []})["by seed"]):
                arms[arm] = {
                    "by seed": [[r.to_dict() for r in results] for results in by_seed],
                    "means": [r.to_dict() for r in (means if len(by_seed) > 1 else by_seed[0])],
                }
                write_text(path, json.dumps({**about, "arms": arms}, indent=1) + "\n")
            print(evaluate.table(means if len(by_seed) > 1 else by_seed[0]).partition("\n\n")[0], flush=True)


if __name__ == "__main__":
    main()
