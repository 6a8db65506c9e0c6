"""Several encoders, one representation: combiners in closed form and by descent, and the folder of a fitted one, which is an encoder."""

from gnothi.ensemble.combine import COMBINERS, Ensemble, fit
from gnothi.ensemble.fitted import EnsembleEncoder, make
from gnothi.ensemble.table import ALL, compare, compare_by, text

__all__ = ["ALL", "COMBINERS", "Ensemble", "EnsembleEncoder", "compare", "compare_by", "fit", "make", "text"]
