"""The optimizer's step against optax, and that steps lower the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import moving_square, tiny_config

from cvae_jax.config import Components
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.devices import Devices
from cvae_jax.training.state import Optimizer, TrainState
from cvae_jax.training.step import make_train_step

LEARNING_RATES = (1e-2, 3e-3, 0.0, 5e-2)


def draw(seed, scale=1.0):
    """Parameters, or gradients, of two layers."""
    rng = np.random.default_rng(seed)
    shapes = {"one": {"kernel": (3, 4), "bias": (4,)}, "two": {"kernel": (4, 2)}}
    make = lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(make, shapes, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.01, 5.0], ids=["small", "large"])
def test_updates_are_those_of_optax_adamw(clip_norm, weight_decay, scale):
    """Clipped to a global norm first; the learning rate changes from step to step."""
    optimizer = Optimizer(
        b1=0.8, b2=0.95, eps=1e-6, weight_decay=weight_decay, clip_norm=clip_norm, ema_decay=0.9
    )
    state = TrainState.create({"params": draw(0), "batch_stats": {}}, optimizer)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    schedule = lambda count: jnp.asarray(LEARNING_RATES)[count]  # noqa: E731
    reference = optax.chain(clip, optax.adamw(schedule, b1=0.8, b2=0.95, eps=1e-6, weight_decay=weight_decay))
    params, memory = draw(0), reference.init(draw(0))
    averaged = draw(0)
    update = jax.jit(lambda s, g, lr: s.update(optimizer, g, {}, lr))
    for step, learning_rate in enumerate(LEARNING_RATES):
        gradients = draw(step + 1, scale)
        state = update(state, gradients, jnp.float32(learning_rate))
        changes, memory = reference.update(gradients, memory, params)
        params = optax.apply_updates(params, changes)
        averaged = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, averaged, params)
        for ours, theirs in ((state.params, params), (state.ema, averaged)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)
    assert int(state.step) == len(LEARNING_RATES)
    assert state.evaluation_variables["params"] is state.ema


def test_a_clip_is_overfitted():
    """A few hundred steps on one clip: the loss falls to a small part of what it was."""
    config = tiny_config()
    config.beta.scale = 1e-4
    config.loss.clamp = False
    config.model.cvae.output = "residual"
    parts = Components.build(config)
    clip = moving_square("a", 4, 1)
    devices = Devices(jax.local_devices()[:1])
    state = TrainState.create(init_variables(parts.model, 0, (16, 12)), parts.optimizer)
    state = devices.place(state)
    step = devices.map_update(make_train_step(*parts.compiled))
    batch = devices.split(
        {
            "frames": clip.frames[None],
            "labels": clip.labels[None],
            "mask": np.ones(1, np.float32),
            "index": np.zeros(1, np.int32),
        }
    )
    controls = {
        "seed": np.uint32(0),
        "beta": np.float32(1e-4),
        "learning_rate": np.float32(1e-2),
        "forced": np.ones(3, bool),
    }
    losses = []
    for _ in range(300):
        state, metrics = step(state, batch, controls)
        losses.append(metrics["recon"])
    assert float(losses[-1]) < 0.1 * float(losses[0])
