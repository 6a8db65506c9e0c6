"""gnothi learns visual representations from unlabelled images."""

__version__ = "0.1.0"
