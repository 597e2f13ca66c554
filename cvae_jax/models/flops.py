"""How much arithmetic the report's CVAE is, counted from its parameters.

Every map keeps the frame's resolution, so a convolution does as many multiply-adds per pixel as its kernel
has weights. Additions of biases, activations and normalisation (a few percent) are not counted.
"""

from __future__ import annotations

import jax
from jaxtyping import PyTree

FRAME, LABEL = "frame_encoder", "label_encoder"


def multiply_adds(params: PyTree) -> dict[str, int]:
    """Return the multiply-adds per pixel of each network of a model (see `cvae_jax.models.cvae`)."""
    return {name: _kernel_weights(network) for name, network in params.items()}


def training_flops(params: PyTree, pixels: int, teacher_forced: bool = True) -> int:
    """Return the floating-point operations of one predicted frame's share of a training step.

    A multiply-add counts two. A gradient costs two convolutions for each of the forward pass, but the frame
    and the label images need none. The previous frame is encoded again, without gradient, only where it is a
    generated one.

    Args:
      pixels: height x width of a frame.
      teacher_forced: whether the previous frame is the true one.
    """
    counts = multiply_adds(params)
    first_layers = [
        params[FRAME]["layer_0"]["conv1"],
        params[FRAME]["layer_0"]["skip"],
        params[LABEL]["layer_1"],
    ]
    total = 3 * sum(counts.values()) - _kernel_weights(first_layers)
    if not teacher_forced:
        total += counts[FRAME]
    return 2 * pixels * total


def prediction_flops(params: PyTree, pixels: int) -> int:
    """Return the floating-point operations of one frame generated from the prior."""
    counts = multiply_adds(params)
    return 2 * pixels * (sum(counts.values()) - counts["gaussian_predictor"])


def _kernel_weights(tree: PyTree) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size for path, leaf in leaves if getattr(path[-1], "key", None) == "kernel")
