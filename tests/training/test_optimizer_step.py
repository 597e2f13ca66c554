"""The training step against Adam after clipping, written out with optax leaf by leaf."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_batch, step_controls, tiny_config

from cvae_jax.config import Components
from cvae_jax.models.interface import init_variables
from cvae_jax.rollout.noise import TRAINING_STREAM, clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips
from cvae_jax.runtime.devices import Devices
from cvae_jax.training.gradients import clip_gradients
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("small_model")

B1, B2, EPS, EMA = 0.8, 0.95, 1e-4, 0.9
RATES, BETAS = (1e-2, 3e-3, 0.0, 2e-2), (1.0, 0.01, 3.0, 0.3)  # so that the gradient's norm changes too
FORCED = [True, False, True]


@functools.cache
def gradients_of(model, objective, rollout):
    """A function (state, batch, beta) -> (gradients, metrics, batch statistics), without devices."""
    model = dataclasses.replace(model, axis_name=None)

    @jax.jit
    def run(state, batch, beta):
        clips = Clips(batch["frames"], batch["labels"], batch["mask"])
        step = state.step.astype(jnp.uint32)
        keys = derive_keys(jnp.uint32(0), TRAINING_STREAM, step, batch["index"])
        noise = clip_noise(keys, model.latent_shape(clips.frames.shape[2:4]))
        forced, count = jnp.array(FORCED), clips.mask.sum()
        return clip_gradients(model, objective, rollout, state.variables, clips, noise, forced, beta, count)

    return run


@pytest.mark.parametrize(
    ("clip_norm", "is_clipped", "weight_decay"), [(0.01, True, 0.1), (5.0, False, 0.1), (0.0, False, 0.0)]
)
def test_a_step_is_that_of_optax(clip_norm, is_clipped, weight_decay):
    """Parameters, their average, batch statistics and the gradient's norm, step after step.

    Tolerance: a few units in the last place of float32, because programs add in different orders. EPS is
    large against the rounding noise of gradients that should be 0, of which Adam would make whole steps.
    """
    config = tiny_config()
    config.optimizer.update(
        b1=B1, b2=B2, eps=EPS, clip_norm=clip_norm, weight_decay=weight_decay, ema_decay=EMA
    )
    parts, batch = Components.build(config), random_batch()
    devices = Devices(jax.local_devices()[:1])
    step = devices.map_update(make_train_step(*parts.compiled))
    reference = optax.inject_hyperparams(optax.adamw)(0.0, B1, B2, EPS, weight_decay=weight_decay)
    if clip_norm:
        reference = optax.chain(optax.clip_by_global_norm(clip_norm), reference)

    @jax.jit
    def expected(memory, gradients, params, average, rate):
        memory = optax.tree.set(memory, learning_rate=rate)
        changes, memory = reference.update(gradients, memory, params)
        params = optax.apply_updates(params, changes)
        return memory, params, jax.tree.map(lambda a, p: EMA * a + (1 - EMA) * p, average, params)

    state = TrainState.create(init_variables(parts.model, 0, (16, 12)), parts.optimizer)
    params = average = jax.device_get(state.params)
    memory = reference.init(params)
    for number, (rate, beta) in enumerate(zip(RATES, BETAS, strict=True), 1):
        run = gradients_of(parts.model, parts.objective, parts.rollout)
        gradients, _, batch_stats = run(state, batch, jnp.float32(beta))
        memory, params, average = expected(memory, gradients, params, average, jnp.float32(rate))
        state, metrics = step(state, devices.split(batch), step_controls(FORCED, beta, rate))
        norm = float(optax.tree.norm(gradients))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        assert (0 < clip_norm < norm) == is_clipped and int(state.step) == number
        found = state.params, state.ema, state.batch_stats
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
            found,
            (params, average, batch_stats),
        )
