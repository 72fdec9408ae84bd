"""What holds for all tests."""

import os

# The runner of parallel tests tells its workers a width of 80; tables are tested at the width of a pipe.
os.environ.pop("COLUMNS", None)

# Kernels are compiled as the command line does it (`ggplan.quants.compiling`), in three quarters of the time.
os.environ.setdefault("NUMBA_OPT", "0")
