"""Whole clips in one scan, with any noise: what chunked rollouts and training are compared with."""

import jax.numpy as jnp

from cvae_jax.rollout.scan import (
    Clips,
    RolloutState,
    as_float,
    imagine_step,
    observe_step,
    scan_steps,
)


def predict(model, variables, given, labels, noise, temperature=1.0):
    """Frames 1 .. T-1 with z from the prior, time-major; `given` (b, h, w, 3) is the first frame."""
    first = as_float(given)
    constants, carry = model.begin(variables, first[:, None], as_float(labels[:, :1]), train=False)

    def advance(x, carry, batch_stats, total):
        outputs, carry = imagine_step(model, variables, constants, carry, x)
        return outputs, carry, batch_stats, total, outputs.frame

    clips = Clips(None, labels, jnp.ones(len(first)))
    state = RolloutState(first, carry)
    scaled = lambda t: temperature * noise(t)  # noqa: E731
    return scan_steps(advance, clips, scaled, None, state, variables["batch_stats"])[3]


def reconstruct(
    model, variables, clips, noise, forced, *, train=False, n_past=1, keep=lambda out, x: out.frame
):
    """What `keep(outputs, inputs)` returns of each step with z from the posterior, and the statistics."""
    given, labels = as_float(clips.frames[:, :n_past]), as_float(clips.labels[:, :n_past])
    constants, carry = model.begin(variables, given, labels, train)

    def advance(x, carry, batch_stats, total):
        here = {**variables, "batch_stats": batch_stats}
        outputs, carry, batch_stats = observe_step(model, here, constants, carry, x, train)
        return outputs, carry, batch_stats, total, keep(outputs, x)

    forced = forced.at[0].set(True) if hasattr(forced, "at") else jnp.asarray(forced).at[0].set(True)
    state = RolloutState(given[:, 0], carry)
    _, stats, _, kept = scan_steps(
        advance, clips, noise, forced, state, variables["batch_stats"], n_past=n_past
    )
    return kept, stats


def predict_after_context(model, variables, given, labels, context_noise, noise):
    """Frames P .. T-1 with z from the prior after `given` (b, P, h, w, c) has warmed the carry up.

    labels: of all T frames. context_noise: of the steps to the given frames; noise: of those after them.
    """
    given, n_past, mask = as_float(given), given.shape[1], jnp.ones(len(given))
    stats, begun = variables["batch_stats"], as_float(labels[:, :n_past])
    constants, carry = model.begin(variables, given, begun, train=False)

    def warm(x, carry, batch_stats, total):
        outputs, carry, _ = observe_step(model, variables, constants, carry, x, train=False)
        return outputs, carry, batch_stats, total, None

    def advance(x, carry, batch_stats, total):
        outputs, carry = imagine_step(model, variables, constants, carry, x)
        return outputs, carry, batch_stats, total, outputs.frame

    context = Clips(given, labels[:, :n_past], mask)
    forced, state = jnp.ones(n_past - 1, bool), RolloutState(given[:, 0], carry)
    carry = scan_steps(warm, context, context_noise, forced, state, stats, n_past=n_past)[0].carry
    rest, state = Clips(None, labels[:, n_past - 1 :], mask), RolloutState(given[:, -1], carry)
    return scan_steps(advance, rest, noise, None, state, stats, start=n_past - 1, n_past=n_past)[3]
