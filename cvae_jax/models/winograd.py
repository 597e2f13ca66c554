"""3x3 convolutions with 4/9 of the multiplications: F(2x2, 3x3) of Lavin and Gray (2016).

Each 2x2 block of the result comes from a tile of 4x4 of the padded map. A transform of the tiles and one of
the kernel turn the convolution into 16 matrix products, and the result is a transform of these ("Fast
Algorithms for Convolutional Neural Networks", section 4.1). In float32 it is about as exact as a direct
convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cvae_jax.models.products import bordered, product


def conv3x3(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    """Return a 3x3 convolution with zero padding 1 of float32 maps, whose height and width are even.

    Maps and kernels are transformed by rows, then by columns, and results by columns, then by rows. Each of
    the four columns of a tile is one product, batched over its four rows.
    """
    n, height, width, channels = x.shape
    rows, columns = height // 2, width // 2
    padded = bordered(x).reshape(n, rows + 1, 2, width + 2, channels)
    by_row = jnp.stack(_of_tile([padded[:, i // 2 :][:, :rows, i % 2] for i in range(4)]))
    pairs = by_row.reshape(4, n * rows, columns + 1, 2, channels)
    tiles = _of_tile([pairs[:, :, j // 2 :][:, :, :columns, j % 2] for j in range(4)])
    taps = _of_kernel([jnp.stack(_of_kernel([kernel[i, j] for i in range(3)])) for j in range(3)])
    products = [
        jax.vmap(product)(tile.reshape(4, -1, channels), tap) for tile, tap in zip(tiles, taps, strict=True)
    ]
    by_column = [_of_result([part[i] for i in range(4)]) for part in _of_result(products)]
    results = [[by_column[j][i].reshape(n, rows, columns, -1) for j in range(2)] for i in range(2)]
    y = jnp.stack([jnp.stack(row, axis=3) for row in results], axis=2).reshape(n, height, width, -1)
    return lax.optimization_barrier(y)  # else each of its readers computes the transform again


def _of_tile(d: Sequence[Array]) -> list[Array]:
    """Return B^T d of the four rows, or columns, of tiles."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _of_kernel(g: Sequence[Array]) -> list[Array]:
    """Return G g of the three rows, or columns, of a kernel."""
    ends = g[0] + g[2]
    return [g[0], 0.5 * (ends + g[1]), 0.5 * (ends - g[1]), g[2]]


def _of_result(m: Sequence[Array]) -> list[Array]:
    """Return A^T m: two rows, or columns, of the result from four of the products."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
