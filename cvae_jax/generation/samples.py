"""Videos rolled out from prompts: whole ones, context frames included."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from tqdm import tqdm

from cvae_jax.config import Components
from cvae_jax.models.interface import StepOutputs
from cvae_jax.rollout.chunks import PRIOR, ChunkedRollout, Prompt
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError


class Sample(NamedTuple):
    """A generated video, uint8 (T, H, W, 3), and its masks as videos of that form, white for 1.

    In the context frames, which are not generated, masks are black.
    """

    frames: np.ndarray
    masks: dict[str, np.ndarray]


def make_rollout(
    parts: Components, devices: Devices, mode: str = PRIOR, masks: bool = False
) -> ChunkedRollout:
    """Return the rollout of a run's model; it keeps its compiled programs.

    masks: also keep the masks of a model that composes its frames.
    """
    return ChunkedRollout(
        parts.model,
        devices,
        mode,
        n_past=parts.n_past,
        batch_size=parts.evaluation.batch_size,
        chunk=parts.evaluation.chunk,
        noise_correlation=parts.evaluation.noise_correlation,
        keep=_keep_masks if masks else lambda outputs, target: ({}, {}),
    )


def sample_videos(
    rollout: ChunkedRollout,
    variables: PyTree,
    prompts: Sequence[Prompt],
    samples: int,
    seed: int,
    temperature: float = 1.0,
    progress: bool = False,
) -> Iterator[Sample]:
    """Yield samples 0, 1, ... of each prompt, one prompt after the other.

    The context frames are the prompt's own. All prompts have one frame size. A sample of a validation clip is
    the one that evaluation scores, whatever the batch, the chunk and the devices.

    rollout: one of `make_rollout`. progress: show a bar on standard error.
    """
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
    total = sum(len(prompts[prompt].labels) - len(prompts[prompt].given) for prompt, _ in rows)
    with tqdm(total=total, unit="frame", dynamic_ncols=True, file=sys.stderr, disable=not progress) as bar:
        bar.set_description("generating (the first compiles)")
        for rolled in rollout.run(variables, prompts, rows, seed, temperature, progress=bar.update):
            given = prompts[rolled.prompt].given
            yield Sample(
                np.concatenate([given, rolled.frames]),
                {
                    name: np.concatenate([np.zeros_like(given), np.repeat(values, 3, axis=-1)])
                    for name, values in rolled.values.items()
                },
            )


def check_sampling(samples: Any, seed: Any, temperature: Any, index: Any = 0, prefix: str = "") -> None:
    """Raise UserError for a number of samples, a seed, a temperature or an index that cannot be used.

    prefix: of their names in the message.
    """
    if not (isinstance(samples, int | np.integer) and samples >= 1):
        raise UserError(f"{prefix}samples is {samples}; give a whole number of at least 1.")
    for name, number in (("seed", seed), ("index", index)):
        if not (isinstance(number, int | np.integer) and 0 <= number < 2**32):
            raise UserError(f"{prefix}{name} is {number}; give a whole number from 0 and below 2**32.")
    real = isinstance(temperature, int | float | np.number)
    if not (real and math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"{prefix}temperature is {temperature}; give a finite number, 0 or more.")


def _keep_masks(outputs: StepOutputs, target: Array | None) -> tuple[dict[str, Array], dict[str, Array]]:
    masks = outputs.masks or {}
    return {name: jnp.round(255 * mask).astype(jnp.uint8) for name, mask in masks.items()}, {}
