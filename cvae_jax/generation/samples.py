"""Samples from the prior for prompts: whole videos, context frames included."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from tqdm import tqdm

from cvae_jax.config import Components
from cvae_jax.models.interface import StepOutputs
from cvae_jax.rollout.chunks import PRIOR, ChunkedRollout, Prompt
from cvae_jax.runtime.devices import Devices


class Sample(NamedTuple):
    """A generated video, uint8 (T, H, W, 3), and its masks as videos of that form, white for 1.

    In the context frames, which are not generated, masks are black.
    """

    frames: np.ndarray
    masks: dict[str, np.ndarray]


def sample_videos(
    parts: Components,
    devices: Devices,
    variables: PyTree,
    prompts: Sequence[Prompt],
    samples: int,
    seed: int,
    temperature: float = 1.0,
    masks: bool = False,
) -> Iterator[Sample]:
    """Yield samples 0, 1, ... of each prompt, one prompt after the other.

    The context frames are the prompt's own. All prompts have one frame size. A sample of a validation clip is
    the one that evaluation scores, whatever the batch, the chunk and the devices.

    masks: also return the masks of a model that composes its frames.
    """
    rollout = ChunkedRollout(
        parts.model,
        devices,
        PRIOR,
        n_past=parts.n_past,
        batch_size=parts.evaluation.batch_size,
        chunk=parts.evaluation.chunk,
        noise_correlation=parts.evaluation.noise_correlation,
        keep=_keep_masks if masks else lambda outputs, target: ({}, {}),
    )
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
    total = sum(len(prompts[prompt].labels) - parts.n_past for prompt, _ in rows)
    with tqdm(total=total, unit="frame", dynamic_ncols=True, file=sys.stderr) as bar:
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


def _keep_masks(outputs: StepOutputs, target: Array | None) -> tuple[dict[str, Array], dict[str, Array]]:
    masks = outputs.masks or {}
    return {name: jnp.round(255 * mask).astype(jnp.uint8) for name, mask in masks.items()}, {}
