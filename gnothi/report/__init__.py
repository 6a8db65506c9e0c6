"""The page of a run, drawn from its folder."""

from gnothi.report.page import write

__all__ = ["write"]
