"""Long videos rolled out in chunks, in memory that does not grow with their length.

The one driver that validation, evaluation and generation share. A rollout is a sequence of calls of one
compiled program, each over at most `chunk` frames. The model's constants and carry stay on the devices
between the calls; what is kept of the steps leaves them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from cvae_jax.data.clips import Recording, extend
from cvae_jax.models.interface import StepOutputs, VideoModel, standard_normal
from cvae_jax.rollout import scan
from cvae_jax.rollout.noise import EVALUATION_STREAM, Noise, clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutState, as_float
from cvae_jax.runtime.devices import Devices

PRIOR, POSTERIOR = MODES = ("prior", "posterior")

Keep = Callable[[StepOutputs, Array | None], tuple[dict[str, Array], dict[str, Array]]]
"""(outputs, target or None) -> (values of each frame, values to sum over a clip's frames), all (b, ...)."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a video is predicted from.

    Attributes:
      name: for files and messages.
      given: the context frames, uint8 (n_past, H, W, 3).
      labels: one per frame of the video, uint8 (T, H, W, 3) or float32 (T, A).
      index: the clip's number, which addresses its noise.
      frames: the true video, uint8 (T, H, W, 3); None where there is none.
    """

    name: str
    given: np.ndarray
    labels: np.ndarray
    index: int = 0
    frames: np.ndarray | None = None

    @classmethod
    def of(cls, recording: Recording, n_past: int, index: int, scored: bool = False) -> Prompt:
        """Return what a recording's own video is predicted from; scored: its frames are compared with."""
        frames = recording.frames
        return cls(recording.name, frames[:n_past], recording.labels, index, frames if scored else None)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.given.shape[1:3]

    @property
    def label_size(self) -> int | None:
        """The length of labels that are vectors; None: they are images."""
        return None if self.labels.ndim == 4 else self.labels.shape[1]


class Rolled(NamedTuple):
    """One sample of one prompt, its P = T - n_past predicted frames.

    Attributes:
      prompt, sample: their numbers.
      frames: uint8 (P, H, W, 3), if asked for.
      values: what was kept of each frame, (P, ...).
      sums: what was summed over the frames.
    """

    prompt: int
    sample: int
    frames: np.ndarray | None
    values: dict[str, np.ndarray]
    sums: dict[str, np.ndarray]


class ChunkedRollout:
    """Autoregressive rollouts of a model on the devices.

    Mode 'prior' draws z from the model's prior, 'posterior' from the posterior of the very frame that is
    predicted. The context frames are run through the model first. Noise is addressed by (seed, clip, sample,
    t): it depends neither on batch, chunk and devices, nor on how many samples are drawn.

    Args:
      n_past: number of context frames.
      batch_size: videos rolled out at once.
      chunk: frames per call of the compiled program, at most.
      keep: what to keep of a step besides its frame.
    """

    def __init__(
        self,
        model: VideoModel,
        devices: Devices,
        mode: str,
        *,
        n_past: int,
        batch_size: int,
        chunk: int,
        keep: Keep = lambda outputs, target: ({}, {}),
    ):
        self._devices, self._n_past = devices, n_past
        self._batch_size, self._chunk = batch_size, chunk
        self._needs_targets = mode == POSTERIOR
        self._begin = devices.map_clips(_make_begin(model))
        self._advance = devices.map_clips(_make_advance(model, mode, n_past, keep))

    def run(
        self,
        variables: PyTree,
        prompts: Sequence[Prompt],
        rows: Sequence[tuple[int, int]],
        seed: int,
        temperature: float = 1.0,
        frames_of: Collection[int] | None = None,
        progress: Callable[[int], Any] = lambda frames: None,
    ) -> Iterator[Rolled]:
        """Yield the rollout of each row (prompt, sample), in order.

        All prompts have one frame size, and either all or none a true video. temperature multiplies the
        prior's noise. frames_of: the samples whose frames are brought from the devices; None: all.
        progress is called after each call with the number of frames it has predicted.
        """
        count = len(self._devices)
        size = -(-min(self._batch_size, len(rows)) // count) * count
        longest = max(len(prompts[p].labels) for p, _ in rows) - self._n_past
        chunk = -(-longest // -(-longest // self._chunk))
        variables = self._devices.place(variables)
        controls = {"seed": np.uint32(seed), "temperature": np.float32(temperature)}
        for begin in range(0, len(rows), size):
            own = rows[begin : begin + size]
            filled = [*own, *[own[0]] * (size - len(own))]
            batch = self._batch([prompts[p] for p, _ in filled], [s for _, s in filled], len(own))
            wanted = frames_of is None or any(sample in frames_of for _, sample in own)
            frames, values, sums = self._roll(variables, batch, controls, chunk, wanted, progress)
            for row, (p, sample) in enumerate(own):
                predicted = len(prompts[p].labels) - self._n_past
                kept = frames if frames_of is None or sample in frames_of else None
                yield Rolled(
                    p,
                    sample,
                    None if kept is None else kept[row, :predicted],
                    {name: value[row, :predicted] for name, value in values.items()},
                    {name: value[row] for name, value in sums.items()},
                )

    def _batch(self, prompts: list[Prompt], samples: list[int], real: int) -> dict[str, Any]:
        longest = max(len(prompt.labels) for prompt in prompts)
        batch = {
            "given": np.stack([prompt.given for prompt in prompts]),
            "labels": np.stack([extend(prompt.labels, longest) for prompt in prompts]),
            "mask": (np.arange(len(prompts)) < real).astype(np.float32),
            "index": np.array([prompt.index for prompt in prompts], np.uint32),
            "sample": np.array(samples, np.uint32),
            "length": np.array([len(prompt.labels) for prompt in prompts], np.int32),
        }
        videos = [extend(prompt.frames, longest) for prompt in prompts if prompt.frames is not None]
        if videos:
            batch["frames"] = np.stack(videos)
        elif self._needs_targets:
            raise ValueError("the posterior sees the frames it predicts; give prompts with their frames.")
        return batch

    def _roll(
        self,
        variables: PyTree,
        batch: dict[str, np.ndarray],
        controls: dict,
        chunk: int,
        with_frames: bool,
        progress: Callable[[int], Any],
    ) -> tuple[np.ndarray | None, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return (frames, values, sums) of a batch, each (clips, ...)."""
        split, fetch = self._devices.split, self._devices.fetch
        constant = split({name: batch[name] for name in ("mask", "index", "sample", "length")})
        first = {"given": batch["given"], "labels": batch["labels"][:, : self._n_past]}
        started = self._begin(variables, constant | split(first), controls)
        state, constants = started["state"], started["constants"]
        last = batch["labels"].shape[1] - 1
        found: list[dict[str, np.ndarray]] = []
        sums: dict[str, np.ndarray] = {}
        for start in range(self._n_past - 1, last, chunk):
            window = slice(start, start + chunk + 1)
            videos = {name: batch[name][:, window] for name in ("frames", "labels") if name in batch}
            filled = split({name: _filled(video, chunk + 1) for name, video in videos.items()})
            inputs = constant | filled | {"constants": constants, "state": state}
            out = self._advance(variables, inputs, controls | {"start": np.int32(start)})
            state = out["state"]
            kept = out["values"] | ({"frames": out["frames"]} if with_frames else {})
            found.append(fetch(kept))
            more = fetch(out["sums"])
            sums = jax.tree.map(np.add, sums, more) if sums else more
            left = np.clip(batch["length"] - 1 - start, 0, chunk)
            progress(int(np.sum(left * (batch["mask"] > 0))))
        values = {name: np.concatenate([part[name] for part in found], 1) for name in found[0]}
        return values.pop("frames", None), values, sums


def _filled(video: np.ndarray, length: int) -> np.ndarray:
    return np.swapaxes(extend(np.swapaxes(video, 0, 1), length), 0, 1)


def _noise(model: VideoModel, batch: dict, controls: dict, frame_size: tuple[int, int]) -> Noise:
    keys = derive_keys(controls["seed"], EVALUATION_STREAM, batch["index"], batch["sample"])
    return clip_noise(keys, model.latent_shape(frame_size))


def _make_begin(model: VideoModel) -> Callable:
    """Return the device function (variables, batch, controls) -> constants and state after the context.

    batch: given uint8 (b, n_past, H, W, 3) and their labels; mask, index, sample (b,). controls: seed.
    """

    def begin(variables: PyTree, batch: dict, controls: dict) -> dict:
        given, labels = as_float(batch["given"]), as_float(batch["labels"])
        constants, carry = model.begin(variables, given, labels, train=False)
        if given.shape[1] > 1:
            noise = _noise(model, batch, controls, batch["given"].shape[2:4])

            def advance(x, carry, batch_stats, total):
                outputs, carry, _ = scan.observe_step(model, variables, constants, carry, x, train=False)
                return outputs, carry, batch_stats, total, None

            steps = given.shape[1] - 1
            state, *_ = scan.scan_steps(
                advance,
                Clips(given, labels, batch["mask"]),
                noise,
                jnp.ones(steps, bool),
                RolloutState(given[:, 0], carry),
                variables["batch_stats"],
                n_past=given.shape[1],
            )
            carry = state.carry
        return {"constants": constants, "state": RolloutState(given[:, -1], carry)}

    return begin


def _make_advance(model: VideoModel, mode: str, n_past: int, keep: Keep) -> Callable:
    """Return the device function (variables, batch, controls) -> outputs and state of one chunk.

    batch: constants and state; labels (b, 1 + n, ...) and, where there are any, frames uint8 (b, 1 + n, H, W,
    3): those of the frame before the chunk, then of its steps; mask, index, sample, length (b,). controls:
    seed, temperature, and start, the number of the frame before the chunk.
    """

    def advance_chunk(variables: PyTree, batch: dict, controls: dict) -> dict:
        constants, state, start = batch["constants"], batch["state"], controls["start"]
        noise = _noise(model, batch, controls, state.frame.shape[1:3])
        if mode == PRIOR:
            unit = noise
            noise = lambda t: controls["temperature"] * unit(t)  # noqa: E731

        def advance(x, carry, batch_stats, total):
            if mode == PRIOR:
                outputs, carry = scan.imagine_step(model, variables, constants, carry, x)
            else:
                outputs, carry, _ = scan.observe_step(model, variables, constants, carry, x, train=False)
            values, summed = keep(outputs, x.target)
            known = x.t < batch["length"]
            add = lambda sums, new: sums + jnp.where(_spread(known, new), new, 0.0)  # noqa: E731
            pixels = jnp.round(255.0 * outputs.frame).astype(jnp.uint8)
            return outputs, carry, batch_stats, jax.tree.map(add, total, summed), (pixels, values)

        clips = Clips(batch.get("frames"), batch["labels"], batch["mask"])
        zeros = _zero_sums(model, mode, keep, state, clips.frames is not None)
        stats = variables["batch_stats"]
        state, _, sums, (frames, values) = scan.scan_steps(
            advance, clips, noise, None, state, stats, zeros, start=start, n_past=n_past
        )
        frames, values = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (frames, values))
        return {"state": state, "frames": frames, "values": values, "sums": sums}

    return advance_chunk


def _spread(flags: Array, like: Array) -> Array:
    """Return (b,) flags with as many axes as `like` (b, ...)."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _zero_sums(model: VideoModel, mode: str, keep: Keep, state: RolloutState, scored: bool) -> dict:
    """Return zeros shaped like what `keep` sums."""

    def summed(frame: Array) -> dict[str, Array]:
        clips, height, width, _ = frame.shape
        zeros = jnp.zeros((clips, *model.latent_shape((height, width))))
        normal = standard_normal(zeros)
        outputs = StepOutputs(frame, normal, None if mode == PRIOR else normal)
        return keep(outputs, frame if scored else None)[1]

    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(summed, state.frame))
