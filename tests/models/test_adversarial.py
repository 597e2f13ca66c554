"""The critic: which loss reaches which parameters, which steps are judged, and its own optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_steps

from configs import everybody_dance_now
from cvae_jax.config import Components
from cvae_jax.models.adversarial import Adversarial, AdversarialOptions
from cvae_jax.models.interface import init_variables
from cvae_jax.models.multiscale import Multiscale
from cvae_jax.runtime.errors import UserError
from cvae_jax.training.state import Optimizer, TrainState

SIZE, STEPS, CLIPS = (12, 10), 3, 2
OPTIONS = AdversarialOptions(weight=0.5, widths=(4, 8))


@pytest.fixture(scope="module")
def made():
    inner = Multiscale(widths=(4, 8), latent_channels=2, position_octaves=1, formulation="plain")
    return Adversarial(inner, OPTIONS)


@pytest.fixture(scope="module")
def case(made):
    """(variables, constants, carry, inputs of all steps) of random clips."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.uniform(size=shape), jnp.float32)  # noqa: E731
    variables = init_variables(made, 0, SIZE)
    given = draw(CLIPS, 1, *SIZE, 3)
    constants, carry = made.begin(variables, given, given, True)
    frames, label = draw(STEPS + 1, CLIPS, *SIZE, 3), draw(STEPS, CLIPS, *SIZE, 3)
    x = random_steps(rng, frames, label, made.latent_shape(SIZE))
    return variables, constants, carry, x


def extra_gradient(made, case):
    variables, constants, carry, x = case

    def total(params):
        here = {**variables, "params": params}
        return jnp.sum(made.teacher_forced_chunk(here, constants, carry, x, True)[0].extra)

    return jax.jit(jax.grad(total))(variables["params"])


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_the_weight_reaches_the_model_and_not_the_critic(made, case):
    once = extra_gradient(made, case)
    twice = extra_gradient(dataclasses.replace(made, options=dataclasses.replace(OPTIONS, weight=1.0)), case)
    for a, b in zip(leaves(once["model"]), leaves(twice["model"]), strict=True):
        np.testing.assert_allclose(2 * a, b, rtol=1e-4, atol=1e-7)
    for a, b in zip(leaves(once["critic"]), leaves(twice["critic"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    # The decoder hears of the critic, and every layer of the critic learns.
    assert any(leaf.any() for leaf in leaves(once["model"]["decoder"]))
    assert all(leaf.any() for leaf in leaves(once["critic"]))
    without = extra_gradient(
        dataclasses.replace(made, options=dataclasses.replace(OPTIONS, weight=0.0)), case
    )
    assert not any(leaf.any() for leaf in leaves(without["model"]))


def test_steps_from_a_context_frame_are_not_judged(made, case):
    variables, constants, carry, x = case
    whole = jax.jit(lambda x: made.teacher_forced_chunk(variables, constants, carry, x, True)[0])
    outputs = whole(x)
    assert outputs.extra.shape == (STEPS, CLIPS)
    assert not outputs.extra[0].any() and (outputs.extra[1:] > 0).all()
    one = jax.tree.map(lambda leaf: leaf[1], x)
    alone = jax.jit(lambda x: made.observe(variables, constants, carry, x, True)[0])(one)
    np.testing.assert_allclose(alone.extra, outputs.extra[1], rtol=1e-4)


def test_the_prediction_is_that_of_the_model_alone(made, case):
    variables, constants, carry, x = case
    own = {**variables, "params": variables["params"]["model"]}
    x = jax.tree.map(lambda leaf: leaf[1], x)
    outputs, *_ = made.observe(variables, constants, carry, x, False)
    expected, *_ = made.inner.observe(own, constants, carry, x, False)
    assert outputs.extra is None
    np.testing.assert_array_equal(outputs.raw, expected.raw)
    np.testing.assert_array_equal(
        made.imagine(variables, constants, carry, x)[0].raw,
        made.inner.imagine(own, constants, carry, x)[0].raw,
    )
    alone = init_variables(made.inner, 0, SIZE)
    assert all(map(np.array_equal, leaves(alone["params"]), leaves(variables["params"]["model"])))


def test_the_critic_has_an_optimizer_of_its_own(case):
    variables = case[0]
    critic = dataclasses.replace(OPTIONS, learning_rate=0.5, b1=0.3)
    optimizer = Optimizer(clip_norm=1.0, critic=critic)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), variables["params"]
    )
    state = TrainState.create(variables, optimizer)
    update = jax.jit(lambda s, g: s.update(optimizer, g, {}, jnp.float32(0.1)))
    for _ in range(2):
        state = update(state, gradients)
    for part, b1, rate in (("model", 0.9, 0.1), ("critic", 0.3, 0.05)):
        reference = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b1=b1))
        params = variables["params"][part]
        memory = reference.init(params)
        for _ in range(2):
            changes, memory = jax.jit(reference.update)(gradients[part], memory)
            params = optax.apply_updates(params, changes)
        for a, b in zip(leaves(state.params[part]), leaves(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_config_has_a_critic_and_judged_steps():
    config = everybody_dance_now.get_config()
    parts = Components.build(config)
    assert isinstance(parts.model, Adversarial) and parts.optimizer.critic == parts.model.options
    assert config.clip_length - 1 > config.n_past


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"weight": -1.0}, "config.adversarial.weight is -1.0; give a number, 0 or more"),
        ({"b1": 1.0}, "config.adversarial.b1 is 1.0; give a number in [0, 1)"),
        ({"widths": ()}, "config.adversarial.widths is (); give numbers of channels"),
    ],
)
def test_values_out_of_range(fields, sentence):
    with pytest.raises(UserError) as error:
        AdversarialOptions(**fields)
    assert sentence in str(error.value)
