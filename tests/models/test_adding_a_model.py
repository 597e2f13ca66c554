"""docs/models.md, literally: its code is saved where it says, and the model runs through every script."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, read_rows

DEVICES = 4
FLAGS = [
    "--config=configs/recurrent.py",
    "--config.model.recurrent.width=8",
    "--config.model.recurrent.latents=3",
    "--config.n_past=2",
    "--config.clip_length=5",
    "--config.batch_size=6",  # padded to eight on four devices
    "--config.num_epochs=2",
    "--config.data.clips_per_epoch=12",
    "--config.data.stride=7",
    "--config.teacher_forcing.initial=0.5",
    "--config.teacher_forcing.draw=step",
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the package and the scripts in which the page's instructions have been followed."""
    root = tmp_path_factory.mktemp("clone")
    for folder in ("cvae_jax", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("train.py", "evaluate.py", "generate.py"):
        shutil.copy(ROOT / script, root / script)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    module, registration, config = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (root / "cvae_jax" / "models" / "recurrent.py").write_text(module)
    (root / "configs" / "recurrent.py").write_text(config)
    kinds = root / "cvae_jax" / "models" / "__init__.py"
    kinds.write_text(kinds.read_text() + "\n" + registration)
    return root


def command(clone, script, *flags):
    cache = f"--config.data.cache={clone / 'data'}"
    return [sys.executable, str(clone / script), *flags, cache]


def environment(devices):
    fast = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": fast, "JAX_PLATFORMS": "cpu"}


def run(clone, script, *flags, devices=1):
    done = subprocess.run(
        command(clone, script, *flags),
        cwd=clone,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(clone):
    workdir = clone / "runs" / "one"
    run(clone, "train.py", *FLAGS, f"--workdir={workdir}")
    return workdir


def test_it_trains_with_a_latent_of_its_own_and_alike_on_four_devices(clone, trained):
    other = clone / "runs" / "four"
    run(clone, "train.py", *FLAGS, f"--workdir={other}", devices=DEVICES)
    one, four = read_rows(trained), read_rows(other)
    assert [row["epoch"] for row in one] == [0, 1]
    assert one[1]["train_loss"] < one[0]["train_loss"]
    assert one[0]["kl"] > 0 and one[0]["val_kl_nats_per_frame"] > 0
    for a, b in zip(one, four, strict=True):
        for name in ("train_loss", "recon", "kl", "grad_norm", "val_loss", "val_psnr_prior"):
            assert b[name] == pytest.approx(a[name], rel=2e-3), name


def test_a_killed_run_resumes_as_if_nothing_had_happened(clone, trained):
    killed = clone / "runs" / "killed"
    flags = [*FLAGS, f"--workdir={killed}", "--config.checkpoint.minutes=0.0001"]
    process = subprocess.Popen(
        command(clone, "train.py", *flags),
        cwd=clone,
        env=environment(1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not any(path.name.isdecimal() for path in (killed / "checkpoints").glob("*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(clone, "train.py", *flags)
    assert read_rows(killed) == read_rows(trained)


def test_it_is_evaluated_in_chunks_and_generates(clone, trained):
    tables = []
    for chunk in (32, 4):
        run(
            clone,
            "evaluate.py",
            f"--workdir={trained}",
            "--checkpoint=last",
            f"--config.eval.chunk={chunk}",
            "--config.eval.samples=2",
            "--config.eval.best_of=2",
        )
        results = json.loads((trained / "eval" / "results.json").read_text())
        assert results["protocol"]["model"] == "recurrent" and results["protocol"]["n_past"] == 2
        tables.append({r["name"]: r["psnr"] for r in results["rows"] if "scene" not in r})
    whole, chunked = tables
    assert whole.keys() == chunked.keys() >= {"prior", "prior_best_of_N", "prior_mean", "posterior"}
    np.testing.assert_allclose(list(whole.values()), list(chunked.values()), atol=1e-3)
    assert whole["prior"] != whole["prior_mean"]  # the latent is used
    written = run(clone, "generate.py", f"--workdir={trained}", "--clip=star_jump", "--samples=2")
    files = [line for line in written.splitlines() if line.endswith((".gif", ".mp4", ".png"))]
    assert len(files) == 3 and all(os.path.getsize(file) for file in files)


def test_a_value_it_cannot_have_is_refused(clone):
    done = subprocess.run(
        command(clone, "train.py", "--config=configs/recurrent.py", "--config.model.recurrent.latents=0"),
        cwd=clone,
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: config.model.recurrent.latents is 0; give at least 1."
