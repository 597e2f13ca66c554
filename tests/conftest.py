"""Settings of every test: eight fake CPU devices, strict ranks, shapes checked at run time."""

import gc
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cvae_jax.runtime import platform  # noqa: E402

# Compilation is most of a test's time: level 0 takes a third of it. CVAE_TEST_OPTIMIZED=1 tests the
# programs as users run them.
if not os.environ.get("CVAE_TEST_OPTIMIZED"):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
# Devices wait for each other in sums: on busy cores for longer than the 40 seconds after which XLA aborts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ["JAX_PLATFORMS"] = "cpu"
platform.prepare()  # with the cache of compiled programs: what did not change is compiled once

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("cvae_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from helpers import ROOT, moving_square  # noqa: E402
from PIL import Image  # noqa: E402
from small_model import SmallCVAE  # noqa: E402

from cvae_jax import models  # noqa: E402

MAPS = Path("/proc/self/maps")
MANY_MAPS = 35_000


@pytest.fixture(autouse=True)
def limit_memory_maps():
    """Drop all compiled programs after a test that leaves many memory maps.

    A program has up to hundreds of them, and a process with as many as Linux admits, 65,530, crashes when it
    loads another program. Otherwise programs are kept for the tests that share them.
    """
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def small_model(request, monkeypatch):
    """Every run of these tests trains the small model, but for those marked slow."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setitem(models.KINDS, "cvae", SmallCVAE)


@pytest.fixture
def data(monkeypatch):
    recordings = {
        "train": [moving_square("a", 18, 1), moving_square("b", 11, 2)],  # 6 clips: 4 + 2
        "validation": [moving_square("c", 6, 3), moving_square("d", 5, 4)],
    }
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: recordings)
    return recordings


@pytest.fixture(scope="session")
def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory):
    """A data set in the lab's layout: 30 training and 8 validation frames of 24 x 40 pixels."""
    root = tmp_path_factory.mktemp("lab data ä")
    rng = np.random.default_rng(0)
    background = rng.integers(0, 120, (24, 40, 3), np.uint8)
    for split, length in (("train", 30), ("val", 8)):
        for kind in ("img", "label"):
            where = root / split / f"{split}_{kind}"
            where.mkdir(parents=True)
            for t in range(length):
                image = background.copy() if kind == "img" else np.zeros_like(background)
                image[8:16, t : t + 8] = 240
                Image.fromarray(image).save(where / f"frame{t}.png")
    return root
