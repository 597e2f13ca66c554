"""Training that is ended by a signal at random moments: the same command always ends with the same bits."""

import collections
import contextlib
import random
import re
import signal
import time

import jobs
import pytest
from helpers import TINY, read_rows, restored, same_bits

from cvae_jax.runtime.job import LOST
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


def start(environment, flags, log, count=1):
    """Start train.py in a number of processes, which write to numbered files under `log`, and return them."""
    log.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        files = [
            [stack.enter_context((log / f"{name}{number}").open("w")) for name in ("out", "err")]
            for number in range(count)
        ]
        return jobs.start(environment, count, 2, lambda index: ["train.py", *flags], files)


def text_of(log, name):
    return "".join(path.read_text() for path in sorted(log.glob(f"{name}*")))


def phase(workdir, log):
    """What a run is doing, from what process 0 has printed and what is on disk."""
    bars = re.split("[\r\n]", text_of(log, "err0").rstrip())
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


def finish(environment, flags, log, count):
    """Train to the end, and return the seconds that it took."""
    began = time.monotonic()
    for process in start(environment, flags, log, count):
        assert process.wait(SECONDS_FOR_ANY_RUN) == 0, text_of(log, "err")[-2000:]
    return time.monotonic() - began


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def uninterrupted(request, environment, lab_folder, tmp_path_factory):
    """(processes, flags, workdir, seconds) of a run whose programs had been compiled before."""
    root = tmp_path_factory.mktemp("uninterrupted")
    flags = [*FLAGS, f"--config.data.dir={lab_folder}"]
    for name in ("compiles", "whole"):
        places = [f"--config.data.cache={root / name / 'data'}", f"--workdir={root / name / 'run'}"]
        seconds = finish(environment, [*flags, *places], root / name / "log", request.param)
    assert same_bits(restored(root / "compiles" / "run", "last"), restored(root / "whole" / "run", "last"))
    return request.param, flags, root / "whole" / "run", seconds


def assert_ended_well(number, statuses, victims, log):
    """Without errors; after SIGTERM with a checkpoint, unless training had not begun or was done.

    Processes that have lost another one say so, and end with another status than 0.
    """
    said, errors = text_of(log, "out"), text_of(log, "err").replace(LOST, "")
    assert "Traceback" not in errors and "error:" not in errors, errors[-2000:]
    for index, status in enumerate(statuses):
        if status == 0:
            assert "Trained" in said or number == signal.SIGTERM and "Stopped by SIGTERM" in said
        elif index in victims and status == -number:
            assert number == signal.SIGKILL or "epoch" not in errors or "Trained" in said, errors[-2000:]
        else:
            assert len(statuses) > 1 and LOST in text_of(log, f"err{index}"), errors[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("number, times", [(signal.SIGKILL, 20), (signal.SIGTERM, 10)])
def test_signals_at_random_moments(environment, uninterrupted, tmp_path, number, times):
    """Of several processes, one gets the signal or all do; the others then end by themselves."""
    count, flags, whole, seconds = uninterrupted
    moments = random.Random(int(number))
    hit, log_number, run_number = collections.Counter(), 0, 0
    while hit.total() < times:
        workdir, newest, ended = tmp_path / f"run{run_number}", 0, False
        places = [f"--config.data.cache={tmp_path / f'data{run_number}'}", f"--workdir={workdir}"]
        while not ended and hit.total() < times:
            log, log_number = tmp_path / f"log{log_number}", log_number + 1
            started = start(environment, [*flags, *places], log, count)
            moment = moments.uniform(0, seconds)
            victims = moments.choice([[index] for index in range(count)] + [list(range(count))])
            time.sleep(moment)
            ended = all(process.poll() is not None for process in started)
            if not ended:
                what = phase(workdir, log)
                if what in ("start of Python", "imports and data"):
                    victims = list(range(count))  # a process that has not met the others waits for minutes
                hit[what] += 1
                print(f"{number.name} after {moment:.1f} s to {victims}, during {what}")
            for index in victims:
                started[index].send_signal(number)
            killed = time.monotonic()
            statuses = [process.wait(SECONDS_FOR_ANY_RUN) for process in started]
            assert number == signal.SIGTERM or time.monotonic() - killed < 60
            assert_ended_well(number, statuses, victims, log)
            steps = stored_steps(workdir)
            assert not steps or steps[-1] >= newest, "a checkpoint has been lost"
            newest = steps[-1] if steps else newest
        finish(environment, [*flags, *places], tmp_path / f"last{run_number}", count)
        assert read_rows(workdir) == read_rows(whole)
        assert same_bits(restored(workdir, "last")[1], restored(whole, "last")[1])
        assert not list((workdir / FOLDER).glob("*.*"))
        run_number += 1
    print(f"{number.name} in {run_number} runs of {seconds:.0f} s: {dict(hit)}")
    assert hit["saving"] + hit["steps"] and hit["imports and data"] + hit["data"] + hit["compiling"]
