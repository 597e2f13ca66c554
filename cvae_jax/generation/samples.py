"""Samples from the prior for prompts: whole videos, context frames included."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from cvae_jax.config import Components
from cvae_jax.rollout.chunks import PRIOR, ChunkedRollout, Prompt
from cvae_jax.runtime.devices import Devices


def sample_videos(
    parts: Components,
    devices: Devices,
    variables: PyTree,
    prompts: Sequence[Prompt],
    samples: int,
    seed: int,
    temperature: float = 1.0,
) -> Iterator[np.ndarray]:
    """Yield samples 0, 1, ... of each prompt, one prompt after the other: uint8 (T, H, W, 3).

    The context frames are the prompt's own. All prompts have one frame size. A sample of a validation clip is
    the one that evaluation scores, whatever the batch, the chunk and the devices.
    """
    rollout = ChunkedRollout(
        parts.model,
        devices,
        PRIOR,
        n_past=parts.n_past,
        batch_size=parts.evaluation.batch_size,
        chunk=parts.evaluation.chunk,
    )
    rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
    total = sum(len(prompts[prompt].labels) - parts.n_past for prompt, _ in rows)
    with tqdm(total=total, unit="frame", dynamic_ncols=True, file=sys.stderr) as bar:
        bar.set_description("generating (the first compiles)")
        for rolled in rollout.run(variables, prompts, rows, seed, temperature, progress=bar.update):
            yield np.concatenate([prompts[rolled.prompt].given, rolled.frames])
