"""The device functions of a rollout: one initialises it, the other advances it by a chunk of frames."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from cvae_jax.models.interface import StepOutputs, VideoModel, standard_normal
from cvae_jax.rollout import scan
from cvae_jax.rollout.noise import EVALUATION_STREAM, Noise, clip_noise, correlated, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutState, as_float

PRIOR, POSTERIOR = MODES = ("prior", "posterior")

Keep = Callable[[StepOutputs, Array | None], tuple[dict[str, Array], dict[str, Array]]]
"""(outputs, target or None) -> (values of each frame, values to sum over a clip's frames), all (b, ...)."""


def _noise(model: VideoModel, batch: dict, controls: dict, frame_size: tuple[int, int]) -> Noise:
    keys = derive_keys(controls["seed"], EVALUATION_STREAM, batch["index"], batch["sample"])
    return clip_noise(keys, model.latent_shape(frame_size))


def make_begin(model: VideoModel) -> Callable:
    """Return the device function (variables, batch, controls) -> the initial values of a rollout.

    These are the model's constants, the state after the context frames, and the first noise for `correlated`.

    batch: given uint8 (b, n_past, H, W, 3) and their labels; mask, index, sample (b,). controls: seed.
    """

    def begin(variables: PyTree, batch: dict, controls: dict) -> dict:
        given, labels = as_float(batch["given"]), as_float(batch["labels"])
        constants, carry = model.begin(variables, given, labels, train=False)
        noise = _noise(model, batch, controls, batch["given"].shape[2:4])
        if given.shape[1] > 1:

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
        # Steps are numbered from 1, so no step uses the noise of step 0; the correlated noise begins with it.
        state = RolloutState(given[:, -1], carry)
        return {"constants": constants, "state": state, "noise": noise(jnp.int32(0))}

    return begin


def make_advance(
    model: VideoModel, mode: str, n_past: int, keep: Keep, with_frames: bool, noise_correlation: float
) -> Callable:
    """Return the device function (variables, batch, controls) -> outputs and state of one chunk.

    batch: constants, state and noise; labels (b, 1 + n, ...) and, where there are any, frames uint8 (b, 1 +
    n, H, W, 3): those of the frame before the chunk, then of its steps; mask, index, sample, length (b,).
    controls: seed, temperature, and start, the number of the frame before the chunk. outputs: the frames as
    uint8 pixels, and with_frames as they are.
    """

    def advance_chunk(variables: PyTree, batch: dict, controls: dict) -> dict:
        constants, state, start = batch["constants"], batch["state"], controls["start"]
        noise = _noise(model, batch, controls, state.frame.shape[1:3])
        last = batch["noise"]
        if mode == PRIOR:
            steps = batch["labels"].shape[1] - 1
            unit, last = correlated(noise, noise_correlation, start, steps, last)
            noise = lambda t: controls["temperature"] * unit(t)  # noqa: E731

        def advance(x, carry, batch_stats, total):
            if mode == PRIOR:
                outputs, carry = scan.imagine_step(model, variables, constants, carry, x)
            else:
                outputs, carry, _ = scan.observe_step(model, variables, constants, carry, x, train=False)
            values, summed = keep(outputs, x.target)
            known = x.t < batch["length"]
            add = lambda sums, new: sums + jnp.where(_spread(known, new), new, 0.0)  # noqa: E731
            return outputs, carry, batch_stats, jax.tree.map(add, total, summed), (outputs.frame, values)

        clips = Clips(batch.get("frames"), batch["labels"], batch["mask"])
        zeros = _zero_sums(model, mode, keep, state)
        stats = variables["batch_stats"]
        state, _, sums, (frames, values) = scan.scan_steps(
            advance, clips, noise, None, state, stats, zeros, start=start, n_past=n_past
        )
        frames, values = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (frames, values))
        pixels = jnp.round(255.0 * frames).astype(jnp.uint8)
        out = {"state": state, "noise": last, "pixels": pixels, "values": values, "sums": sums}
        return out | {"frames": frames} if with_frames else out

    return advance_chunk


def _spread(flags: Array, like: Array) -> Array:
    """Return (b,) flags with as many axes as `like` (b, ...)."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _zero_sums(model: VideoModel, mode: str, keep: Keep, state: RolloutState) -> dict:
    """Return zeros shaped like what `keep` sums."""

    def summed(frame: Array) -> dict[str, Array]:
        clips, height, width, _ = frame.shape
        zeros = jnp.zeros((clips, *model.latent_shape((height, width))))
        normal = standard_normal(zeros)
        outputs = StepOutputs(frame, normal, None if mode == PRIOR else normal)
        return keep(outputs, None if mode == PRIOR else frame)[1]

    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(summed, state.frame))
