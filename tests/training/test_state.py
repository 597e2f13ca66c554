"""The optimizer's step against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax.traverse_util import flatten_dict
from helpers import tiny_config

from configs import quickstart, recommended
from cvae_jax.config import Components
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.errors import UserError
from cvae_jax.training.state import Optimizer, TrainState, kind_of_each

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


def kernels(seed, scale=1.0):
    """Parameters, or gradients: two kernels of one shape, one of another, one of few channels and a bias."""
    rng = np.random.default_rng(seed)
    shapes = {
        "a": (3, 3, 16, 24),
        "b": (3, 3, 16, 24),
        "c": (1, 1, 24, 16),
        "out": (3, 3, 24, 4),
        "bias": (24,),
    }
    return {name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def test_muon_is_that_of_optax_for_kernels_and_adam_for_the_rest():
    """Stacks of kernels change nothing; kernels of few channels and biases have Adam's step."""
    optimizer = Optimizer(kind="muon", weight_decay=0.1, clip_norm=1.0)
    state = TrainState.create({"params": kernels(0), "batch_stats": {}}, optimizer)
    schedule = lambda count: jnp.asarray(LEARNING_RATES)[count]  # noqa: E731
    muon = optax.contrib.muon(
        schedule,
        weight_decay=0.1,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda _: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3), params
        ),
        consistent_rms=0.2,
    )
    adam = optax.adamw(schedule, weight_decay=0.1)
    label = {"a": "muon", "b": "muon", "c": "muon", "out": "adam", "bias": "adam"}
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.partition({"muon": muon, "adam": adam}, label)
    )
    params, memory = kernels(0), reference.init(kernels(0))
    update = jax.jit(lambda s, g, lr: s.update(optimizer, g, {}, lr))
    for step, learning_rate in enumerate(LEARNING_RATES):
        gradients = kernels(step + 1)
        state = update(state, gradients, jnp.float32(learning_rate))
        changes, memory = reference.update(gradients, memory, params)
        params = optax.apply_updates(params, changes)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, params
        )


def test_muons_steps_have_orthogonal_rows_or_columns():
    """The singular values of a step are nearly equal, whatever those of the gradient are."""
    optimizer = Optimizer(kind="muon", clip_norm=0.0)
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(3, 3, 16, 24)) * np.geomspace(0.1, 1, 24)
    params = {"kernel": jnp.zeros((3, 3, 16, 24)), "bias": jnp.zeros(24)}
    gradients = {"kernel": jnp.asarray(gradient, jnp.float32), "bias": jnp.ones(24)}
    state = TrainState.create({"params": params, "batch_stats": {}}, optimizer)
    state = state.update(optimizer, gradients, {}, jnp.float32(1.0))
    found = np.linalg.svd(np.asarray(state.params["kernel"]).reshape(-1, 24), compute_uv=False)
    assert found.max() < 2 * found.min()
    before = np.linalg.svd(gradient.reshape(-1, 24), compute_uv=False)
    assert before.max() > 5 * before.min()
    # It descends, with steps of about the size of Adam's.
    assert np.sum(np.asarray(state.params["kernel"]) * gradient) < 0
    assert np.sqrt(np.mean(np.square(state.params["kernel"]))) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize(
    ("recipe", "narrow"),
    [
        (quickstart, {"from_latent", "posterior_encoder/stem", "posterior_head/out", "prior_head/out"}),
        (recommended, {"from_latent", "posterior_encoder/stem", "decoder/out"}),
    ],
)
def test_muon_has_the_kernels_of_the_recommended_models_but_the_narrow_ones(recipe, narrow):
    model = Components.build(recipe.get_config()).model
    params = init_variables(model, 0, (32, 64))["params"]
    kinds = flatten_dict(kind_of_each(params), sep="/")
    kernels = {name for name, leaf in flatten_dict(params, sep="/").items() if leaf.ndim == 4}
    assert {name for name in kernels if kinds[name] == "adam"} == {f"{name}/kernel" for name in narrow}
    assert {kinds[name] for name in kinds.keys() - kernels} == {"adam"}


@pytest.mark.parametrize("kind", ["cvae", "svg", "multiscale"])
def test_muon_trains_every_model(kind):
    """With kernels wide enough to have it."""
    config = tiny_config()
    config.model.kind, config.optimizer.kind, config.optimizer.clip_norm = kind, "muon", 0.0
    config.model.cvae.update(frame_features=16, label_features=16, latent_channels=4, decoder_features=16)
    config.model.svg.update(width=16, code_size=16, rnn_size=16, latents=4)
    config.model.multiscale.update(widths=(16, 16))
    parts = Components.build(config)
    before = TrainState.create(init_variables(parts.model, 0, (64, 64)), parts.optimizer)
    kinds = jax.tree.leaves(kind_of_each(before.params))
    assert {"muon", "adam"} == set(kinds)
    gradients = jax.tree.map(jnp.ones_like, before.params)
    after = before.update(parts.optimizer, gradients, before.batch_stats, jnp.float32(0.1))
    for one, other in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert np.isfinite(other).all() and not np.array_equal(one, other)


def test_muons_products_are_in_full_precision():
    """Accelerators otherwise multiply float32 matrices with the precision of TensorFloat-32 or bfloat16."""
    optimizer = Optimizer(kind="muon")
    state = TrainState.create({"params": kernels(0), "batch_stats": {}}, optimizer)
    update = jax.jit(lambda s, g: s.update(optimizer, g, {}, jnp.float32(1.0)))
    text = update.trace(state, kernels(1)).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="config.optimizer.kind is 'lion'; choose one of adam, muon"):
        Optimizer(kind="lion")
