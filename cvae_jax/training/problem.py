"""What the gradient of a batch of clips is taken of, and clips in chunks of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree, Scalar

from cvae_jax.losses import Objective
from cvae_jax.models.interface import StepInputs, Variables, VideoModel
from cvae_jax.rollout.noise import Noise
from cvae_jax.rollout.scan import Clips, RolloutOptions, RolloutState, as_float, frames_from

Scores = tuple[Array, ...]
"""(recon, kl) of each step and clip, and their extra loss where a model has one."""


class Problem(NamedTuple):
    """What is differentiated: the same for all forms."""

    model: VideoModel
    objective: Objective
    options: RolloutOptions
    variables: Variables
    clips: Clips
    frames: Array  # those of the clips
    noise: Noise
    forced: Array
    n_past: int
    reduce: Callable[[Scores, Array], tuple[Scalar, dict[str, Array]]]

    def begin(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """Return the constants and the first carry, as functions of the parameters."""
        given = as_float(self.frames[:, : self.n_past])
        labels = as_float(self.clips.labels[:, : self.n_past])
        return self.model.begin(self.with_params(params), given, labels, train=True)

    def with_params(self, params: PyTree, batch_stats: PyTree | None = None) -> Variables:
        """Return the variables with other parameters (and batch statistics)."""
        stats = self.variables["batch_stats"] if batch_stats is None else batch_stats
        return {**self.variables, "params": params, "batch_stats": stats}

    def start(self, carry: PyTree) -> RolloutState:
        """Return the state before step 1."""
        return RolloutState(as_float(self.frames[:, 0]), carry)


class Prepared(NamedTuple):
    """Of several steps: the conditioning, and the encoded targets or None, with leading axes (s, b)."""

    conditioning: PyTree
    encoded_target: PyTree

    def of_step(self, number: Array) -> dict[str, PyTree]:
        """Return the fields of `StepInputs` of one of the steps."""
        at = lambda leaf: lax.dynamic_index_in_dim(leaf, number, keepdims=False)  # noqa: E731
        return jax.tree.map(at, self)._asdict()


class Chunks(NamedTuple):
    """Clips in chunks of steps: `time_chunk` of them where time is folded into the batch, otherwise one.

    All chunks have one length: the last one is filled up with steps whose mask is 0.
    """

    problem: Problem
    steps: int
    number: int
    size: int
    frames: Array
    labels: Array

    @classmethod
    def of(cls, problem: Problem) -> Chunks:
        """Return the chunks of a problem's clips."""
        steps = problem.clips.labels.shape[1] - 1
        number = -(-steps // (problem.options.time_chunk if problem.options.fold_time else 1))
        size = -(-steps // number)
        videos = (_extend(video, number * size + 1) for video in (problem.frames, problem.clips.labels))
        return cls(problem, steps, number, size, *videos)

    def inputs(self, chunk: Array) -> StepInputs:
        """Return the inputs of a chunk's steps as teacher-forced ones, but for what `prepare` makes."""
        problem, first = self.problem, chunk * self.size
        t = 1 + first + jnp.arange(self.size)
        window = frames_from(self.frames, first, self.size + 1)
        return StepInputs(
            t=t,
            previous=window[:-1],
            previous_is_true=jnp.ones(self.size, bool),
            previous_is_given=t <= problem.n_past,
            label=frames_from(self.labels, 1 + first, self.size),
            conditioning=None,
            noise=jax.vmap(problem.noise)(t),
            mask=(t <= self.steps)[:, None] * problem.clips.mask[None],
            target=window[1:],
        )

    def clips(self, chunk: Array) -> Clips:
        """Return a chunk's frames and labels, from the frame before its first step on."""
        cut = lambda video: lax.dynamic_slice_in_dim(video, chunk * self.size, self.size + 1, 1)  # noqa: E731
        return Clips(cut(self.frames), cut(self.labels), self.problem.clips.mask)

    def forced(self, chunk: Array) -> Array:
        """Return which of a chunk's steps see the true previous frame; those that fill it up do."""
        forced, missing = self.problem.forced, self.number * self.size - self.steps
        forced = jnp.concatenate([forced, jnp.ones((missing, *forced.shape[1:]), bool)])
        return lax.dynamic_slice_in_dim(forced, chunk * self.size, self.size)

    def prepare(self, params: PyTree, batch_stats: PyTree, x: StepInputs) -> tuple[Prepared, PyTree]:
        """Return what does not depend on generated frames, of a chunk's steps at once; and the statistics.

        Targets are encoded beforehand only where time is folded: elsewhere `observe` does it group by group.
        """
        conditioning, stats = self._condition(params, batch_stats, x)
        encoded = None
        if self.problem.options.fold_time:
            assert x.target is not None, "there are true frames to learn from"
            encoded = self.problem.model.encode_targets(self.problem.with_params(params, stats), x.target)
        return Prepared(conditioning, encoded), stats

    def _condition(self, params: PyTree, batch_stats: PyTree, x: StepInputs) -> tuple[PyTree, PyTree]:
        here = self.problem.with_params(params, batch_stats)
        return self.problem.model.condition(here, x.label, x.mask, train=True)

    def observe(
        self, params: PyTree, batch_stats: PyTree, constants: PyTree, carry: PyTree, x: StepInputs
    ) -> tuple[PyTree, PyTree, Scores]:
        """Return the carry, the batch statistics and the scores of a chunk's steps."""
        model, objective = self.problem.model, self.problem.objective
        assert model.teacher_forced_chunk is not None
        conditioning, stats = self._condition(params, batch_stats, x)
        here = self.problem.with_params(params, stats)
        x = dataclasses.replace(x, conditioning=conditioning)
        outputs, carry, stats = model.teacher_forced_chunk(here, constants, carry, x, train=True)
        assert x.target is not None, "there are true frames to learn from"
        return carry, stats, objective.score(outputs, x.target, train=True)


def _extend(video: Array, length: int) -> Array:
    """Return (b, t, ...) with the last frame repeated up to `length` frames."""
    missing = length - video.shape[1]
    if not missing:
        return video
    return jnp.concatenate([video, jnp.repeat(video[:, -1:], missing, axis=1)], axis=1)
