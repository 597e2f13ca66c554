"""One step of a rollout as a function of arrays, and its program without control flow.

This module is also imported in the converter's environment (see `converter`), which has JAX and Flax but
nothing of the training program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from cvae_jax import models
from cvae_jax.models.adversarial import AdversarialOptions
from cvae_jax.models.interface import StepInputs, Variables, VideoModel
from cvae_jax.rollout.programs import make_begin
from cvae_jax.rollout.scan import RolloutState, imagine_step

INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # how primitives that only call a program name it


class Names(NamedTuple):
    """The names of a step's inputs and outputs, in order.

    constants: the arrays that the model derives once from the context frames. carry: the arrays that it
    passes from step to step. masks: the masks that it returns. changing: the part of the carry that the step
    returns; the rest never changes.
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


def build_model(section: Mapping[str, Any], adversarial: Mapping[str, Any]) -> VideoModel:
    """Return the model that `config.model` and `config.adversarial` describe, in float32, on one device."""
    options = AdversarialOptions(**adversarial)
    return models.build(ConfigDict(section), "float32", None, options if options.weight else None)


def make_start(model: VideoModel) -> Callable[..., tuple[PyTree, RolloutState]]:
    """Return the function (variables, given, labels, index) -> (constants, state) after the context frames.

    They are those of one video. given: uint8 (n_past, H, W, 3); labels: theirs; index: the clip's number, for
    the noise of the context.
    """
    begin = jax.jit(make_begin(model))

    def start(variables: Variables, given: Any, labels: Any, index: int = 0) -> tuple[PyTree, RolloutState]:
        context = {
            "given": given[None],
            "labels": labels[None],
            "mask": np.ones(1, np.float32),
            "index": np.full(1, index, np.uint32),
            "sample": np.zeros(1, np.uint32),
        }
        started = begin(variables, context, {"seed": np.uint32(0)})
        return started["constants"], started["state"]

    return start


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
    """Return a step that does not return the unchanged parts of the carry, and its names.

    inputs: arrays or shapes for the step's arguments. An ONNX graph cannot return one of its inputs directly,
    so an input that is returned as another output is multiplied by 1.
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
    """Return an equivalent function that traces to one flat program, without control flow or nested calls.

    For a `lax.cond`, all branches are computed and one result is selected; a `lax.scan` is unrolled; calls
    are inlined; empty arrays are removed from concatenations. ONNX converters handle these constructs badly.
    Raises ValueError for a `lax.while_loop`.
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
