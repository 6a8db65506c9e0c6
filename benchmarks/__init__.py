"""What things cost, each with what it measured in results/."""

import os

# As the command line has it (docs/log.md): threads that wait by spinning lose most of their speed when anything else runs. Read as torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
