"""Initial variables drawn with NumPy: the same numbers on every backend, and nothing to compile.

Compiling a hundred random draws takes half a minute on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cvae_jax.models.interface import Variables

Rule = Callable[[Mapping[str, tuple[int, ...]], np.random.Generator], dict[str, np.ndarray]]
"""(shapes of a layer's arrays by name, generator) -> the arrays."""

CONSTANTS = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}  # of BatchNorm


def draw_variables(network: nn.Module, seed: int, rule: Rule, *inputs: jax.ShapeDtypeStruct) -> Variables:
    """Return initial variables of a network that is called with `inputs`, a function of `seed` alone.

    `rule` draws the arrays of one layer; layers follow one another in the order of their names.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    return {"batch_stats": {}} | _drawn(shapes, rule, rng)


def input_shapes(
    frame_size: tuple[int, int], label_size: int | None, channels: int = 3
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return the shapes of one frame and its label: an image where label_size is None, else a vector."""
    frame = jax.ShapeDtypeStruct((1, *frame_size, channels), jnp.float32)
    label = (1, *frame_size, 3) if label_size is None else (1, label_size)
    return frame, jax.ShapeDtypeStruct(label, jnp.float32)


def constant(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array that BatchNorm starts from."""
    return np.full(shape, CONSTANTS[name], np.float32)


def normal_fan_in(shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a convolution's kernel from N(0, 1 / fan_in), within two standard deviations; biases are 0."""
    drawn = {name: constant(name, shape) for name, shape in shapes.items() if name != "kernel"}
    if "kernel" in shapes:
        shape = shapes["kernel"]
        values = np.clip(rng.standard_normal(shape), -2.0, 2.0) / math.sqrt(math.prod(shape[:-1]))
        drawn["kernel"] = values.astype(np.float32)
    return drawn


def _drawn(tree: dict[str, Any], rule: Rule, rng: np.random.Generator) -> dict[str, Any]:
    branches = {name: leaf for name, leaf in sorted(tree.items()) if isinstance(leaf, dict)}
    leaves = {name: leaf.shape for name, leaf in sorted(tree.items()) if name not in branches}
    drawn = {name: _drawn(branch, rule, rng) for name, branch in branches.items()}
    return drawn | (rule(leaves, rng) if leaves else {})
