"""A deep teacher into a small student by clusters, against the student trained directly and against other teachers and losses.

    python -m experiments.transfer DATA [--pretext rotation|jigsaw|simclr] [--teacher ARCH] [--student ARCH] [--size S] [--epochs N] [--seeds N]
        [--clusters K,K] [--fit DATA] [--out FOLDER] [--test DATA] [--results FOLDER]

Arms: the teacher; the student trained on the pretext task itself; the student taught by the teacher's clusters, by HOG's and by bow-sift's, by
shuffled labels, by regression, CompRess (one queue and two) and SEED, and by the data's own labels; each number of ``--clusters``; clusters of the
images of ``--fit``. Every arm is measured by k-NN and a linear classifier, those of BLOCKS by a linear one on every block. Runs lie in the folder,
what came of them in results/transfer_PRETEXT.json; a second call goes on. Photographs at 96 px, ResNet-50 to ResNet-18 and 200 epochs want a GPU;
5,000 images at 32 px, resnet18 to micro-resnet and 20 epochs are for two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gnothi import evaluate
from gnothi.files import write_text
from gnothi.pretrain import train
from gnothi.transfer import TransferSpec, transfer

PRETEXTS: dict[str, dict[str, Any]] = {
    "rotation": {"method": {"name": "none"}, "auxiliary": {"rotation": {}}},
    "jigsaw": {"method": {"name": "none"}, "auxiliary": {"jigsaw": {"max_occlusions": 2}}},
    "simclr": {"method": {"name": "simclr"}},
}


TWO = "compress with two queues"
BLOCKS = ("teacher", "direct", "clusters", "supervised")
RESULTS = Path(__file__).parent / "results"


def arms(teacher: str, clusters: list[int], fit: str | None) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """By name: the teachers, and what transfer does with them; everything that differs from the arm "clusters" is there to be compared with it."""
    found: dict[str, tuple[list[str], dict[str, Any]]] = {"clusters": ([teacher], {})}
    found |= {name: ([name], {}) for name in ("hog", "bow-sift")}
    found |= {"shuffled": ([teacher], {"shuffle": True}), "heads": ([teacher], {"heads": 3})}
    found |= {loss: ([teacher], {"loss": loss}) for loss in ("regression", "compress", TWO, "seed")}
    found |= {f"k={k}": ([teacher], {"k": k}) for k in clusters}
    return found | ({"fit elsewhere": ([teacher], {"fit": fit})} if fit else {})


class Study:
    """Runs of one seed, each begun, gone on with or left alone."""

    def __init__(self, asked: argparse.Namespace, seed: int) -> None:
        self.asked, self.folder = asked, asked.out / f"seed-{seed}"
        self.shared = {"seed": seed, "views": {"size": asked.size}, "training": {"epochs": asked.epochs}}

    def pretext(self, name: str, backbone: str) -> Path:
        settings = {**self.shared, **PRETEXTS[self.asked.pretext], "backbone": {"name": backbone}}
        return self._ran(name, lambda out, on: train(self.asked.data, settings=settings, out=out, resume=on))

    def supervised(self) -> Path:
        settings = {**self.shared, "method": {"name": "classify"}, "backbone": {"name": self.asked.student}}
        settings["views"] = {**self.shared["views"], "recipe": "plain"}
        return self._ran("supervised", lambda out, on: train(self.asked.data, settings=settings, out=out, resume=on))

    def taught(self, name: str, teachers: list[str], spec: dict[str, Any]) -> Path:
        queues = {"method": {"queues": 2}} if spec.get("loss") == TWO else {}
        spec = {**spec, "loss": "compress"} if queues else spec
        more = {"student": self.asked.student, "settings": {**self.shared, **queues}, "spec": TransferSpec.of(spec)}
        return self._ran(name.replace(" ", "-"), lambda out, on: transfer(teachers, self.asked.data, out=out, resume=on, **more))

    def _ran(self, name: str, run: Any) -> Path:
        out = self.folder / name
        if not (out / "verdict.json").exists():
            run(out, out.exists())
        return out

    def all(self) -> dict[str, Path]:
        """Every arm's run folder."""
        teacher = self.pretext("teacher", self.asked.teacher)
        found = {"teacher": teacher, "direct": self.pretext("direct", self.asked.student), "supervised": self.supervised()}
        chosen = arms(str(teacher), self.asked.clusters, self.asked.fit)
        return found | {name: self.taught(name, *arm) for name, arm in chosen.items()}


def measured(metric: str, run: str, data: str, test: str | None) -> list[dict[str, Any]]:
    """One number, or one for every block."""
    results = evaluate.layers([run], data, test, metrics=("linear",)) if metric == "blocks" else evaluate.run(metric, [run], data, test)
    kept = ("value", "low", "high", "n", "protocol")
    return [{k: getattr(r, k) for k in kept} | {k: r.details[k] for k in ("block", "features") if k in r.details} for r in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--test")
    parser.add_argument("--pretext", choices=sorted(PRETEXTS), default="rotation")
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--student", default="micro-resnet")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clusters", type=lambda text: [int(k) for k in text.split(",")], default=[])
    parser.add_argument("--fit")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    path = asked.results / f"transfer_{asked.pretext}.json"
    done: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for seed in range(asked.seeds):
        for arm, folder in Study(asked, seed).all().items():
            for metric in ("knn", "linear", *(("blocks",) if arm in BLOCKS else ())):
                if any((r["arm"], r["measured"], r["seed"]) == (arm, metric, seed) for r in done):
                    continue
                done += [{**r, "arm": arm, "seed": seed, "measured": metric} for r in measured(metric, str(folder), asked.data, asked.test)]
                write_text(path, json.dumps(done, indent=1) + "\n")
                print(f"seed {seed} {arm} {metric} {done[-1]['value']:.3f}", flush=True)


if __name__ == "__main__":
    main()
