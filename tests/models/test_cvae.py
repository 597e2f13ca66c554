"""Initial values, BatchNorm with masks over time steps, and the shapes and outputs of the model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.models.cvae import CVAE
from cvae_jax.models.interface import init_variables
from cvae_jax.models.layers import BatchNorm, positions

DIMS = dict(frame_features=8, label_features=2, latent_channels=4, decoder_features=8)
SIZE = (12, 11)


def leaves(tree):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


# Initial values


def test_init_variables_has_the_tree_and_the_shapes_of_flax_init():
    model, frame = CVAE(**DIMS), jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    declared = jax.eval_shape(model.network.init, jax.random.key(0), frame, frame)
    made = init_variables(model, 0, SIZE)
    assert set(made) == {"params", "batch_stats"}
    assert jax.tree.structure(made) == jax.tree.structure(dict(declared))
    for name, leaf in leaves(declared).items():
        assert (leaves(made)[name].shape, leaves(made)[name].dtype) == (leaf.shape, leaf.dtype)


def test_init_variables_is_uniform_within_the_square_root_of_fan_in():
    dims = dict(frame_features=32, label_features=16, latent_channels=8, decoder_features=48)
    variables = init_variables(CVAE(**dims), 0, SIZE)
    params = leaves(variables["params"])
    scaled = {"kernel": [], "bias": []}
    for name, kernel in params.items():
        if not name.endswith("['kernel']"):
            continue
        height, width, inputs, _ = kernel.shape  # depthwise kernels have one input
        bound = 1 / math.sqrt(height * width * inputs)
        bias = params[name.replace("kernel", "bias")]
        assert np.abs(kernel).max() <= bound and np.abs(bias).max() <= bound
        if kernel.size >= 200:  # uniform: standard deviation bound / sqrt(3)
            tolerance = 3 / math.sqrt(kernel.size)
            assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=tolerance), name
            assert np.abs(kernel).max() > 0.95 * bound
        scaled["kernel"].append(kernel.ravel() / bound)
        scaled["bias"].append(bias.ravel() / bound)
    for values in map(np.concatenate, scaled.values()):
        assert values.size > 500
        assert values.mean() == pytest.approx(0, abs=4 / math.sqrt(3 * values.size))
        assert values.std() == pytest.approx(1 / math.sqrt(3), rel=3 / math.sqrt(values.size))
        assert values.max() > 0.98 and values.min() < -0.98
        assert len(np.unique(values)) > 0.99 * values.size  # no leaf repeats another
    norm = variables["params"]["label_encoder"]["layer_2"]
    assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()
    stats = variables["batch_stats"]["label_encoder"]["layer_2"]
    assert (stats["mean"] == 0).all() and (stats["var"] == 1).all()


def test_init_variables_is_a_function_of_the_seed():
    model = CVAE(**DIMS)
    first, again, other = (leaves(init_variables(model, seed, SIZE)) for seed in (3, 3, 4))
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[name])
        if "layer_2" not in name or "label_encoder" not in name:  # all but BatchNorm is drawn
            assert (leaf != other[name]).any(), name


def test_init_variables_does_not_depend_on_frame_size_formulation_or_devices():
    first = leaves(init_variables(CVAE(**DIMS, formulation="plain"), 3, SIZE))
    other = leaves(init_variables(CVAE(**DIMS, formulation="cpu", axis_name="devices"), 3, (16, 24)))
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, other[name])


# BatchNorm

G, B, H, W, C = 3, 4, 2, 3, 2


@pytest.fixture(scope="module")
def norm():
    """x, variables and the layer in training mode (one program)."""
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (G, B, H, W, C)).astype(np.float32)
    x *= np.array([1, 2, 3], np.float32)[:, None, None, None, None]  # every step its own spread
    variables = {
        "params": {"scale": np.float32([1.5, -0.5]), "bias": np.float32([0.25, 2.0])},
        "batch_stats": {"mean": np.float32([0.5, -1.0]), "var": np.float32([2.0, 0.3])},
    }
    layer = BatchNorm(axis_name=None)
    train = jax.jit(
        lambda v, x, m: layer.apply(v, x, jnp.broadcast_to(m, x.shape[:2]), True, mutable=["batch_stats"])
    )
    return x, variables, layer, train


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]])
def test_batch_norm_in_training(norm, mask):
    x, variables, _, train = norm
    mask = np.float32(mask)
    y, updates = train(variables, x, mask)
    real, params = mask.astype(bool), variables["params"]
    running = {k: v.astype(np.float64) for k, v in variables["batch_stats"].items()}
    for step, normalised in zip(x.astype(np.float64), y, strict=True):
        values = step[real].reshape(-1, C)
        mean, var = values.mean(0), values.var(0)
        expected = (step - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        np.testing.assert_allclose(normalised[real], expected[real], rtol=1e-4, atol=1e-5)
        running["mean"] = 0.9 * running["mean"] + 0.1 * mean
        running["var"] = 0.9 * running["var"] + 0.1 * values.var(0, ddof=1)
    for key, value in running.items():
        np.testing.assert_allclose(updates["batch_stats"][key], value, rtol=1e-5)


def test_masked_clips_change_nothing_of_the_others(norm):
    x, variables, _, train = norm
    mask = np.float32([1, 0, 1, 1])
    garbage = x.copy()
    garbage[:, 1] = 1e4
    (y, updates), (z, others) = train(variables, x, mask), train(variables, garbage, mask)
    real = mask.astype(bool)
    np.testing.assert_array_equal(y[:, real], z[:, real])
    jax.tree.map(np.testing.assert_array_equal, updates, others)


def test_a_step_whose_mask_is_0_updates_nothing(norm):
    x, variables, _, train = norm
    mask = np.ones((G, B), np.float32)
    mask[1] = 0
    y, updates = train(variables, x, mask)
    others, expected = train(variables, x[::2], np.ones(B, np.float32))
    np.testing.assert_allclose(y[::2], others, rtol=1e-6)
    assert np.isfinite(y).all()
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_running_values_follow_the_order_of_the_steps(norm):
    x, variables, _, train = norm
    mask = np.ones(B, np.float32)
    forwards, backwards = (train(variables, x[o], mask)[1] for o in ([0, 1, 2], [2, 1, 0]))
    difference = forwards["batch_stats"]["var"] - backwards["batch_stats"]["var"]
    assert (np.abs(difference) > 0.1).all()


def test_inference_uses_the_running_values_only(norm):
    x, variables, layer, _ = norm
    y, updates = jax.jit(lambda v, x: layer.apply(v, x, jnp.zeros((G, B)), False, mutable=["batch_stats"]))(
        variables, x
    )
    stats, params = variables["batch_stats"], variables["params"]
    expected = (x - stats["mean"].reshape(1, 1, 1, 1, C)) / np.sqrt(stats["var"] + 1e-5).reshape(
        1, 1, 1, 1, C
    )
    expected = expected * params["scale"].reshape(1, 1, 1, 1, C) + params["bias"].reshape(1, 1, 1, 1, C)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], stats)


def test_two_devices_share_their_statistics(norm):
    x, variables, _, train = norm
    mask = np.float32([1, 1, 1, 0])  # unequal numbers of real clips
    layer = BatchNorm(axis_name="devices")
    split = lambda a, axis: np.stack(np.split(a, 2, axis))  # noqa: E731
    shared = jax.pmap(
        lambda v, x, m: layer.apply(v, x, jnp.broadcast_to(m, x.shape[:2]), True, mutable=["batch_stats"]),
        "devices",
        in_axes=(None, 0, 0),
        devices=jax.devices()[:2],
    )
    y, updates = shared(variables, split(x, 1), split(mask, 0))
    whole, expected = train(variables, x, mask)
    np.testing.assert_allclose(np.concatenate(y, axis=1), whole, rtol=1e-4, atol=1e-5)
    for key, value in expected["batch_stats"].items():
        for device in range(2):
            np.testing.assert_allclose(updates["batch_stats"][key][device], value, rtol=1e-5)


# Shapes and outputs


@pytest.mark.parametrize("output", ["rgb", "residual"])
def test_shapes_of_the_parts(output):
    model = CVAE(**DIMS, output=output)
    variables = init_variables(model, 0, SIZE)
    maps = lambda *lead, c: jax.ShapeDtypeStruct((*lead, *SIZE, c), jnp.float32)  # noqa: E731
    mask = jax.ShapeDtypeStruct((5, 2), jnp.float32)

    def shape(method, *inputs, **fields):
        apply = lambda v, *a: model.network.apply(v, *a, **fields, method=method)  # noqa: E731
        return jax.tree.map(lambda a: a.shape, jax.eval_shape(apply, variables, *inputs))

    assert shape("encode_frame", maps(2, c=3)) == (2, *SIZE, 8)
    assert shape("encode_label", maps(5, 2, c=3), mask, train=False) == (5, 2, *SIZE, 2)
    assert shape("posterior", maps(2, c=8), maps(2, c=2)) == ((2, *SIZE, 4),) * 2
    inputs = (maps(2, c=8), maps(2, c=2), maps(2, c=4), maps(2, c=6))
    assert shape("decode", *inputs) == (2, *SIZE, 3)
    # The decoder sees the first frame and its label too where it draws the difference to that frame.
    fused = variables["params"]["decoder_fusion"]["layer_0"]["conv1"]["kernel"].shape[2]
    assert fused == 8 + 2 + 4 + (6 if output == "residual" else 0)


@pytest.mark.parametrize("output", ["rgb", "residual"])
def test_residual_output_draws_the_difference_to_the_first_frame(output):
    model = CVAE(**DIMS, output=output)
    variables = init_variables(model, 0, SIZE)
    last = variables["params"]["generator"]["layer_7"]
    last["kernel"] = np.zeros_like(last["kernel"])
    last["bias"] = np.float32([0.1, -0.2, 0.0])
    rng = np.random.default_rng(1)
    shapes = [(1, *SIZE, c) for c in (8, 2, 4, 6)]
    inputs = [rng.uniform(size=s).astype(np.float32) for s in shapes]
    frame = jax.jit(lambda v, *a: model.network.apply(v, *a, method="decode"))(variables, *inputs)
    expected = np.broadcast_to(np.float32([0.1, -0.2, 0.0]), frame.shape)
    expected = expected + (inputs[-1][..., :3] if output == "residual" else 0)
    np.testing.assert_allclose(frame, expected, atol=1e-6)


def test_positions_tell_every_pixel_apart():
    one, two = np.asarray(positions(5, 4, 1)), np.asarray(positions(5, 4, 2))
    assert one.shape == (5, 4, 4) and two.shape == (5, 4, 8)
    np.testing.assert_array_equal(two[..., :4], one)
    assert len(np.unique(one.reshape(20, 4).round(6), axis=0)) == 20
    np.testing.assert_allclose(one[0, 0], [-1, -1, 0, 0], atol=1e-6)  # sin, sin, cos, cos of -pi/2
    np.testing.assert_allclose(one[2, 3], [0, 1, 1, 0], atol=1e-6)
    assert (one[:, :1, 0::2] == one[:, :, 0::2]).all()  # rows do not change along a row


@pytest.mark.parametrize(("octaves", "channels"), [(0, 14), (2, 22)])
def test_the_decoder_sees_positions_if_asked_to(octaves, channels):
    variables = init_variables(CVAE(**DIMS, position_octaves=octaves), 0, SIZE)
    first = variables["params"]["decoder_fusion"]["layer_0"]["conv1"]["kernel"]
    assert first.shape[2] == channels
