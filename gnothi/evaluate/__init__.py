"""How good a representation is, with an interval and a protocol."""

from gnothi.evaluate.nearest import PRESETS, knn
from gnothi.evaluate.result import Difference, Predictions, Result, paired, summary, wilson

__all__ = ["PRESETS", "Difference", "Predictions", "Result", "knn", "paired", "summary", "wilson"]
