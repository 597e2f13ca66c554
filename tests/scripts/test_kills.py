"""Training that is ended by a signal at random moments: the same command always ends with the same bits."""

import collections
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, TINY, read_rows, restored, same_bits

from cvae_jax.training.checkpoint_folder import FOLDER, HALF_WRITTEN, stored_steps

FLAGS = [
    *TINY,
    "--config.num_epochs=6",
    "--config.batch_size=2",
    "--config.data.name=frame_folder",
    "--config.data.stride=3",
    "--config.eval.lpips=False",
    "--config.log.images=False",
    "--config.checkpoint.minutes=0.0001",  # after every step, so that signals arrive while one is written
]
SECONDS_FOR_ANY_RUN = 1200


def start(environment, flags, log, processes=1):
    """Start train.py in a number of processes, which write to numbered files under `log`, and return them."""
    log.mkdir(parents=True)
    command = [sys.executable, str(ROOT / "train.py"), *flags]
    started = []
    for number in range(processes):
        with (log / f"out{number}").open("w") as out, (log / f"err{number}").open("w") as err:
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err))
    return started


def text_of(log, name):
    return "".join(path.read_text() for path in sorted(log.glob(f"{name}*")))


def phase(workdir, log):
    """What a run is doing, from what it has printed and what is on disk."""
    bars = re.split("[\r\n]", text_of(log, "err").rstrip())
    if len(bars) < 2 and "CPU settings" not in bars[-1]:
        return "start of Python"
    if list((workdir / FOLDER).glob(HALF_WRITTEN)):
        return "saving"
    if "Trained" in text_of(log, "out"):
        return "exit"
    for words in ("compiling", "validating", "Checking files", "Decoding", "epoch"):
        if words in bars[-1]:
            return {"epoch": "steps", "Checking files": "data", "Decoding": "data"}.get(words, words)
    return "imports and data"


def finish(environment, flags, log):
    """Train to the end, and return the seconds that it took."""
    began = time.monotonic()
    for process in start(environment, flags, log):
        assert process.wait(SECONDS_FOR_ANY_RUN) == 0, text_of(log, "err")[-2000:]
    return time.monotonic() - began


@pytest.fixture(scope="module")
def uninterrupted(environment, lab_folder, tmp_path_factory):
    """(flags, workdir, seconds) of a run whose programs had been compiled before."""
    root = tmp_path_factory.mktemp("uninterrupted")
    flags = [*FLAGS, f"--config.data.dir={lab_folder}"]
    for name in ("compiles", "whole"):
        places = [f"--config.data.cache={root / name / 'data'}", f"--workdir={root / name / 'run'}"]
        seconds = finish(environment, [*flags, *places], root / name / "log")
    assert same_bits(restored(root / "compiles" / "run", "last"), restored(root / "whole" / "run", "last"))
    return flags, root / "whole" / "run", seconds


def assert_ended_well(number, status, log):
    """Without errors; after SIGTERM with a checkpoint, unless training had not begun or was done."""
    said, errors = text_of(log, "out"), text_of(log, "err")
    assert "Traceback" not in errors and "error:" not in errors, errors[-2000:]
    if status == 0:
        assert "Trained" in said or number == signal.SIGTERM and "Stopped by SIGTERM" in said
    else:
        assert status == -number, errors[-2000:]
        assert number == signal.SIGKILL or "epoch" not in errors or "Trained" in said, errors[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("number, times", [(signal.SIGKILL, 20), (signal.SIGTERM, 10)])
def test_signals_at_random_moments(environment, uninterrupted, tmp_path, number, times):
    flags, whole, seconds = uninterrupted
    moments = random.Random(int(number))
    hit, log_number, run_number = collections.Counter(), 0, 0
    while hit.total() < times:
        workdir, newest, ended = tmp_path / f"run{run_number}", 0, False
        places = [f"--config.data.cache={tmp_path / f'data{run_number}'}", f"--workdir={workdir}"]
        while not ended and hit.total() < times:
            log, log_number = tmp_path / f"log{log_number}", log_number + 1
            processes = start(environment, [*flags, *places], log)
            moment = moments.uniform(0, seconds)
            time.sleep(moment)
            ended = all(process.poll() is not None for process in processes)
            if not ended:
                what = phase(workdir, log)
                hit[what] += 1
                print(f"{number.name} after {moment:.1f} s, during {what}")
            for process in processes:
                process.send_signal(number)
            for process in processes:
                assert_ended_well(number, process.wait(SECONDS_FOR_ANY_RUN), log)
            steps = stored_steps(workdir)
            assert not steps or steps[-1] >= newest, "a checkpoint has been lost"
            newest = steps[-1] if steps else newest
        finish(environment, [*flags, *places], tmp_path / f"last{run_number}")
        assert read_rows(workdir) == read_rows(whole)
        assert same_bits(restored(workdir, "last")[1], restored(whole, "last")[1])
        assert not list((workdir / FOLDER).glob("*.*"))
        run_number += 1
    print(f"{number.name} in {run_number} runs of {seconds:.0f} s: {dict(hit)}")
    assert hit["saving"] + hit["steps"] and hit["imports and data"] + hit["data"] + hit["compiling"]
