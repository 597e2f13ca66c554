"""The multiscale model: what depends on what, its forms, labels, frame sizes and masks."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_steps

from cvae_jax.losses import Objective
from cvae_jax.models.interface import StepInputs, init_variables
from cvae_jax.models.layers import GroupNorm
from cvae_jax.models.multiscale import Multiscale, _uniform
from cvae_jax.rollout.noise import clip_noise, derive_keys
from cvae_jax.rollout.scan import Clips, RolloutOptions
from cvae_jax.runtime.errors import UserError
from cvae_jax.training.gradients import clip_gradients

SIZE, STEPS, CLIPS = (12, 11), 3, 2  # padded to 12 x 12
SMALL = dict(widths=(4, 8), latent_channels=2, prior_share=0.0, position_octaves=1, formulation="plain")
LABELS = {"images": (*SIZE, 3), "vectors": (4,), "none": (0,)}


def model(**changes):
    return Multiscale(**SMALL | changes)


def label_size(labels):
    return None if labels == "images" else LABELS[labels][0]


def make(made, labels="images", n_past=1, seed=0):
    """(variables, constants, carry, inputs of all steps) of random clips."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.uniform(size=shape), jnp.float32)  # noqa: E731
    variables = init_variables(made, seed, SIZE, label_size(labels))
    # Masks and heads start near constants: larger weights make every dependence visible.
    variables["params"] = jax.tree.map(lambda p: 2 * p, variables["params"])
    frames = draw(STEPS + 1, CLIPS, *SIZE, 3)
    given, given_labels = draw(CLIPS, n_past, *SIZE, 3), draw(CLIPS, n_past, *LABELS[labels])
    constants, carry = made.begin(variables, given, given_labels, True)
    label = draw(STEPS, CLIPS, *LABELS[labels])
    x = random_steps(rng, frames, label, made.latent_shape(SIZE), n_past)
    return variables, constants, carry, x


def step_of(x, number=0):
    return jax.tree.map(lambda leaf: leaf[number], x)


def close(a, b, **tolerance):
    compare = lambda one, other: np.testing.assert_allclose(one, other, **tolerance)  # noqa: E731
    jax.tree.map(compare, a, b)


def depends(function, argument):
    """Whether any output of a function changes with its argument."""
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape), x.dtype), argument)
    pairs = zip(jax.tree.leaves(function(argument)), jax.tree.leaves(function(moved)), strict=True)
    return any(not np.array_equal(one, other) for one, other in pairs)


# Values


def test_the_drawn_variables_have_the_tree_and_shapes_of_the_network():
    made = model(feedback=2)
    frame = jax.ShapeDtypeStruct((1, 12, 12, 3), jnp.float32)
    declared = jax.eval_shape(made._network.init, jax.random.key(0), frame, frame)
    drawn = init_variables(made, 0, SIZE)
    assert jax.tree.structure(drawn["params"]) == jax.tree.structure(dict(declared["params"]))
    pairs = zip(*map(jax.tree.leaves, (drawn["params"], dict(declared["params"]))), strict=True)
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)
    kernel = drawn["params"]["encoder"]["block_1_0"]["conv1"]["kernel"]
    assert kernel.std() == pytest.approx((9 * 8) ** -0.5, rel=0.15)
    other = init_variables(made, 1, SIZE)["params"]["encoder"]["block_1_0"]["conv1"]["kernel"]
    assert not np.array_equal(kernel, other)


@pytest.mark.parametrize("channels", [4, 12, 72])
def test_group_norm_is_that_of_flax(channels):
    x = 3 + jax.random.normal(jax.random.key(0), (2, 3, 5, channels))
    groups = next(g for g in range(min(8, channels // 4), 0, -1) if channels % g == 0)
    ours, theirs = GroupNorm(), nn.GroupNorm(groups)
    params = {
        "params": {"scale": jnp.linspace(0.5, 2, channels), "bias": jnp.linspace(-1, 1, channels)},
    }
    for function in (lambda norm: norm.apply(params, x), lambda norm: gradient(norm, params, x)):
        close(function(ours), function(theirs), rtol=2e-4, atol=2e-4)


def gradient(norm, params, x):
    return jax.grad(lambda p, x: jnp.sum(jnp.sin(norm.apply(p, x))), argnums=(0, 1))(params, x)


@pytest.mark.parametrize("patch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_cpu_formulation_equals_the_plain_one(patch):
    def run(formulation):
        made = model(formulation=formulation, patch=patch, feedback=1)
        variables, constants, carry, x = make(made)

        def loss(params):
            here = {**variables, "params": params}
            outputs, *_ = made.teacher_forced_chunk(here, constants, carry, x, True)
            return jnp.sum((outputs.raw - x.target) ** 2), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    close(run("cpu"), run("plain"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("feedback", "labels"), [(0, "images"), (1, "vectors"), (2, "images"), (2, "none")])
def test_steps_taken_together_equal_steps_taken_one_by_one(feedback, labels):
    made = model(feedback=feedback)
    variables, constants, carry, x = make(made, labels, n_past=max(1, feedback))
    together, after, _ = jax.jit(lambda c: made.teacher_forced_chunk(variables, constants, c, x, True))(carry)
    one = jax.jit(lambda c, x: made.observe(variables, constants, c, x, True))
    for number in range(STEPS):
        outputs, carry, _ = one(carry, step_of(x, number))
        close(outputs, step_of(together, number), rtol=1e-4, atol=1e-5)
    close(carry, after)


def test_bfloat16_stays_close_to_float32_and_returns_float32():
    results = []
    for precision in ("float32", "bfloat16"):
        made = model(precision=precision)
        variables, constants, carry, x = make(made)
        outputs, *_ = made.observe(variables, constants, carry, step_of(x), True)
        assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
        results.append(outputs.raw)
    assert 0 < float(jnp.abs(results[0] - results[1]).max()) < 0.1


# What depends on what


def raw(made, variables, carry, mode):
    @jax.jit
    def predict(constants, x):
        if mode == "posterior":
            return made.observe(variables, constants, carry, x, True)[0].raw
        return made.imagine(variables, constants, carry, dataclasses.replace(x, target=None))[0].raw

    return predict


@pytest.mark.parametrize(
    ("mode", "feedback", "latent_channels"),
    [("prior", 0, 2), ("prior", 1, 0), ("posterior", 1, 2), ("posterior", 0, 0)],
)
def test_what_a_frame_depends_on(mode, feedback, latent_channels):
    made = model(feedback=feedback, latent_channels=latent_channels)
    variables, constants, carry, x = make(made)
    x = step_of(x)
    predict = raw(made, variables, carry, mode)

    def on(field):
        change = lambda value: predict(constants, dataclasses.replace(x, **{field: value}))  # noqa: E731
        return depends(change, getattr(x, field))

    assert depends(lambda c: predict(c, x), constants)
    assert on("conditioning")
    assert on("previous") == (feedback > 0) == made.sees_previous
    assert on("noise") == (latent_channels > 0) == made.has_learned_prior
    assert on("target") == (mode == "posterior" and latent_channels > 0)


def test_clips_do_not_meet():
    made = model(feedback=1)
    variables, constants, carry, x = make(made)
    x = step_of(x)

    @jax.jit
    def first_clip(previous):
        others = dataclasses.replace(x, previous=x.previous.at[1].set(previous))
        return made.observe(variables, constants, carry, others, True)[0].raw[0]

    assert not depends(first_clip, x.previous[1])


def test_the_prior_does_not_see_the_target_and_the_posterior_does():
    made = model()
    variables, constants, carry, x = make(made)
    x = step_of(x)

    def gaussian(name):
        change = lambda t: dataclasses.replace(x, target=t)  # noqa: E731
        return jax.jit(lambda t: getattr(made.observe(variables, constants, carry, change(t), True)[0], name))

    assert depends(gaussian("posterior"), x.target) and not depends(gaussian("prior"), x.target)
    observed, *_ = made.observe(variables, constants, carry, x, True)
    imagined, _ = made.imagine(variables, constants, carry, x)
    close(observed.prior, imagined.prior)
    assert imagined.posterior is None


def test_without_feedback_teacher_forcing_changes_nothing():
    made = model()
    variables = init_variables(made, 0, SIZE)
    rng = np.random.default_rng(0)
    videos = [jnp.asarray(rng.uniform(size=(CLIPS, STEPS + 1, *SIZE, 3)), jnp.float32) for _ in range(2)]
    clips = Clips(*videos, jnp.ones(CLIPS))
    noise = clip_noise(derive_keys(jnp.uint32(0), jnp.arange(CLIPS)), made.latent_shape(SIZE))

    def run(forced, fold_time):
        return jax.jit(
            lambda: clip_gradients(
                made,
                Objective(clamp=False, kl="per_element"),
                RolloutOptions(fold_time=fold_time),
                variables,
                clips,
                noise,
                jnp.full(STEPS, forced),
                jnp.float32(0.1),
                jnp.float32(CLIPS),
                throughout=True if fold_time else None,
            )
        )()[:2]

    folded = run(False, True)
    for forced in (False, True):
        close(run(forced, False), folded, rtol=2e-3, atol=1e-5)


def test_a_share_of_the_training_frames_comes_from_the_priors_mean():
    """They are the prediction at temperature 0, cost no KL and do not see the target; others see it."""
    made = model(prior_share=0.5)
    variables, constants, carry, x = make(made)
    many = 32
    repeat = lambda leaf: jnp.repeat(leaf[:1], many, 0)  # noqa: E731
    x = jax.tree.map(repeat, step_of(x).per_clip())
    noise = jax.random.normal(jax.random.key(0), (many, *made.latent_shape(SIZE)))
    flags = dict(t=jnp.int32(1), previous_is_given=jnp.bool_(True), previous_is_true=jnp.bool_(True))
    x = StepInputs(**x | flags | {"noise": noise})
    constants = jax.tree.map(repeat, constants)
    outputs, *_ = made.observe(variables, constants, carry, x, True)
    at_mean, _ = made.imagine(variables, constants, carry, dataclasses.replace(x, noise=0 * noise))
    same = np.array([np.allclose(a, b, atol=1e-5) for a, b in zip(outputs.raw, at_mean.raw, strict=True)])
    assert 0.25 < same.mean() < 0.75
    kl = np.asarray(Objective().kl_divergence(outputs.posterior, outputs.prior, True))
    np.testing.assert_array_equal(kl == 0, same)
    scored, *_ = made.observe(variables, constants, carry, x, False)  # evaluation reconstructs every frame
    assert (Objective().kl_divergence(scored.posterior, scored.prior, False) > 0).all()
    # Which frames they are says nothing about their noise.
    chosen = np.asarray(_uniform(jax.random.normal(jax.random.key(1), (20_000, 3))) < 0.5)
    noise = np.asarray(jax.random.normal(jax.random.key(1), (20_000, 3)))
    for own in (chosen, ~chosen):
        np.testing.assert_allclose(noise[own].mean(axis=0), 0, atol=0.04)
        np.testing.assert_allclose(noise[own].std(axis=0), 1, atol=0.04)


# The composition


@pytest.mark.parametrize("feedback", [0, 1])
def test_masks_say_where_pixels_come_from(feedback):
    made = model(feedback=feedback)
    variables, constants, carry, x = make(made)
    x = step_of(x)
    outputs, _ = made.imagine(variables, constants, carry, x)
    assert set(outputs.masks) == {"context"} | ({"previous"} if feedback else set())
    total = sum(outputs.masks.values())
    assert outputs.masks["context"].shape == (CLIPS, *SIZE, 1)
    assert 0 < float(total.min()) and float(total.max()) < 1
    assert outputs.raw.shape == (CLIPS, *SIZE, 3)
    assert 0 < float(outputs.raw.min()) and float(outputs.raw.max()) < 1

    # With every share at the context, the frame is the context's last one.
    bias = variables["params"]["decoder"]["out"]["bias"]
    pixels = jnp.tile(jnp.arange(bias.size // 4), 4)  # of a block of 2 x 2: depth to space
    copying = jnp.where(pixels == 3, 100.0, bias)
    variables["params"]["decoder"]["out"]["bias"] = copying
    outputs, _ = made.imagine(variables, constants, carry, x)
    close(outputs.masks["context"], jnp.ones((CLIPS, *SIZE, 1)))
    close(outputs.frame, constants["frame"][:, : SIZE[0], : SIZE[1]], atol=1e-6)


def test_of_several_context_frames_the_last_is_copied_and_all_are_seen():
    made = model()
    variables, *_ = make(made)
    rng = np.random.default_rng(0)
    given = jnp.asarray(rng.uniform(size=(CLIPS, 3, *SIZE, 3)), jnp.float32)
    constants, _ = made.begin(variables, given, given, False)
    close(constants["frame"][:, : SIZE[0], : SIZE[1]], given[:, -1])
    for frame in range(3):

        def maps(one, frame=frame):
            return made.begin(variables, given.at[:, frame].set(one), given, False)[0]["maps"]

        assert depends(maps, given[:, frame])


@pytest.mark.parametrize(("size", "patch"), [((16, 16), 2), ((17, 8), 1), ((17, 8), 2)])
def test_frames_of_any_size(size, patch):
    made = model(patch=patch)
    block = patch * 2
    assert made.smallest_block == block
    expected = (-(-size[0] // block), -(-size[1] // block), 2)
    assert made.latent_shape(size) == expected
    variables = init_variables(made, 0, size)
    given = jnp.ones((1, 1, *size, 3))
    constants, carry = made.begin(variables, given, given, False)
    x = StepInputs(
        t=jnp.int32(1),
        previous=given[:, 0],
        previous_is_true=jnp.bool_(True),
        previous_is_given=jnp.bool_(True),
        label=given[:, 0],
        conditioning=given[:, 0],
        noise=jnp.zeros((1, *expected)),
        mask=jnp.ones(1),
        target=None,
    )
    assert made.imagine(variables, constants, carry, x)[0].raw.shape == (1, *size, 3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"widths": (16,)}, "widths is (16,); give at least two"),
        ({"widths": (16, 2)}, "each at least 4"),
        ({"patch": 3}, "patch is 3; choose one of 1, 2"),
        ({"blocks": 0}, "blocks is 0; give at least 1"),
        ({"latent_channels": -1}, "latent_channels is -1; give at least 0"),
        ({"prior_share": 1.0}, "prior_share is 1.0; give a number in [0, 1)"),
        ({"position_octaves": 0}, "position_octaves is 0; give at least 1"),
        ({"formulation": "fast"}, "formulation is 'fast'; choose one of auto, plain, cpu"),
    ],
)
def test_values_that_it_cannot_have(changes, sentence):
    with pytest.raises(UserError) as error:
        Multiscale(**changes)
    assert sentence in str(error.value)


def test_feedback_needs_as_many_context_frames():
    with pytest.raises(UserError, match=r"feedback is 2, more than config.n_past=1"):
        model(feedback=2).check(n_past=1, cut_feedback=True)
    model(feedback=2).check(n_past=2, cut_feedback=True)
