"""Which recipe for `photos`: short runs that differ in one thing, judged by k-NN on tiles held out of the training side, never on the test side.

    python experiments/photos_sweep.py

Resumable: what stands in results/photos_sweep.json is not run again. About two minutes a run on two cores.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from gnothi.pretrain import train
from gnothi.training.checkpoint import write_text

RESULTS = Path(__file__).parent / "results" / "photos_sweep.json"
ARMS: dict[str, dict] = {
    "recipe": {},
    "rate x 2": {"optimiser": {"lr": 0.24}},
    "rate / 2": {"optimiser": {"lr": 0.06}},
    "temperature 0.1": {"method": {"temperature": 0.1}},
    "temperature 0.5": {"method": {"temperature": 0.5}},
    "batch 64": {"training": {"batch": 64}, "optimiser": {"lr": 0.12}},
    "colours untouched": {"views": {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "jitter": 0}},
    "colours strong": {"views": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grey": 0.2}},
    "crops 8 %": {"views": {"area": [0.08, 1.0]}},
    "crops 40 %": {"views": {"area": [0.4, 1.0]}},
    "turns": {"views": {"turns": True}},
}


def main() -> None:
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, settings in ARMS.items():
        if name not in done:
            with tempfile.TemporaryDirectory() as folder:
                along = {"training": {"evaluate_every": "100%", "threads": 1}}
                run = train("photos", out=Path(folder) / "run", settings=settings | {"training": along["training"] | settings.get("training", {})})
            last = [m for m in run.metrics if m["kind"] == "evaluation"][-1]
            done[name] = {"knn_held_out": last["value"], "low": last["low"], "high": last["high"], "n": last["n"], "verdict": run.verdict["verdict"]}
            write_text(RESULTS, json.dumps(done, indent=1) + "\n")
            print(name, done[name], flush=True)


if __name__ == "__main__":
    main()
