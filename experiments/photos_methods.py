"""Every method on `photos` with its recipe: k-NN and linear accuracy on the other side of each photograph, at the last epoch.

    python experiments/photos_methods.py [--seeds N]

Resumable: what stands in results/photos_methods.json is not run again. About two minutes a method and seed on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from gnothi import evaluate
from gnothi.files import write_text
from gnothi.methods import METHODS
from gnothi.pretrain import train

RESULTS = Path(__file__).parent / "results" / "photos_methods.json"
BASELINES = ("pixels", "hog", "colour")


def measured(encoder: str, called: str, seed: int) -> list[dict]:
    rows = [r for metric in ("knn", "linear") for r in evaluate.run(metric, [encoder], "photos@train", "photos@test")]
    return [{**r.to_dict(), "encoder": called, "seeds": [seed]} for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    seeds = parser.parse_args().seeds
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else []

    def missing(called: str, seed: int) -> bool:
        return not any(r["encoder"] == called and r["seeds"] == [seed] for r in done)

    def keep(rows: list[dict]) -> None:
        done.extend(rows)
        write_text(RESULTS, json.dumps(done, indent=1) + "\n")
        print(*(f"{r['encoder']} seed {r['seeds'][0]} {r['metric']} {r['value']:.3f}" for r in rows), sep="\n", flush=True)

    for name in BASELINES:
        if missing(name, 0):
            keep(measured(name, name, 0))
    for seed in range(seeds):
        for method in (m for m, (_, kind) in METHODS.items() if kind.compares):
            if missing(method, seed):
                with tempfile.TemporaryDirectory() as folder:
                    run = train("photos", out=Path(folder) / "run", settings={"method": {"name": method}, "seed": seed})
                    rows = measured(str(run.folder), method, seed)
                    if missing("untrained", seed):
                        rows += measured(f"{run.folder}@untrained", "untrained", seed)
                    keep([{**r, "verdict": run.verdict["verdict"], "seconds": run.verdict["seconds"]} for r in rows])


if __name__ == "__main__":
    main()
