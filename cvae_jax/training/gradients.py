"""The gradient of the objective over a batch of clips, in forms that give the same numbers.

Where no gradient crosses time, the clip's gradient is the sum of its steps'. It is taken inside the scan over
time and the sum is carried: memory does not grow with the length of the clip. (No gradient flows into the
first carry then.) Models whose gradient crosses time, uncut feedback, and a loss that is no sum over steps
(the calibrated one) are differentiated through the scan, recomputing each step (remat). Both ways have a form
for clips that are teacher-forced throughout. Only the model's carry ties their steps together, so time is
folded into the batch, chunk by chunk, and remat is by chunks, of which a single one is not computed again.
Other clips go step by step. Where no gradient crosses time, what does not depend on generated frames (labels,
and the targets' features) is computed beforehand, for a chunk of steps at once where time is folded.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree, Scalar

from cvae_jax.losses import Objective
from cvae_jax.models.interface import StepInputs, Variables, VideoModel, over_groups, over_steps
from cvae_jax.rollout.noise import Noise
from cvae_jax.rollout.scan import Clips, RolloutOptions, observe_step, scan_steps
from cvae_jax.training.problem import Chunks, Prepared, Problem, Scores

Gradients = tuple[PyTree, dict[str, Array], PyTree]
"""(gradients, metrics, batch statistics)."""


def clip_gradients(
    model: VideoModel,
    objective: Objective,
    options: RolloutOptions,
    variables: Variables,
    clips: Clips,
    noise: Noise,
    forced: Bool[Array, " s"] | Bool[Array, "s b"],
    beta: Scalar,
    num_clips: Scalar,
    n_past: int = 1,
    psum: Callable[[Array], Array] = lambda share: share,
    throughout: bool | None = None,
) -> Gradients:
    """Return (gradients, metrics, new batch statistics) of the objective over a batch of clips.

    forced: which of the steps 1 .. T-1 see the true previous frame; the first always does. Every step counts,
    also those to context frames (as in SVG, Denton & Fergus, 2018). Gradients and metrics are this device's
    shares of the global batch's: their sum over devices, which `psum` takes, is the whole. Metrics: 'loss',
    'recon', 'kl', and 'extra' of a model that has an extra loss, as `Objective.reduce` defines them.

    throughout: None compiles two forms where the model can fold time, and `forced` chooses. True compiles the
    folded form alone and does not read `forced`: every step sees the true previous frame. False compiles the
    other one alone. For a model that does not see previous frames, the folded form is always used where time
    can be folded.
    """

    def reduce(scores: Scores, mask: Array) -> tuple[Scalar, dict[str, Array]]:
        recon, kl, *extra = scores
        loss, recon, kl = objective.reduce(recon, kl, mask, beta, num_clips, frame_size, psum, *extra)
        sums = {"extra": jnp.sum(own * jnp.broadcast_to(mask, own.shape)) / num_clips for own in extra}
        return loss, {"loss": loss, "recon": recon, "kl": kl} | sums

    assert clips.frames is not None, "there are true frames to learn from"
    frame_size = math.prod(clips.frames.shape[2:])
    forced = forced.at[0].set(True)
    problem = Problem(
        model, objective, options, variables, clips, clips.frames, noise, forced, n_past, reduce
    )
    step_by_step, folded = _within_steps, _folded
    if model.gradient_crosses_time or not options.cut_feedback or objective.is_calibrated:
        step_by_step = functools.partial(_through_time, scores_of=_scanned_scores)
        folded = functools.partial(_through_time, scores_of=_folded_scores)
    compiled = forms(model, options, throughout, by_clip=forced.ndim == 2)
    if len(compiled) == 1:
        return (folded if compiled[0] else step_by_step)(problem)
    return lax.cond(jnp.all(forced), lambda: folded(problem), lambda: step_by_step(problem))


def forms(
    model: VideoModel, options: RolloutOptions, throughout: bool | None, by_clip: bool = False
) -> tuple[bool, ...]:
    """Return the forms that `clip_gradients` compiles: folded (True), step by step (False), or both.

    throughout: see there. by_clip: whether each clip has decisions of its own.
    """
    if not options.fold_time or model.teacher_forced_chunk is None:
        return (False,)
    if not model.sees_previous:
        return (True,)
    if throughout is None and by_clip:
        # Decisions per clip differ between devices, which must all run the same collective operations.
        return (False,)
    return (True, False) if throughout is None else (throughout,)


def _through_time(problem: Problem, scores_of: Callable) -> Gradients:
    """Differentiate the loss of whole clips; `scores_of` runs through them."""

    def loss_of(params):
        scores, batch_stats = scores_of(problem, params)
        loss, metrics = problem.reduce(scores, problem.clips.mask)
        return loss, (metrics, batch_stats)

    gradients, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(problem.variables["params"])
    return gradients, metrics, batch_stats


def _scanned_scores(problem: Problem, params: PyTree) -> tuple[Scores, PyTree]:
    """Return the scores of all steps, and the batch statistics; see `RolloutOptions.remat`.

    Labels are conditioned on step by step. (Conditioning on them before the loop, with sums over the devices
    in a loop of its own, made XLA's CPU backend crash on several devices.)
    """
    constants, carry = problem.begin(params)

    @problem.options.rematerialised
    def observe(params, batch_stats, constants, carry, x):
        here = problem.with_params(params, batch_stats)
        return observe_step(problem.model, here, constants, carry, x, train=True)

    def advance(x, carry, batch_stats, total):
        outputs, carry, batch_stats = observe(params, batch_stats, constants, carry, x)
        return outputs, carry, batch_stats, total, problem.objective.score(outputs, x.target, train=True)

    _, batch_stats, _, scores = scan_steps(
        advance,
        problem.clips,
        problem.noise,
        problem.forced,
        problem.start(carry),
        problem.variables["batch_stats"],
        n_past=problem.n_past,
        cut_feedback=problem.options.cut_feedback,
    )
    return scores, batch_stats


def _folded_scores(problem: Problem, params: PyTree) -> tuple[Scores, PyTree]:
    """Return what `_scanned_scores` does, chunk after chunk; of several the backward pass recomputes each."""
    chunks = Chunks.of(problem)
    constants, carry = problem.begin(params)

    def advance(loop, chunk):
        carry, batch_stats = loop
        after, batch_stats, scores = chunks.observe(
            params, batch_stats, constants, carry, chunks.inputs(chunk)
        )
        return (after, batch_stats), scores

    if chunks.number > 1:
        advance = problem.options.rematerialised(advance)
    (_, batch_stats), scores = lax.scan(
        advance, (carry, problem.variables["batch_stats"]), jnp.arange(chunks.number)
    )
    whole = lambda score: score.reshape(-1, score.shape[-1])[: chunks.steps]  # noqa: E731
    return jax.tree.map(whole, scores), batch_stats


def _within_steps(problem: Problem) -> Gradients:
    """Take the gradient of each step inside the scan, and that of what was prepared after each chunk."""
    params, chunks = problem.variables["params"], Chunks.of(problem)
    constants, pull_back_constants, carry = jax.vjp(problem.begin, params, has_aux=True)

    def of_chunk(loop, chunk):
        state, batch_stats, total = loop
        prepare = lambda params: chunks.prepare(params, batch_stats, chunks.inputs(chunk))  # noqa: E731
        prepared, pull_back, batch_stats = jax.vjp(prepare, params, has_aux=True)

        def advance(x, carry, batch_stats, total):
            own = prepared.of_step(x.t - 1 - chunk * chunks.size)
            x = dataclasses.replace(x, mask=x.mask * (x.t <= chunks.steps), **own)
            total, (of_prepared, outputs, carry, batch_stats, scores) = _of_step(
                problem, constants, carry, batch_stats, x, total
            )
            return outputs, carry, batch_stats, total, (problem.reduce(scores, x.mask)[1], of_prepared)

        state, batch_stats, total, (metrics, of_prepared) = scan_steps(
            advance,
            chunks.clips(chunk),
            problem.noise,
            chunks.forced(chunk),
            state,
            batch_stats,
            total,
            start=chunk * chunks.size,
            n_past=problem.n_past,
        )
        gradients, of_constants = total
        gradients = _add(gradients, pull_back(of_prepared)[0])
        return (state, batch_stats, (gradients, of_constants)), metrics

    zeros = jax.tree.map(jnp.zeros_like, (params, constants))
    start = problem.start(carry), problem.variables["batch_stats"], zeros
    (_, batch_stats, (gradients, of_constants)), metrics = over_steps(
        of_chunk, start, jnp.arange(chunks.number)
    )
    gradients = _add(gradients, pull_back_constants(of_constants)[0])
    return gradients, jax.tree.map(jnp.sum, metrics), batch_stats


def _of_step(
    problem: Problem, constants: PyTree, carry: PyTree, batch_stats: PyTree, x: StepInputs, total: PyTree
) -> tuple[PyTree, tuple]:
    """Return the sums of gradients after a step, and what the step made, group after group of clips.

    That is the gradient of what was prepared, the outputs, the carry, the batch statistics and the scores.
    """
    model, params = problem.model, problem.variables["params"]

    def add_group(sums, group):
        constants, carry, own = group

        def loss_of(params, constants, prepared):
            inputs = dataclasses.replace(x, **own | prepared)
            here = problem.with_params(params, batch_stats)
            outputs, after, stats = model.observe(here, constants, carry, inputs, train=True)
            scores = problem.objective.score(outputs, inputs.target, train=True)
            return problem.reduce(scores, inputs.mask)[0], (outputs, after, scores, stats)

        prepared = {name: own[name] for name in Prepared._fields if name in own}
        (of_params, *of_inputs), aux = jax.grad(loss_of, argnums=(0, 1, 2), has_aux=True)(
            params, constants, prepared
        )
        *kept, stats = aux
        return (_add(sums[0], of_params), stats), (of_inputs, *kept)

    groups = (constants, carry, x.per_clip())
    (gradients, batch_stats), (of_inputs, outputs, carry, scores) = over_groups(
        model.clips_at_once, add_group, (total[0], batch_stats), groups
    )
    of_constants, of_prepared = of_inputs
    total = gradients, _add(total[1], of_constants)
    absent = dict.fromkeys(Prepared._fields)
    return total, (Prepared(**absent | of_prepared), outputs, carry, batch_stats, scores)


def _folded(problem: Problem) -> Gradients:
    """Take the gradients of a teacher-forced clip with time folded into the batch, chunk after chunk."""
    params, chunks = problem.variables["params"], Chunks.of(problem)
    constants, pull_back_constants, carry = jax.vjp(problem.begin, params, has_aux=True)

    def body(loop, chunk):
        carry, batch_stats, gradients, of_constants = loop
        x = chunks.inputs(chunk)

        def loss_of(params, constants):
            after, stats, scores = chunks.observe(params, batch_stats, constants, carry, x)
            loss, metrics = problem.reduce(scores, x.mask)
            return loss, (metrics, after, stats)

        new, (metrics, carry, batch_stats) = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(
            params, constants
        )
        return (carry, batch_stats, _add(gradients, new[0]), _add(of_constants, new[1])), metrics

    zeros = jax.tree.map(jnp.zeros_like, (params, constants))
    (_, batch_stats, gradients, of_constants), metrics = lax.scan(
        body, (carry, problem.variables["batch_stats"], *zeros), jnp.arange(chunks.number)
    )
    gradients = _add(gradients, pull_back_constants(of_constants)[0])
    return gradients, jax.tree.map(jnp.sum, metrics), batch_stats


def _add(one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, one, other)
