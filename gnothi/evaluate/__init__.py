"""How good a representation is, with an interval and a protocol."""

from gnothi.evaluate.compare import table
from gnothi.evaluate.linear import linear
from gnothi.evaluate.nearest import PRESETS, knn
from gnothi.evaluate.result import Difference, Predictions, Result, paired, summary, wilson
from gnothi.evaluate.run import run

__all__ = ["PRESETS", "Difference", "Predictions", "Result", "knn", "linear", "paired", "run", "summary", "table", "wilson"]
