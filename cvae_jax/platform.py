"""Settings of the process that must be made before JAX starts its backend."""

from __future__ import annotations

import importlib.util
import mmap
import os
from pathlib import Path

CPU_FLAGS = {
    # jaxlib 0.10's default hands products and convolution gradients to YNNPACK fusions that take up to
    # three times as long (measured); sums over pixels gain from it.
    "--xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    # Compiles in three quarters of the time, and what it compiles is not slower (measured).
    "--xla_backend_optimization_level": "1",
}


def set_xla_flags() -> list[str]:
    """Add the CPU settings to XLA_FLAGS and return those added.

    A flag is added only where the installed jaxlib knows it (an unknown one aborts the process) and never
    over the user's own. The flags act on XLA's CPU backend only.
    """
    given = os.environ.get("XLA_FLAGS", "")
    wanted = {name: value for name, value in CPU_FLAGS.items() if name not in given}
    added = [f"{name}={value}" for name, value in wanted.items() if _jaxlib_knows(name)]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [given, *added]))
    return added


def _jaxlib_knows(flag: str) -> bool:
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        return False
    needle = flag.removeprefix("--").encode()
    for library in sorted(Path(spec.origin).parent.glob("libjax_common*")):
        with library.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(needle) >= 0:
                    return True
    return False
