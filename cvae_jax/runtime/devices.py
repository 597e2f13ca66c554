"""The only pmap: training, validation and evaluation go to the devices through here.

States are kept once, not replicated: `in_axes=None` broadcasts them, `out_axes=None` returns one copy. A
batch is (clips, ...) outside and (devices, clips / devices, ...) on the devices.

In a job of several processes (see `processes`) functions are mapped over the devices of all of them. Each
process gives them its own share of the batch, in the order of the processes, and gets back its own share.
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

from cvae_jax.runtime import processes

AXIS = "devices"
_Item = TypeVar("_Item")


class Devices:
    """The devices of a run: splits batches over them and maps functions.

    Args:
      devices: the devices to use, in a job of one process only; None for all.

    Attributes:
      devices: those of this process.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        assert devices is None or processes.count() == 1, "several processes use all devices"
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        self._mesh = Mesh(np.array(self.devices), (AXIS,))
        self._mapped_over = self.devices if processes.count() == 1 else None  # pmap knows those of all

    def __len__(self) -> int:
        """Return the number of devices of all processes."""
        return len(self.devices) * processes.count()

    def padded(self, clips: int, parts: int = 1) -> int:
        """Return the number of clips that a batch of so many is filled up to, for `parts` on each device."""
        return -(-clips // (len(self) * parts)) * len(self) * parts

    def share(self, clips: int) -> slice:
        """Return which clips of a padded batch this process gives to its devices."""
        size = clips // processes.count()
        return slice(processes.index() * size, (processes.index() + 1) * size)

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
            donate_argnums=0,
            devices=self._mapped_over,
        )

    def map_clips(self, function: Callable) -> Callable:
        """pmap `function(shared, batch, shared) -> per clip`: outputs stay on the devices, see `fetch`."""
        return jax.pmap(function, AXIS, in_axes=(None, 0, None), out_axes=0, devices=self._mapped_over)

    def fetch(self, tree: PyTree) -> PyTree:
        """Bring this process's share, (devices, clips / devices, ...), to the host as (clips, ...)."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree))

    def join(self, tree: PyTree) -> PyTree:
        """Return (clips, ...) of all processes from the share (clips, ...) of each."""
        if processes.count() == 1:
            return tree
        return jax.tree.map(lambda *shares: np.concatenate(shares), *processes.gather(tree))

    def split(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Send this process's share (clips, ...) to its devices as (devices, clips / devices, ...).

        Clips must be divisible by its devices. Returns at once: the transfer continues in the background.
        """
        n = len(self.devices)
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
