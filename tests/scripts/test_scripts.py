"""The scripts as a user meets them, by subprocess: training, SIGKILL and resume, evaluation, mistakes."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, read_rows, restored, same_bits


def run_script(script, environment, *flags, **kwargs):
    command = [sys.executable, str(ROOT / script), *flags]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, **kwargs
    )


def sentences(done):
    """The lines on standard error but for that which every script on a CPU prints first."""
    settings, *rest = done.stderr.splitlines()
    assert settings.startswith("CPU settings:")
    return [line for line in rest if line.strip()]


def test_killed_and_resumed_equals_uninterrupted_then_evaluated(environment, lab_folder, tmp_path):
    flags = [
        "--config=configs/cyclical.py",
        *TINY,
        "--config.num_epochs=4",
        "--config.data.name=frame_folder",
        f"--config.data.dir={lab_folder}",
        f"--config.data.cache={tmp_path / 'cache'}",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run_script("train.py", environment, *flags, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compiling the training step" in done.stderr

    command = [sys.executable, str(ROOT / "train.py"), *flags, f"--workdir={killed}"]
    for rows_before_kill in (1, 3):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        metrics = killed / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.read_text().count("\n") >= rows_before_kill:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was still at work
    resumed = run_script("train.py", environment, *flags, f"--workdir={killed}")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "Resuming from epoch" in resumed.stderr
    assert read_rows(killed) == read_rows(whole)
    assert len(read_rows(whole)) == 4
    assert same_bits(restored(whole, "last")[1], restored(killed, "last")[1])

    refused = run_script("train.py", environment, *flags, f"--workdir={whole}", "--config.seed=3")
    assert refused.returncode == 2
    assert "config.seed is 3 but was 0" in refused.stderr and "Traceback" not in refused.stderr

    longer = [*flags, f"--workdir={whole}", "--config.num_epochs=5"]
    extended = run_script("train.py", environment, *longer, "--extend")
    assert extended.returncode == 0, extended.stderr[-2000:]
    assert "Extending the run from 4 to 5 epochs" in extended.stderr
    assert len(read_rows(whole)) == 5
    assert extended.stdout == f"Trained; now run: python evaluate.py --workdir={whole}\n"

    scored = run_script("evaluate.py", environment, f"--workdir={whole}", "--checkpoint=last")
    assert scored.returncode == 0, scored.stderr[-2000:]
    results = json.loads((whole / "eval" / "results.json").read_text())
    assert results["protocol"]["n_pred"] == [7]
    assert {"prior", "posterior", "copy_first"} <= {row["name"] for row in results["rows"]}
    assert "copy_previous" in scored.stdout


def test_sigterm_saves_and_ends_with_status_0(environment, lab_folder, tmp_path):
    flags = [
        *TINY,
        "--config.num_epochs=500",
        "--config.data.name=frame_folder",
        f"--config.data.dir={lab_folder}",
        f"--config.data.cache={tmp_path / 'cache'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    command = [sys.executable, str(ROOT / "train.py"), *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    asked = time.monotonic()
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - asked < 30, errors[-2000:]
    step = int(re.search(r"Stopped by SIGTERM; the checkpoint of step (\d+) is in", said).group(1))
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert "Trained" not in said and "Traceback" not in errors


MISTAKES = {
    "unknown field": (["--config.batchsize=3"], "batchsize"),
    "unparsable value": (["--config.batch_size=many"], "many"),
    "unknown flag": (["--wokdir=x"], "workdir ? (--help lists the flags)"),
    "missing config": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "ratio of zero": (["--config.beta.kind=cyclical", "--config.beta.ratio=0.0"], "config.beta.ratio"),
    "too small": (["--config.model.cvae.frame_features=4"], "config.model.cvae.frame_features"),
    "no clip fits": (["--config.clip_length=200"], "config.clip_length=200"),
    "no data": (["--config.data.name=frame_folder"], "config.data.dir"),
    "no such data set": (["--config.data.name=kth"], "kth"),
    "large seed": (["--config.seed=4294967296"], "below 2**32"),
    "frame size": (["--config.data.frame_size=(64, 5)"], "config.data.frame_size"),
}


@pytest.mark.parametrize("flags, named", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_with_one_sentence_and_status_2(environment, tmp_path, flags, named):
    done = run_script("train.py", environment, *flags, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = sentences(done)
    assert len(sentence) == 1 and named in sentence[0], done.stderr
    assert not (tmp_path / "w" / "checkpoints").exists()


@pytest.mark.parametrize(
    "flags, named",
    [([], "--workdir is missing"), (["--workdir=nowhere"], "There is no run in nowhere")],
)
def test_evaluate_without_a_run(environment, flags, named):
    done = run_script("evaluate.py", environment, *flags)
    assert done.returncode == 2
    assert named in done.stderr and "Traceback" not in done.stderr


def test_a_study_with_a_mistake_ends_before_it_begins(environment, tmp_path):
    flags = ["--config=configs/study_reduced.py", f"--workdir={tmp_path}"]
    done = run_script("study.py", environment, *flags, "--config.variants=('nothing',)")
    assert done.returncode == 2
    (sentence,) = sentences(done)
    assert "choose among cyclical" in sentence
    assert not list(tmp_path.iterdir())
