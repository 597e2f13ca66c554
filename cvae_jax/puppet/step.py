"""One step of a rollout as a function of arrays, and its program without control flow.

This module is also imported in the converter's environment (see `converter`), which has JAX and Flax but
nothing of the training program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array, PyTree

from cvae_jax.models.interface import StepInputs, Variables, VideoModel
from cvae_jax.rollout.scan import imagine_step

INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # how primitives that only call a program name it


class Names(NamedTuple):
    """The names of what a step takes and returns, in order.

    constants: of what the model derived from the context frames. carry: of what it remembers. changing: of
    the carry, what the step returns.
    """

    constants: tuple[str, ...]
    carry: tuple[str, ...]
    masks: tuple[str, ...]
    changing: tuple[str, ...]

    @property
    def inputs(self) -> list[str]:
        """Of the arguments."""
        return ["t", "frame", "label", "noise", *self.constants, *self.carry]

    @property
    def outputs(self) -> list[str]:
        """Of the results."""
        return ["next_frame", *(f"mask_{n}" for n in self.masks), *(f"next_{n}" for n in self.changing)]


def names_of(model: VideoModel, constants: PyTree, carry: PyTree) -> Names:
    """Return the names for a model's constants and carry, which are numbered."""
    fixed, kept = (
        tuple(f"{name}_{number}" for number in range(len(jax.tree.leaves(tree))))
        for name, tree in (("constant", constants), ("carry", carry))
    )
    return Names(fixed, kept, model.mask_names, kept)


def make_step(
    model: VideoModel, variables: Variables, n_past: int, constants: PyTree, carry: PyTree
) -> Callable[..., tuple[Array, ...]]:
    """Return the step of one video, a function of the arrays that `Names.inputs` lists.

    They are t, int32 (), the number of the frame to predict; the frame before it, in [0, 1] (1, h, w, 3);
    its label (1, ...); the noise of z, scaled by the temperature; and the leaves of the model's constants and
    carry. Returned are those that `Names.outputs` lists: the frame in [0, 1], the masks (1, h, w, 1), and the
    leaves of the next carry.
    """
    structures = [jax.tree.structure(tree) for tree in (constants, carry)]
    split = len(jax.tree.leaves(constants))

    def step(t: Array, frame: Array, label: Array, noise: Array, *leaves: Array) -> tuple[Array, ...]:
        fixed, kept = (
            jax.tree.unflatten(structure, part)
            for structure, part in zip(structures, (leaves[:split], leaves[split:]), strict=True)
        )
        is_given = t <= n_past
        x = StepInputs(
            t=t,
            previous=frame,
            previous_is_true=is_given,
            previous_is_given=is_given,
            label=label,
            conditioning=None,
            noise=noise,
            mask=jnp.ones(1),
            target=None,
        )
        outputs, after = imagine_step(model, variables, fixed, kept, x)
        masks = outputs.masks or {}
        return (outputs.frame, *(masks[name] for name in model.mask_names), *jax.tree.leaves(after))

    return step


def without_copies(
    step: Callable[..., tuple[Array, ...]], names: Names, inputs: Sequence[Any]
) -> tuple[Callable[..., tuple[Array, ...]], Names]:
    """Return a step that leaves out the parts of the carry that it returns as they are, and its names.

    inputs: arrays or shapes of the step's arguments. (An ONNX program cannot return one of its inputs. One
    that is returned in another place is multiplied by 1.)
    """
    jaxpr = jax.make_jaxpr(step)(*inputs).jaxpr
    first = len(names.outputs) - len(names.carry)
    own = jaxpr.invars[len(jaxpr.invars) - len(names.carry) :]
    changed = [k for k, out in enumerate(jaxpr.outvars[first:]) if out is not own[k]]
    kept = [*range(first), *(first + k for k in changed)]
    copies = [jaxpr.outvars[k] in jaxpr.invars for k in kept]

    def reduced(*args: Array) -> tuple[Array, ...]:
        outputs = step(*args)
        return tuple(outputs[k] * 1 if copy else outputs[k] for k, copy in zip(kept, copies, strict=True))

    return reduced, names._replace(changing=tuple(names.carry[k] for k in changed))


def straightened(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arrays that computes the same as one flat program.

    Both sides of a `lax.cond` are computed and one is selected; calls are inlined; a `lax.scan` is unrolled;
    arrays without elements and their part in a concatenation are left out. Converters to other formats handle
    these badly. Raises ValueError for a `lax.while_loop`.
    """

    def flat(*args: Array) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(closed, args))

    return flat


def _evaluate(closed: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True)
    )

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs: list[Any]
        name, parameters = equation.primitive.name, equation.params
        inner = next((parameters[key] for key in INNER if key in parameters), None)
        if name == "while":
            raise ValueError("a step has a lax.while_loop, which cannot be unrolled.")
        if all(variable.aval.size == 0 for variable in equation.outvars):
            outputs = [np.zeros(variable.aval.shape, variable.aval.dtype) for variable in equation.outvars]
        elif name == "cond":
            which, *operands = inputs
            branches = [_evaluate(branch, operands) for branch in parameters["branches"]]
            if len(branches) == 2:
                which = lax.ne(which, lax.full_like(which, 0)) if which.dtype != bool else which
            outputs = [lax.select_n(which, *cases) for cases in zip(*branches, strict=True)]
        elif name == "scan":
            outputs = _unrolled(parameters, inputs)
        elif name == "concatenate":
            outputs = [lax.concatenate([x for x in inputs if x.size], parameters["dimension"])]
        elif inner is not None:
            is_closed = isinstance(inner, core.ClosedJaxpr)
            outputs = _evaluate(inner if is_closed else core.ClosedJaxpr(inner, []), inputs)
        else:
            outputs = equation.primitive.bind(*inputs, **parameters)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _unrolled(scan: dict[str, Any], inputs: Sequence[Any]) -> list[Any]:
    """Return what a `lax.scan` with these parameters returns."""
    fixed, carried = scan["num_consts"], scan["num_consts"] + scan["num_carry"]
    carry, steps = list(inputs[fixed:carried]), list(range(scan["length"]))
    kept: dict[int, list[Any]] = {}
    for step in reversed(steps) if scan["reverse"] else steps:
        own = [lax.index_in_dim(x, step, keepdims=False) for x in inputs[carried:]]
        found = _evaluate(scan["jaxpr"], [*inputs[:fixed], *carry, *own])
        carry, kept[step] = found[: scan["num_carry"]], found[scan["num_carry"] :]
    series = zip(*(kept[step] for step in steps), strict=True)
    return [*carry, *(lax.concatenate([x[None] for x in values], 0) for values in series)]
