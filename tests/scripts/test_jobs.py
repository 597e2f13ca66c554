"""Several processes on one machine compute what one does, and end together."""

import json
import signal
import subprocess
import sys
import time

import jax
import jobs
import numpy as np
import pytest
from helpers import TINY, flat, read_rows, restored, same_bits
from ml_collections import ConfigDict

from cvae_jax.config import Components
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime import processes
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.job import LOST, joined
from cvae_jax.scripts import generate, study

# Three clips of the batch are spread over four devices; of the last batch's two, one process gets none.
DATA = ["--config.data.name=frame_folder", "--config.batch_size=3", "--config.num_epochs=2"]
DATA += ["--config.eval.best_of=0", "--config.eval.lpips=False", "--config.log.images=False"]
# A large eps: otherwise Adam makes steps of what rounding changes in the smallest gradients.
DATA += ["--config.learning_rate.peak=0.001", "--config.optimizer.eps=1e-5"]
CALIBRATED = ["--config.loss.reconstruction=calibrated", "--config.loss.divide_recon_by_batch=False"]
SVG = [
    "--config.model.kind=svg",
    "--config.data.frame_size=(64, 64)",
    "--config.model.svg.width=8",
    "--config.model.svg.code_size=8",
    "--config.model.svg.rnn_size=8",
    "--config.model.svg.latents=4",
    "--config.n_past=2",
    "--config.loss.kl=sum",
]
MULTISCALE = [
    "--config.model.kind=multiscale",
    "--config.model.multiscale.widths=(8, 16)",
    "--config.model.multiscale.latent_channels=2",
    "--config.loss.kl=sum",
]
MODELS = {
    "cvae": ["--config.model.cvae.prior=learned", "--config.teacher_forcing.draw=example_step"],
    "cvae-feedback": [
        "--config.rollout.cut_feedback=False",
        "--config.model.cvae.cut_previous_features=False",
        "--config.model.cvae.history=1",
        "--config.n_past=2",
    ],
    "cvae-bfloat16": ["--config.precision=bfloat16"],
    "svg": SVG,
    "multiscale": [*MULTISCALE, *CALIBRATED, "--config.optimizer.kind=muon", "--config.augment.shift=2"],
}


def flags_of(folder, tmp_path, workdir, *more):
    places = [f"--config.data.dir={folder}", f"--config.data.cache={tmp_path / 'cache'}"]
    return ["train.py", *TINY, *DATA, *places, f"--workdir={workdir}", *more]


def close(one, other, rtol):
    """Numbers that agree up to rounding, in JSON values of one form."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name], rtol) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b, rtol) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return other == pytest.approx(one, rel=rtol, abs=rtol)
    return one == other


def agree(one, other, rtol=2e-3, size=(32, 64)):
    """Two runs with the same numbers, up to the order of sums, which Adam's first steps enlarge.

    All parameters together are held to 5 % of the distance that they have moved, batch statistics to 1 %.
    """
    rows, others = read_rows(one), read_rows(other)
    assert len(rows) == len(others) == 2
    for row, another in zip(rows, others, strict=True):
        for name in ("train_loss", "recon", "kl", "grad_norm", "val_psnr_prior", "val_psnr_posterior"):
            assert another[name] == pytest.approx(row[name], rel=rtol), name
        assert row["val_psnr_prior_by_scene"].keys() == another["val_psnr_prior_by_scene"].keys()
    config, state = restored(one, "last", size)
    _, another = restored(other, "last", size)
    start = init_variables(Components.build(config).model, config.seed, size)
    assert state.step == another.step
    moved = np.linalg.norm(flat(state.params) - flat(start["params"]))
    assert np.linalg.norm(flat(state.params) - flat(another.params)) < 0.05 * moved
    if state.batch_stats:
        statistics = flat(state.batch_stats)
        assert np.linalg.norm(statistics - flat(another.batch_stats)) < 0.01 * np.linalg.norm(statistics)


def scored(environment, count, devices, workdir):
    done = jobs.run(environment, count, devices, "evaluate.py", f"--workdir={workdir}", "--checkpoint=last")
    assert [one.status for one in done] == [0] * count, done
    assert "copy_previous" in done[0].said and "copy_previous" not in "".join(one.said for one in done[1:])
    return json.loads((workdir / "eval" / "results.json").read_text())


def test_two_processes_compute_what_one_does(environment, lab_folder, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for count, devices, workdir in ((1, 1, one), (2, 2, two)):
        done = jobs.run(environment, count, devices, *flags_of(lab_folder, tmp_path, workdir))
        assert [one.status for one in done] == [0] * count, done
        assert "epoch 2/2" in done[0].errors and not any("epoch" in other.errors for other in done[1:])
        assert all(("Waiting for the other processes" in one.errors) == (len(done) > 1) for one in done)
    agree(one, two)
    several = scored(environment, 2, 2, two)
    alone = scored(environment, 1, 1, two)
    assert close(alone, several, 1e-4)
    assert any(row["name"] == "blend_poses" for row in several["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_every_model_in_several_processes(environment, lab_folder, tmp_path, model, count, devices):
    several, alone = tmp_path / "several", tmp_path / "alone"
    for processes_, devices_, workdir in ((count, devices, several), (1, 4, alone)):
        flags = flags_of(lab_folder, tmp_path, workdir, *MODELS[model])
        done = jobs.run(environment, processes_, devices_, *flags)
        assert [one.status for one in done] == [0] * processes_, done
    agree(alone, several, size=(64, 64) if model == "svg" else (32, 64))
    assert close(scored(environment, 1, 4, several), scored(environment, count, devices, several), 1e-3)


def test_processes_with_different_configs_do_not_begin(environment, lab_folder, tmp_path):
    flags = flags_of(lab_folder, tmp_path, tmp_path / "run")
    started = jobs.start(environment, 2, 1, lambda index: [*flags, f"--config.seed={index}"])
    for done in jobs.end(started):
        assert done.status == 2 and "Traceback" not in done.errors
        assert "have different configs: those of process 1 differ" in done.errors
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_is_told_and_ends_the_others(environment, lab_folder, tmp_path):
    """Process 0 alone writes: here it cannot."""
    (tmp_path / "file").touch()
    flags = flags_of(lab_folder, tmp_path, tmp_path / "file" / "run")
    for done in jobs.run(environment, 2, 1, *flags):
        assert done.status == 2 and "Traceback" not in done.errors and LOST not in done.errors
        assert "file" in done.errors and "error: " in done.errors


ALONE = """
import sys
from cvae_jax.runtime import cli, processes
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.job import joined

def body():
    if processes.index() == int(sys.argv[4]):
        raise UserError("Something is wrong here.")
    processes.gather(None)

with joined(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
    cli.guarded(body)
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_alone_says_why(environment, tmp_path, failing):
    """The other waits for it, and ends, too."""
    (tmp_path / "alone.py").write_text(ALONE)
    coordinator = f"127.0.0.1:{jobs.free_port()}"
    environment = environment | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(tmp_path / "alone.py"), coordinator, "2"]
    began = time.monotonic()
    started = [
        subprocess.Popen(
            [*command, str(index), str(failing)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert time.monotonic() - began < 90
    assert started[failing].returncode == 2 and "error: Something is wrong here." in errors[failing]
    other = errors[1 - failing]
    assert started[1 - failing].returncode != 0 and LOST in other and "Traceback" not in other


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_of_which_one_process_is_ended_resumes(environment, lab_folder, tmp_path, victim, how):
    """SIGTERM: all save and end with 0. SIGKILL: the others end within a minute, with a sentence."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    epochs = ["--config.num_epochs=30", "--config.eval.every=10"]
    done = jobs.run(environment, 2, 2, *flags_of(lab_folder, tmp_path, whole, *epochs))
    assert [one.status for one in done] == [0, 0], done

    command = flags_of(lab_folder, tmp_path, parted, *epochs)
    started = jobs.start(environment, 2, 2, lambda index: command)
    metrics = parted / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    started[victim].send_signal(how)
    asked = time.monotonic()
    ended = jobs.end(started)
    seconds = time.monotonic() - asked
    if how == signal.SIGTERM:
        assert [one.status for one in ended] == [0, 0] and seconds < 30, ended
        assert "Stopped by SIGTERM; the checkpoint of step" in ended[0].said
    else:
        other = ended[1 - victim]
        assert ended[victim].status == -signal.SIGKILL and other.status != 0 and seconds < 60, ended
        assert other.errors.rstrip().endswith(LOST)
    assert not any("Traceback" in one.errors for one in ended)

    done = jobs.run(environment, 2, 2, *command)
    assert [one.status for one in done] == [0, 0], done
    assert "Resuming from epoch" in done[0].errors
    assert read_rows(parted) == read_rows(whole)
    assert same_bits(restored(whole, "last")[1], restored(parted, "last")[1])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("a:1", 2, None), "also needs --process_id"),
        ((None, 2, None), "also needs --coordinator and --process_id"),
        (("a", 2, 0), "HOST:PORT"),
        (("a:1", 0, 0), "--num_processes is 0"),
        (("a:1", 2, 2), "from 0 to 1"),
        (("a:1", 2, -1), "--process_id is -1"),
    ],
)
def test_flags_that_describe_no_job(given, named):
    with pytest.raises(UserError, match=named), joined(*given):
        pass


def test_processes_that_cannot_be_one_job_are_refused(monkeypatch, tmp_path):
    """By scripts of a single process, and by the others where JAX does not detect the job."""

    def undetected(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", undetected)
    processes.require_one("study.py")
    with joined():
        assert processes.count() == 1
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="^study.py runs as a single process, but 3 were started"):
        processes.require_one("study.py")
    with pytest.raises(UserError, match="3 processes were started, and JAX cannot detect"), joined():
        pass
    for script in (
        lambda: study._study(ConfigDict(), str(tmp_path / "new")),
        lambda: generate._generate(ConfigDict(), tmp_path / "new", {"clip": "one"}),
    ):
        with pytest.raises(UserError, match="runs as a single process, but 3 were started"):
            script()
    assert not (tmp_path / "new").exists()
