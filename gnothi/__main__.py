"""``python -m gnothi`` is ``gnothi``."""

from gnothi.cli import main

main()
