"""What every test shares: one thread, no display, fixed seeds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before mxnet is imported: several test processes share the cores
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
import signal
import sys

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("same", deadline=None, derandomize=True)  # mxnet's first call is slow; runs repeat exactly
settings.register_profile("explore", deadline=None)  # pytest --hypothesis-profile explore
settings.load_profile("same")
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script, and children would inherit that


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    if "mxnet" in sys.modules:
        sys.modules["mxnet"].random.seed(0)
