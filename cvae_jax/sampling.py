"""Videos from first frames and labels, piece by piece on the devices."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cvae_jax.config import Components
from cvae_jax.data.clips import Recording, extend
from cvae_jax.data.loader import past_at
from cvae_jax.parallel import Devices
from cvae_jax.rollout import address, clip_noise, past_of, predict
from cvae_jax.validation import EVALUATION_STREAM


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a video is generated from.

    name: for files and messages. given: uint8 (n_past, H, W, 3), the video's first frames. labels: one per
    frame of the video, uint8 (T, H, W, 3) or float32 (T, A). index: the clip's number, which its noise is
    addressed by.
    """

    name: str
    given: np.ndarray
    labels: np.ndarray
    index: int = 0

    @property
    def sizes(self) -> tuple[tuple[int, int], int | None]:
        """(H, W) of the frames, and the length of a label that is a vector (None: it is an image)."""
        return self.given.shape[1:3], None if self.labels.ndim == 4 else self.labels.shape[1]

    @classmethod
    def of(cls, recording: Recording, n_past: int, index: int = 0) -> Prompt:
        """Return what a recording's own video is predicted from."""
        return cls(recording.name, recording.frames[:n_past], recording.labels, index)


class Sampler:
    """Autoregressive samples with z from the prior, in pieces of `chunk` frames.

    Noise is addressed as in validation, by (seed, clip, sample, t): a sample depends neither on the pieces,
    nor on how many are drawn, nor on batch size or devices, and that of a validation clip is the one scored.

    Args:
      batch_size: videos rolled out at once.
      chunk: frames predicted by one call of the compiled program: all of a video that the devices ever hold.
    """

    def __init__(self, parts: Components, devices: Devices, batch_size: int, chunk: int):
        self._devices, self._batch_size, self._chunk = devices, batch_size, chunk
        self._n_past = parts.n_past
        self._history = parts.model.history
        self._advance = devices.map_clips(_advance(parts))

    def run(
        self,
        variables: dict,
        prompts: list[Prompt],
        samples: int,
        seed: int,
        temperature: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Yield samples 0, 1, ... of each prompt, one prompt after the other: uint8 (T, H, W, 3).

        The given frames are the prompt's own. All prompts have one frame size.
        """
        items = [(prompt, sample) for prompt in prompts for sample in range(samples)]
        devices = len(self._devices)
        size = -(-min(self._batch_size, len(items)) // devices) * devices
        longest = max(len(p.labels) for p in prompts) - self._n_past
        chunk = max(1, min(self._chunk, longest))
        batches = [items[begin : begin + size] for begin in range(0, len(items), size)]
        frames = sum(max(len(p.labels) for p, _ in batch) - self._n_past for batch in batches)
        variables = self._devices.place(variables)
        with tqdm(total=frames, unit="frame", dynamic_ncols=True, file=sys.stderr) as bar:
            bar.set_description("generating (the first compiles)")
            for batch in batches:
                filled = batch + batch[:1] * (size - len(batch))
                video = self._roll(variables, filled, chunk, seed, temperature, bar)
                for (prompt, _), own in zip(batch, video):
                    yield own[: len(prompt.labels)]

    def _roll(
        self, variables: dict, items: list, chunk: int, seed: int, temperature: float, bar: tqdm
    ) -> np.ndarray:
        """Return uint8 (b, T, H, W, 3) with T of the longest."""
        longest = max(len(prompt.labels) for prompt, _ in items)
        given = np.stack([prompt.given for prompt, _ in items])
        count = given.shape[1]
        labels = np.stack([extend(prompt.labels, longest) for prompt, _ in items])
        constant = self._devices.split(
            {
                "first": given[:, 0],
                "clip": np.array([prompt.index for prompt, _ in items], np.uint32),
                "sample": np.array([sample for _, sample in items], np.uint32),
            }
        )
        past = self._devices.split({"past": past_at(given, self._history)})["past"]
        controls = {"seed": np.uint32(seed), "temperature": np.float32(temperature)}
        pieces = [given]
        for start in range(count - 1, longest - 1, chunk):
            steps = labels[:, start + 1 : start + 1 + chunk]
            real = steps.shape[1]
            filling = np.repeat(steps[:, -1:], chunk - real, axis=1)  # the last piece has one shape too
            piece = {"labels": np.concatenate([labels[:, :1], steps, filling], axis=1)}
            inputs = constant | self._devices.split(piece) | {"past": past}
            out = self._advance(variables, inputs, controls | {"start": np.int32(start)})
            past = out["past"]
            pieces.append(self._devices.fetch(out["frames"])[:, :real])
            bar.update(real)
        return np.concatenate(pieces, axis=1)


def _advance(parts: Components) -> Callable:
    """Return the device function (variables, batch, controls) -> frames of one piece, and the past after it.

    batch: first uint8 (b, H, W, 3), past float32 (b, H, W, p) (see `cvae_jax.rollout`), labels
    (b, 1 + n, ...), clip and sample (b,). controls: seed, temperature, start. Returns frames uint8
    (b, n, H, W, 3) and past.
    """
    model = parts.model

    def advance(variables: dict, batch: dict, controls: dict) -> dict:
        z_shape = (*batch["first"].shape[1:3], model.latent_channels)
        keys = address(controls["seed"], EVALUATION_STREAM, batch["clip"], batch["sample"])
        frames = predict(
            model,
            variables,
            batch["first"],
            batch["labels"],
            clip_noise(keys, z_shape),
            temperature=controls["temperature"],
            past=batch["past"],
            start=controls["start"],
        )
        rounded = jnp.round(255.0 * frames).astype(jnp.uint8)
        return {
            "frames": jnp.swapaxes(rounded, 0, 1),
            "past": past_of(model, frames, batch["past"]),
        }

    return advance
