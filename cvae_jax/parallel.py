"""The only pmap: training, validation and evaluation go to the devices through here.

States are kept once, not replicated: `in_axes=None` broadcasts them, `out_axes=None` returns one copy. A
batch is (clips, ...) outside and (devices, clips / devices, ...) inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXIS = "devices"


class Devices:
    """The devices of a run: splits batches over them and maps functions.

    Args:
      devices: the devices to use; None for all local ones.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self.devices = tuple(jax.local_devices() if devices is None else devices)

    def __len__(self) -> int:
        return len(self.devices)

    def place(self, tree: PyTree) -> PyTree:
        """Put one copy of a tree on every device, laid out as `map_reduced` returns it.

        A mapped function compiles once per layout of its arguments: a state placed like this at the start
        is the only layout it ever sees.
        """
        mesh = Mesh(np.array(self.devices), (AXIS,))
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))

    def map_reduced(self, function: Callable) -> Callable:
        """pmap `function(shared, batch, shared) -> shared`: outputs must be equal on all devices."""
        return jax.pmap(
            function, AXIS, in_axes=(None, 0, None), out_axes=None, devices=self.devices
        )

    def map_clips(self, function: Callable) -> Callable:
        """pmap `function(shared, batch, shared) -> per clip`: outputs are gathered along clips."""
        mapped = jax.pmap(
            function, AXIS, in_axes=(None, 0, None), out_axes=0, devices=self.devices
        )

        def gathered(shared: PyTree, batch: PyTree, controls: PyTree) -> PyTree:
            return jax.tree.map(_merge, jax.device_get(mapped(shared, batch, controls)))

        return gathered

    def split(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Reshape (clips, ...) to (devices, clips / devices, ...); clips must be divisible."""
        n = len(self)
        return {k: v.reshape(n, v.shape[0] // n, *v.shape[1:]) for k, v in batch.items()}


def total(tree: Any) -> Any:
    """Sum over the devices of a mapped function."""
    return lax.psum(tree, AXIS)


def _merge(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, *x.shape[2:])
