"""Every convolution's plain and CPU formulation side by side: python -m benchmarks.formulations

Times value and all gradients at the widths of the full-size model, two clips of 32 x 64. Both are repeated
inside one program (a block by itself would be charged for faulting its arrays in) and take turns; the table
has the medians over the turns, in milliseconds, and the median of their ratios.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from cvae_jax.runtime import platform

os.environ["JAX_PLATFORMS"] = "cpu"
platform.prepare(restart=__name__ == "__main__")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402
from tqdm import tqdm  # noqa: E402

from cvae_jax.models import ops  # noqa: E402

CLIPS, HEIGHT, WIDTH = 2, 32, 64
TURNS = 7
# name: (operation, input channels, kernel's shape, repetitions in a turn)
CASES = {
    "1x1, 192 -> 192": (ops.dense, 192, (1, 1, 192, 192), 10),
    "1x1 to the gate's halves, 192 -> 2 x 384": (ops.dense_halves, 192, (1, 1, 192, 768), 5),
    "3x3, 192 -> 96": (ops.conv3x3, 192, (3, 3, 192, 96), 5),
    "3x3 to few channels, 160 -> 3": (ops.conv3x3, 160, (3, 3, 160, 3), 10),
    "depthwise 3x3, 192": (ops.depthwise3x3, 192, (3, 3, 1, 192), 5),
    "7x7 of a label, 3 -> 16": (ops.conv_valid, 3, (7, 7, 3, 16), 10),
}


def program(operation: Callable, channels: int, shape: tuple[int, ...], repeats: int, form: str) -> Callable:
    """Return a compiled call that takes value and gradients `repeats` times, each fed by the one before."""
    padding = shape[0] - 1 if operation is ops.conv_valid else 0
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (CLIPS, HEIGHT + padding, WIDTH + padding, channels))
    kernel = 0.1 * jax.random.normal(keys[1], shape)
    bias = jnp.zeros(shape[-1])

    def once(_, arguments):
        value, pull_back = jax.vjp(lambda *given: operation(*given, form), *arguments)
        gradients = pull_back(jax.tree.map(jnp.tanh, value))
        return jax.tree.map(lambda a, g: a - 1e-6 * g, arguments, gradients)

    call = jax.jit(lambda *arguments: lax.fori_loop(0, repeats, once, arguments))
    jax.block_until_ready(call(x, kernel, bias))
    return lambda: jax.block_until_ready(call(x, kernel, bias))


def main() -> None:
    lines = ["| | plain (ms) | CPU (ms) | ratio |", "| --- | ---: | ---: | ---: |"]
    for title, (operation, channels, shape, repeats) in tqdm(CASES.items(), unit="convolution"):
        calls = {form: program(operation, channels, shape, repeats, form) for form in ("plain", "cpu")}
        taken: dict[str, list[float]] = {form: [] for form in calls}
        for _ in range(TURNS):
            for form, call in calls.items():
                started = time.perf_counter()
                call()
                taken[form].append(1000 * (time.perf_counter() - started) / repeats)
        ratio = statistics.median(p / c for p, c in zip(taken["plain"], taken["cpu"], strict=True))
        plain, cpu = (statistics.median(taken[form]) for form in ("plain", "cpu"))
        lines.append(f"| {title} | {plain:.2f} | {cpu:.2f} | {ratio:.1f} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
