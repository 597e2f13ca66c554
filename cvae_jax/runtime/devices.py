"""The only pmap: training, validation and evaluation go to the devices through here.

States are kept once, not replicated: `in_axes=None` broadcasts them, `out_axes=None` returns one copy. A
batch is (clips, ...) outside and (devices, clips / devices, ...) on the devices.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXIS = "devices"
_Item = TypeVar("_Item")


class Devices:
    """The devices of a run: splits batches over them and maps functions.

    Args:
      devices: the devices to use; None for all local ones.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        self._mesh = Mesh(np.array(self.devices), (AXIS,))

    def __len__(self) -> int:
        return len(self.devices)

    def place(self, tree: PyTree) -> PyTree:
        """Put one copy of a tree on every device, laid out as `map_update` returns it.

        A mapped function compiles once per layout of its arguments: a state placed like this at the start
        is the only layout it ever sees.
        """
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def map_update(self, function: Callable) -> Callable:
        """pmap `function(state, batch, shared) -> (state, shared)`: outputs must be equal on all devices.

        The given state is donated: the new one takes its place in memory, and it cannot be used again.
        """
        return jax.pmap(
            function,
            AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=self.devices,
            donate_argnums=0,
        )

    def map_clips(self, function: Callable) -> Callable:
        """pmap `function(shared, batch, shared) -> per clip`: outputs stay on the devices, see `fetch`."""
        return jax.pmap(function, AXIS, in_axes=(None, 0, None), out_axes=0, devices=self.devices)

    def fetch(self, tree: PyTree) -> PyTree:
        """Bring (devices, clips / devices, ...) to the host as (clips, ...)."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree))

    def split(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Send (clips, ...) to the devices as (devices, clips / devices, ...); clips must be divisible.

        Returns at once: the transfer continues in the background.
        """
        n = len(self)
        parts = {k: v.reshape(n, v.shape[0] // n, *v.shape[1:]) for k, v in batch.items()}
        return jax.device_put(parts, NamedSharding(self._mesh, PartitionSpec(AXIS)))


def psum(tree: Any) -> Any:
    """Sum over the devices of a mapped function."""
    return lax.psum(tree, AXIS)


def prefetch(items: Iterator[_Item], ahead: int = 2) -> Iterator[_Item]:
    """Yield items, `ahead` of them made before they are asked for: their transfers have begun by then."""
    made = collections.deque(itertools.islice(items, ahead))
    while made:
        yield made.popleft()
        made.extend(itertools.islice(items, 1))
