"""How good a representation is, with an interval and a protocol."""

from gnothi.evaluate.compare import table
from gnothi.evaluate.depth import plot
from gnothi.evaluate.detect import detect
from gnothi.evaluate.detector import DetectSpec
from gnothi.evaluate.finetune import finetune
from gnothi.evaluate.layers import layers, over_seeds
from gnothi.evaluate.layers import table as table_of_layers
from gnothi.evaluate.linear import linear
from gnothi.evaluate.multilabel import multilabel
from gnothi.evaluate.nearest import PRESETS, knn
from gnothi.evaluate.patches import patches
from gnothi.evaluate.result import Difference, Predictions, Result, paired, summary, wilson
from gnothi.evaluate.run import run
from gnothi.evaluate.tuning import FinetuneSpec

__all__ = [
    "PRESETS",
    "DetectSpec",
    "Difference",
    "FinetuneSpec",
    "Predictions",
    "Result",
    "detect",
    "finetune",
    "knn",
    "layers",
    "linear",
    "multilabel",
    "over_seeds",
    "paired",
    "patches",
    "plot",
    "run",
    "summary",
    "table",
    "table_of_layers",
    "wilson",
]
