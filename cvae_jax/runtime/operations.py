"""The arithmetic of a program, counted in its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, whatever the loop's length, so a clip of 16 frames would
cost as much as one of two. Here a loop counts as often as it runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class Operations:
    """The matrix products and convolutions of a program.

    Attributes:
      flops: floating-point operations by the dtype of the operands; a multiply-add counts two.
      bytes: what they read and write, if each reads its operands and writes its result once.
      number: how many of them run.
    """

    flops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    number: int = 0

    @property
    def total_flops(self) -> int:
        """The floating-point operations of all dtypes."""
        return sum(self.flops.values())

    def __add__(self, other: Operations) -> Operations:
        names = self.flops.keys() | other.flops.keys()
        flops = {name: self.flops.get(name, 0) + other.flops.get(name, 0) for name in sorted(names)}
        return Operations(flops, self.bytes + other.bytes, self.number + other.number)

    def __mul__(self, times: int) -> Operations:
        flops = {name: times * value for name, value in self.flops.items()}
        return Operations(flops, times * self.bytes, times * self.number)


def count_operations(program: ClosedJaxpr | Jaxpr) -> Operations:
    """Return the operations of one run of a program.

    A scan counts as often as it runs, a `cond` as its costlier branch, and a loop whose length only the data
    decide (`lax.while_loop`) once. Elementwise operations and sums are not counted, nor is what no output
    depends on, which compilers leave out.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(program: ClosedJaxpr | Jaxpr) -> Operations:
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return _sum(_of_equation(equation) for equation in jaxpr.eqns)


def _sum(parts: Iterable[Operations]) -> Operations:
    return sum(parts, start=Operations())


def _of_equation(equation: Any) -> Operations:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        taps = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return _product(equation, taps * math.prod(equation.outvars[0].aval.shape))
    if name == "conv_general_dilated":
        return _product(equation, _multiply_adds(equation))
    inner = [_count(part) for part in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner, key=lambda operations: operations.total_flops)
    return _sum(inner) * (params["length"] if name == "scan" else 1)


def _product(equation: Any, multiply_adds: int) -> Operations:
    arrays = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    moved = sum(array.size * array.dtype.itemsize for array in arrays)
    return Operations({arrays[0].dtype.name: 2 * multiply_adds}, moved, 1)


def _multiply_adds(equation: Any) -> int:
    """Return the multiply-adds of a convolution, without those with padding and between dilated pixels."""
    params, (image, kernel) = equation.params, [variable.aval.shape for variable in equation.invars]
    layout = params["dimension_numbers"]
    taps = math.prod(
        _taps(image[i], kernel[k], *window)
        for i, k, *window in zip(
            layout.lhs_spec[2:],
            layout.rhs_spec[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    )
    outputs = equation.outvars[0].aval.shape
    batch, features = (outputs[axis] for axis in layout.out_spec[:2])
    return batch * features * kernel[layout.rhs_spec[1]] * taps


def _taps(size: int, kernel: int, stride: int, padding: tuple[int, int], spread: int, dilation: int) -> int:
    """Return how often a kernel meets a true pixel along one axis, `spread` apart in the padded image."""
    wide = (size - 1) * spread + 1
    starts = np.arange(-padding[0], wide + padding[1] - (kernel - 1) * dilation, stride)
    places = starts[:, None] + dilation * np.arange(kernel)[None, :]
    return int(np.sum((places >= 0) & (places < wide) & (places % spread == 0)))
