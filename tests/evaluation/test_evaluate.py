"""Evaluation: baselines against their definitions, rows, files, and that numbers do not move."""

import json

import jax
import numpy as np
import pytest
from helpers import moving_square, tiny_config
from PIL import Image

from cvae_jax.config import Components
from cvae_jax.evaluation.baselines import Baselines, nearest
from cvae_jax.evaluation.evaluate import evaluate
from cvae_jax.evaluation.rows import ClipScores, rows
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import nan_to_null
from cvae_jax.train import train

pytestmark = pytest.mark.usefixtures("small_model")


def test_baselines_are_what_they_say():
    train_clips = [moving_square("a", 9, 1), moving_square("b", 7, 2)]
    clip = moving_square("c", 5, 3)
    predicted = dict(Baselines(train_clips).predict(clip))
    truth = clip.frames.astype(np.float32) / 255
    frames = np.concatenate([r.frames for r in train_clips])
    labels = np.concatenate([r.labels for r in train_clips]).astype(np.int64)
    assert all(p.shape == truth[1:].shape for p in predicted.values())
    np.testing.assert_array_equal(predicted["copy_first"], np.stack([truth[0]] * 4))
    np.testing.assert_array_equal(predicted["copy_previous"], truth[:-1])
    np.testing.assert_allclose(predicted["mean_frame"][2], frames.mean(0) / 255, atol=1e-6)
    for t in range(1, 5):
        distance = ((labels - clip.labels[t].astype(np.int64)) ** 2).sum((1, 2, 3))
        assert distance[nearest(clip.labels[t : t + 1], labels.astype(np.uint8))[0]] == (distance.min())
        expected = frames[nearest(clip.labels[t : t + 1], labels.astype(np.uint8))[0]]
        np.testing.assert_allclose(predicted["nearest_pose"][t - 1], expected / 255, atol=1e-6)


def test_baselines_use_the_scene_of_the_clip_only():
    import dataclasses

    other = dataclasses.replace(moving_square("z", 4, 5), scene="elsewhere")
    clip = moving_square("c", 3, 3)
    own = [moving_square("a", 6, 1)]
    alone = dict(Baselines(own).predict(clip))
    both = dict(Baselines([other, *own]).predict(clip))
    for name in alone:
        np.testing.assert_array_equal(alone[name], both[name])


def test_mean_row_is_the_mean_over_scenes_and_curves_allow_short_clips():
    def clip(scene, values):
        return ClipScores(scene, np.array(values, float), np.array(values, float) / 100)

    clips = [clip("a", [10, 20]), clip("a", [30, 30]), clip("b", [40])]
    table = rows(
        dict.fromkeys(
            ("prior", "posterior", "nearest_pose", "mean_frame", "copy_first", "copy_previous"), clips
        ),
        Components.build(tiny_config()).evaluation,
    )
    mean = table[0]
    assert mean["name"] == "prior" and "scene" not in mean
    assert mean["psnr"] == pytest.approx((22.5 + 40) / 2)
    assert mean["ssim"] == pytest.approx((0.225 + 0.40) / 2)
    assert mean["per_frame_psnr"] == pytest.approx([(20 + 40) / 2, 25])
    low, high = mean["psnr_ci95"]  # scene b has one clip, which is held fixed
    assert low == pytest.approx((15 + 40) / 2) and high == pytest.approx((30 + 40) / 2)
    scene_b = [r for r in table if r.get("scene") == "b" and r["name"] == "prior"]
    assert scene_b[0]["psnr"] == 40 and scene_b[0]["psnr_ci95"] is None
    assert {r["name"]: r["sees_target"] for r in table[:6]} == {
        "prior": False,
        "posterior": True,
        "nearest_pose": False,
        "mean_frame": False,
        "copy_first": False,
        "copy_previous": True,
    }


def test_evaluate_writes_what_the_contract_names(data, tmp_path):
    config = tiny_config()
    config.num_epochs = 1
    config.eval.samples = 2
    train(config, tmp_path, jax.local_devices()[:1])
    results = evaluate(config, tmp_path, "last", jax.local_devices()[:1])
    folder = tmp_path / "eval"
    assert json.loads((folder / "results.json").read_text()) == results
    assert {"protocol", "rows", "latents"} == results.keys()
    names = [row["name"] for row in results["rows"]]
    assert names == [
        "prior",
        "prior_best_of_N",
        "prior_mean",
        "posterior",
        "nearest_pose",
        "mean_frame",
        "copy_first",
        "copy_previous",
    ]
    assert len(results["rows"][0]["per_frame_psnr"]) == 5  # T - 1 of the longest clip
    assert results["protocol"]["n_pred"] == [5, 4]
    assert "copy_previous" in (folder / "table.md").read_text()
    assert (folder / "per_frame_psnr.png").stat().st_size > 1000
    gifs = sorted(folder.glob("*.gif"))
    assert [g.name for g in gifs] == ["c.gif", "d.gif"]
    with Image.open(gifs[0]) as gif:
        assert gif.n_frames == 6
    again = evaluate(config, tmp_path, "last", jax.local_devices()[:1])
    assert again == results


def test_prior_scores_do_not_depend_on_batch_or_devices(data):
    """Clip c's sample 1 is the same alone, in a batch of two, and on two devices."""
    parts = Components.build(tiny_config())
    variables = init_variables(parts.model, 0, (16, 12))
    recordings = data["validation"]
    found = []
    for count, batch, chunk in ((1, 1, 9), (1, 2, 2), (2, 2, 3), (1, 4, 9)):
        scorer = Scorer(
            parts.model,
            parts.objective,
            Devices(jax.local_devices()[:count]),
            n_past=1,
            batch_size=batch,
            chunk=chunk,
            with_ssim=True,
        )
        scored = [
            s
            for s in scorer.run(variables, recordings, "prior", 7, range(3), frames_of=(1,))
            if s.sample == 1
        ]
        found.append(scored)
    for scored in found[1:]:
        for a, b in zip(found[0], scored, strict=True):
            np.testing.assert_allclose(a.scores["psnr"], b.scores["psnr"], atol=1e-4)
            np.testing.assert_allclose(a.scores["ssim"], b.scores["ssim"], atol=1e-4)


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_rolled_out(data, tmp_path):
    (tmp_path / "eval").write_text("a file")
    with pytest.raises(UserError, match="Cannot write to the folder .*eval"):
        evaluate(tiny_config(), tmp_path, "last")


def test_scores_that_are_not_finite_have_no_interval_and_are_null():
    clips = [ClipScores("a", np.array([psnr]), np.array([0.5])) for psnr in (np.nan, 9.0)]
    (row,) = rows({"prior": clips}, Components.build(tiny_config()).evaluation)
    assert row["psnr_ci95"] is None and row["ssim_ci95"] == [0.5, 0.5]
    assert nan_to_null({"rows": [row]})["rows"][0]["psnr"] is None
