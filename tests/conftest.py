"""Settings of every test: four fake CPU devices, strict ranks, shapes checked at run time."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cvae_jax import platform  # noqa: E402

# Compilation is most of a test's time: level 0 takes a third of it. CVAE_TEST_OPTIMIZED=1 tests the
# programs as users run them.
if not os.environ.get("CVAE_TEST_OPTIMIZED"):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
platform.prepare()  # with the cache of compiled programs: what did not change is compiled once

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("cvae_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
