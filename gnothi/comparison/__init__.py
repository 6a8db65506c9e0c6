"""Methods times auxiliary objectives times seeds on equal terms."""

from gnothi.comparison.arms import Arm, arms
from gnothi.comparison.runs import Comparison, compare

__all__ = ["Arm", "Comparison", "arms", "compare"]
