"""Studies: runs planned, trained once, continued after an interruption, compared seed by seed."""

import concurrent.futures
import json
import re
import threading
import time

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import tiny_config

from configs import (
    ablation,
    ablation_multiscale,
    ablation_real_clips,
    cvae_recipe,
    study_mmnist,
    study_priors,
    study_reduced,
)
from configs import study as full
from cvae_jax import train as training
from cvae_jax.report.columns import metrics_of
from cvae_jax.runtime.errors import NonFiniteError, UserError
from cvae_jax.runtime.files import exclusive
from cvae_jax.study import report
from cvae_jax.study import run as studies
from cvae_jax.study.summary import _metrics, mean_interval
from cvae_jax.train import open_run
from cvae_jax.training.loop import Run, Stopped

pytestmark = pytest.mark.usefixtures("small_model")


def tiny_study():
    study = full.get_config()
    study.base = tiny_config()
    study.base.num_epochs = 2
    study.base.batch_size = 2
    study.base.checkpoint.save_every = 1
    study.base.eval.samples = 1
    study.split = "validation"
    study.seeds = 2
    study.variants = ("none", "linear", "step_draws")
    study.changes = {
        "none": {},
        "linear": {"teacher_forcing": {"kind": "linear"}},
        "step_draws": {"teacher_forcing": {"draw": "step"}},
    }
    study.figures.forcing = "none"
    study.figures.schedules, study.figures.schedules_scaled = ("none", "linear"), ()
    study.figures.decays = ("none", "linear", "step_draws")
    study.figures.course = ("none", "linear")
    return study


@pytest.fixture
def runs_made(monkeypatch):
    """Names of the runs that were started, in order."""
    made = []

    def counted(config, *rest, **keywords):
        made.append(f"{config.name}_{config.seed}")
        return open_run(config, *rest, **keywords)

    monkeypatch.setattr(studies, "open_run", counted)
    return made


def test_a_study_is_done_once_and_reported(data, runs_made, tmp_path, monkeypatch):
    study = tiny_study()
    traced = []
    made = training.make_train_step

    def traced_step(*parts, **known):
        traced.append(parts)
        return made(*parts, **known)

    monkeypatch.setattr(training, "make_train_step", traced_step)
    rows = studies.run_study(study, tmp_path, jax.local_devices()[:2])
    assert sorted(runs_made) == sorted(f"{v}_{s}" for v in study.variants for s in (0, 1))
    assert len(traced) == 2  # one program for each device: these variants differ in schedules only
    assert [row["variant"] for row in rows] == list(study.variants)
    none, linear, _ = rows
    assert none["seeds"] == [0, 1] and "difference" not in none
    a, b = (np.array(row["prior"]["by_seed"]) for row in (none, linear))
    np.testing.assert_allclose(linear["difference"]["by_seed"], b - a)
    low, high = linear["difference"]["ci95"]
    assert low <= linear["difference"]["mean"] <= high
    a, b = (row["metrics"]["ssim"] for row in (none, linear))
    expected = np.subtract(b["prior"]["by_seed"], a["prior"]["by_seed"])
    np.testing.assert_allclose(b["difference"]["by_seed"], expected)
    assert a["difference"] is None and a["prior_best_of_N"]["mean"] > a["prior"]["mean"]
    for run in studies.plan(study, tmp_path):
        scores = run.scores("validation", 2)
        assert {row["name"] for row in scores["rows"]} >= {"prior", "posterior"}
    report = (tmp_path / "report.md").read_text()
    figures = re.findall(r"\]\((figures/\w+\.png)\)", report)
    assert [re.search(r"/(\d)", figure).group(1) for figure in figures] == list("12345678")
    assert all((tmp_path / figure).stat().st_size > 5000 for figure in figures)
    assert "nearest_pose" in report and "step_draws" in report
    assert "3 variants, 2 seeds each." in report and "best of N draws" in report
    assert re.search(rf"\| linear +\| +SSIM +\| +{b['prior']['mean']:.3f} \|", report)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8 and 'src="figures' not in page
    assert "<table>" in page

    runs_made.clear()
    again = studies.run_study(study, tmp_path, jax.local_devices()[:2])
    assert again == rows and not runs_made
    study.seeds = 3  # more seeds go on with what is there
    studies.run_study(study, tmp_path, jax.local_devices()[:1])
    assert sorted(runs_made) == sorted(f"{v}_2" for v in study.variants)


def test_a_report_tells_seeds_without_scores_and_has_no_best_of_0():
    study = tiny_study()
    study.seeds, study.base.eval.best_of = 3, 0
    entry = {"mean": 20.0, "ci95": None}
    metrics = {"psnr": {"prior": entry, "prior_best_of_N": None, "difference": None}}
    rows = [
        {"variant": name, "seeds": seeds, "stopped": 0, "metrics": metrics}
        for name, seeds in (("none", [0, 1]), ("linear", [0]), ("step_draws", []))
    ]
    text = report.render(study, rows, {}, [], {"prior_best_of_N": "N = 0; best of none"})
    assert "3 variants, 3 seeds planned for each, 0 to 2 of them scored so far." in text
    assert "One draw (N = 1)." in text and "best of" not in text
    assert re.search(r"\| none +\| PSNR.* \| +20.00 \|", text)


def test_an_interrupted_study_equals_an_uninterrupted_one(data, tmp_path, monkeypatch):
    study = tiny_study()
    study.seeds = 1
    whole = studies.run_study(study, tmp_path / "whole", jax.local_devices()[:1])
    epoch = Run._epoch

    def interrupted(self, state, number, progress):
        if self.metrics_file.parent.parent.name == "linear" and number == 1:
            raise KeyboardInterrupt
        return epoch(self, state, number, progress)

    monkeypatch.setattr(Run, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        studies.run_study(study, tmp_path / "cut", jax.local_devices()[:1])
    assert not (tmp_path / "cut" / "report.md").exists()
    monkeypatch.setattr(Run, "_epoch", epoch)
    assert studies.run_study(study, tmp_path / "cut", jax.local_devices()[:1]) == whole


def test_runs_that_train_together_have_the_scores_of_runs_that_do_not(data, tmp_path, monkeypatch, capsys):
    """Five at most: six runs of one shape become two groups of three."""
    study = tiny_study()
    study.base.optimizer.eps = 1e-5  # otherwise Adam makes steps of what rounding changes
    alone = studies.run_study(study, tmp_path / "alone", jax.local_devices()[:1])
    study.together = 5
    capsys.readouterr()
    sizes = [len(group) for group in studies.grouped(study, studies.plan(study, tmp_path), 1)]
    assert sizes == [3, 3]
    together = studies.run_study(study, tmp_path / "together", jax.local_devices()[:1])
    assert "Runs of one shape train together, in groups of 3, 3." in capsys.readouterr().err
    for one, other in zip(alone, together, strict=True):
        assert one["variant"] == other["variant"] and one["seeds"] == other["seeds"]
        for row in ("prior", "posterior"):
            np.testing.assert_allclose(other[row]["by_seed"], one[row]["by_seed"], atol=0.01)


def test_the_error_is_told_and_not_that_others_were_stopped_for_it():
    """The group that was asked to stop ends first."""
    stop = threading.Event()

    def fails_late():
        stop.wait(5)
        time.sleep(0.2)
        raise UserError("the disk is full")

    def fails():
        stop.set()
        raise Stopped

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        work = [pool.submit(fails_late), pool.submit(fails)]
        with pytest.raises(UserError, match="the disk is full"):
            studies._finish(work, stop)


def test_runs_whose_draws_choose_the_form_of_the_step_train_alone(tmp_path, monkeypatch):
    study = tiny_study()
    study.base.rollout.fold_time = True
    study.variants, study.figures.course = ("none", "linear"), ()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [len(group) for group in studies.grouped(study, studies.plan(study, tmp_path), 1)] == [1] * 4
    study.base.teacher_forcing.update(kind="constant", initial=1.0)
    study.changes["linear"] = {"beta": {"scale": 0.1}}
    assert [len(group) for group in studies.grouped(study, studies.plan(study, tmp_path), 1)] == [4]
    study.base.profile_steps = (1, 2)
    with pytest.raises(UserError, match="config.base.profile_steps traces the steps of a single run"):
        studies.plan(study, tmp_path)


def test_runs_of_a_shape_are_spread_over_the_devices(tmp_path):
    study = tiny_study()
    study.changes["wide"] = {"batch_size": 3}
    study.variants = ("none", "wide", "linear")
    runs = studies.plan(study, tmp_path)
    assert [len(group) for group in studies.grouped(study, runs, 2)] == [1] * 6  # on a CPU
    study.together = 8
    groups = studies.grouped(study, runs, 2)
    assert sorted([run.variant, run.seed] for group in groups for run in group) == sorted(
        [variant, seed] for variant in study.variants for seed in (0, 1)
    )
    for group in groups:
        assert len({run.config.batch_size for run in group}) == 1
    assert sorted(map(len, groups)) == [1, 1, 2, 2]
    study.together = 0
    with pytest.raises(UserError, match="config.together is 0; give at least 1"):
        studies.plan(study, tmp_path)


def test_a_run_that_diverges_is_told_and_left_out(data, tmp_path, monkeypatch):
    study = tiny_study()
    study.seeds = 1
    finish = Run.finish

    def diverging(self):
        if self.metrics_file.parent.parent.name == "step_draws":
            raise NonFiniteError("the loss is nan")
        return finish(self)

    monkeypatch.setattr(Run, "finish", diverging)
    rows = studies.run_study(study, tmp_path, jax.local_devices()[:1])
    assert [row["stopped"] for row in rows] == [0, 0, 1]
    assert "step_draws (1 stopped: not finite)" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "runs/step_draws/seed_0/stopped.json").read_text())


def test_scores_that_are_not_finite_are_reported_and_left_out(data, tmp_path, monkeypatch):
    study = tiny_study()
    study.seeds = 1
    studies.run_study(study, tmp_path, jax.local_devices()[:1])
    (run,) = (r for r in studies.plan(study, tmp_path) if r.variant == "linear")
    path = run.scores_path("validation", 2)
    scores = json.loads(path.read_text())
    for row in scores["rows"]:
        row["psnr"] = None
    scores["latents"]["psnr_gap"] = None
    path.write_text(json.dumps(scores))
    rows = studies.run_study(study, tmp_path, jax.local_devices()[:1])
    assert [row["stopped"] for row in rows] == [0, 1, 0]
    assert rows[1].get("difference") is None
    assert "linear (1 stopped: not finite)" in (tmp_path / "report.md").read_text()


def test_an_error_stops_the_other_runs_before_the_folder_is_released(data, tmp_path, monkeypatch):
    """The lock is held until no thread trains any more."""
    study = tiny_study()
    study.seeds = 1
    study.base.num_epochs = 200
    finish, ended = Run.finish, []

    def failing(self):
        name = self.metrics_file.parent.parent.name
        if name == "linear":
            while not (tmp_path / "runs" / "none" / "seed_0" / "metrics.jsonl").exists():
                time.sleep(0.01)  # until the other run trains
            raise OSError("the disk is full")
        try:
            return finish(self)
        finally:
            ended.append(name)
            with pytest.raises(UserError, match="held"), exclusive(tmp_path, "held"):
                pass

    monkeypatch.setattr(Run, "finish", failing)
    with pytest.raises(OSError, match="disk is full"):
        studies.run_study(study, tmp_path, jax.local_devices()[:2])
    assert ended[0] == "none"
    rows = (tmp_path / "runs" / "none" / "seed_0" / "metrics.jsonl").read_text().splitlines()
    assert 0 < len(rows) < 200


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda s: s.changes.none.update(beta={"knd": "none"}), "config.changes.none does not fit"),
        (lambda s: s.changes.none.update(beta={"ratio": 0.0}), "config.beta.ratio"),
        (lambda s: s.update(compare="nothing"), "config.compare names 'nothing'"),
        (lambda s: s.update(variants=("nothing",)), "config.variants is ('nothing',)"),
        (lambda s: s.update(seeds=0), "config.seeds is 0"),
        (lambda s: s.update(split="test"), "has no split 'test'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(data, tmp_path, change, sentence):
    study = tiny_study()
    with study.unlocked():
        change(study)
    with pytest.raises(UserError, match=re.escape(sentence)):
        studies.run_study(study, tmp_path, jax.local_devices()[:1])
    assert not list(tmp_path.rglob("checkpoints"))


def test_another_training_in_the_same_folder_is_refused(data, tmp_path):
    study = tiny_study()
    study.seeds = 1
    studies.run_study(study, tmp_path, jax.local_devices()[:1])
    study.base.learning_rate.peak = 5e-3
    with pytest.raises(UserError, match="config.learning_rate.peak is 0.005 but was 0.001"):
        studies.run_study(study, tmp_path, jax.local_devices()[:1])


def test_another_length_is_refused_since_the_schedules_depend_on_it(data, tmp_path):
    study = tiny_study()
    study.seeds = 1
    study.variants = ("none",)
    studies.run_study(study, tmp_path, jax.local_devices()[:1])
    study.base.num_epochs = 4
    with pytest.raises(UserError, match="started for 2 epochs and not for 4"):
        studies.run_study(study, tmp_path, jax.local_devices()[:1])


def test_scores_on_other_data_do_not_stand_in_one_table(data, tmp_path):
    study = tiny_study()
    study.seeds = 1
    study.variants = ("none",)
    studies.run_study(study, tmp_path, jax.local_devices()[:1])
    data["validation"][0].frames[1] += 1
    study.variants = ("none", "linear")
    with pytest.raises(UserError, match="different protocols .data_blake2b is "):
        studies.run_study(study, tmp_path, jax.local_devices()[:1])


def test_two_processes_do_not_work_on_one_study(data, tmp_path):
    with exclusive(tmp_path, "held"):
        with pytest.raises(UserError, match="Another process is at work on the study"):
            studies.run_study(tiny_study(), tmp_path, jax.local_devices()[:1])


def test_a_subset_of_the_variants_needs_no_other_flag(tmp_path):
    study = full.get_config()
    study.variants = ("cyclical",)
    runs = studies.plan(study, tmp_path)
    assert {run.variant for run in runs} == {"cyclical"}


def test_runs_share_one_copy_of_the_data(data, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *a, **k: loads.append(a) or data)
    study = tiny_study()
    study.seeds = 1
    rows = studies.run_study(study, tmp_path, jax.local_devices()[:2])
    assert len(rows) == 3 and len(loads) == 1


def test_intervals_over_seeds_are_students():
    mean, interval = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    np.testing.assert_allclose(interval, (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rtol=1e-6)
    assert mean_interval([4.0]) == (4.0, None)


def test_a_metric_that_a_seed_lacks_is_left_out():
    """As LPIPS where its package came later: no mean over other seeds than the rest of the row."""
    ssim, lpips = {"prior": 0.5}, {"prior": 0.1}
    done = {0: {"metrics": {"ssim": ssim, "lpips": lpips}}, 1: {"metrics": {"ssim": ssim}}}
    assert _metrics(done, None).keys() == {"ssim"}
    assert _metrics({0: done[0]}, None).keys() == {"ssim", "lpips"}
    assert [metric.name for metric in metrics_of([{"ssim": 0.5, "ssim_person": None}])] == ["ssim"]


@pytest.mark.parametrize(
    "config",
    [full, study_reduced, study_priors, study_mmnist, ablation, ablation_real_clips, ablation_multiscale],
    ids=lambda m: m.__name__,
)
def test_every_study_plans(config, tmp_path):
    study = config.get_config()
    runs = studies.plan(study, tmp_path)
    assert len(runs) == study.seeds * len(study.variants)
    assert len({run.workdir for run in runs}) == len(runs)


def test_the_ablation_goes_from_report_exact_to_the_cvae_recipe(tmp_path):
    study = ablation.get_config()
    runs = studies.plan(study, tmp_path)[: len(study.variants)]
    found = {run.variant: flatten_dict(run.config.to_dict(), sep=".") for run in runs}
    exact, last = found["report_exact"], found["residual"]
    wanted = flatten_dict(cvae_recipe.get_config().to_dict(), sep=".")
    for field in cvae_recipe.CHANGES:
        assert last[field] == ablation.NARROW.get(field, wanted[field]) != exact[field]
    changing = {*cvae_recipe.CHANGES, "name"}
    for a, b in zip(found.values(), list(found.values())[1:], strict=False):
        differing = {field for field in a if a[field] != b[field]}
        assert {"name"} < differing <= changing
