"""Seeds, one thread per worker, and Hypothesis profiles."""

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("CELLFUSE_HYPOTHESIS", "ci"))
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def kernels_of_this_run_only(tmp_path_factory):
    """Compiled kernels go to a folder of the test run, not to the user's."""
    before = os.environ.get("CELLFUSE_CACHE")
    os.environ["CELLFUSE_CACHE"] = str(tmp_path_factory.mktemp("kernels"))
    yield
    os.environ.pop("CELLFUSE_CACHE")
    if before is not None:
        os.environ["CELLFUSE_CACHE"] = before


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
