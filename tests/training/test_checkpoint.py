"""Checkpoints: damage is noticed, an older one takes over, and a run that is asked to stop saves first."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import read_rows, same_bits, tiny_config

from cvae_jax.config import Components
from cvae_jax.runtime import preemption
from cvae_jax.runtime.errors import DamagedError, UserError
from cvae_jax.train import open_run, train
from cvae_jax.training import digests
from cvae_jax.training.checkpoint import Checkpoints, Progress, restore_for_evaluation
from cvae_jax.training.loop import Preempted

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("small_model")


def two_checkpoints():
    config = tiny_config()
    config.num_epochs = 2
    config.checkpoint.keep = 2
    return config


@pytest.fixture
def run(data, tmp_path):
    """(config, workdir, final state) of a run with checkpoints of steps 2 and 4."""
    config = two_checkpoints()
    state = train(config, tmp_path / "run", jax.local_devices()[:1])
    return config, tmp_path / "run", jax.device_get(state)


def folder_of(workdir, step):
    return workdir / "checkpoints" / str(step)


def files_of(workdir, step):
    return sorted(path for path in folder_of(workdir, step).rglob("*") if path.is_file())


def largest(workdir, step):
    return max(files_of(workdir, step), key=lambda path: path.stat().st_size)


def resumed(config, workdir, **keywords):
    return jax.device_get(train(config, workdir, jax.local_devices()[:1], **keywords))


def test_a_flipped_bit_is_never_accepted(run):
    """In any file of a checkpoint: it is refused, or what is read is what was saved."""
    config, workdir, state = run
    rng = np.random.default_rng(0)
    files = [path for path in files_of(workdir, 4) if path.stat().st_size]
    sizes = np.array([path.stat().st_size for path in files])
    picked = [*range(len(files)), *rng.choice(len(files), 20, p=sizes / sizes.sum())]
    accepted = []
    for number in picked:
        path = files[number]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            with Checkpoints(workdir, read_only=True) as checkpoints:
                found, progress = checkpoints.restore(state, 4)
            assert same_bits(found, state) and (progress.epoch, progress.batch) == (2, 0), path
            accepted.append(path.relative_to(folder_of(workdir, 4)).as_posix())
        except UserError as error:
            assert isinstance(error, DamagedError), path
        path.write_bytes(whole)
    # What orbax writes last, of which nothing is used:
    assert set(accepted) <= {"_CHECKPOINT_METADATA", "commit_success.txt"}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert same_bits(checkpoints.restore(state, 4)[0], state)


def test_what_is_left_of_a_deleted_checkpoint_is_no_reason_to_stop(run):
    """Here, without digests and most files; a third checkpoint is damaged, and the best one takes over."""
    config, workdir, state = run
    shutil.copytree(folder_of(workdir, 2), folder_of(workdir, 3))
    for path in (folder_of(workdir, 3) / digests.FILE, *files_of(workdir, 3)[1:]):
        path.unlink(missing_ok=True)
    largest(workdir, 4).write_bytes(b"short")
    assert same_bits(resumed(config, workdir), state)
    assert folder_of(workdir, "3.damaged").exists()


def test_evaluation_refuses_a_damaged_checkpoint(run):
    config, workdir, state = run
    model = Components.build(config).model
    known = restore_for_evaluation(model, workdir, "last", (16, 12), None, averaged=False)
    assert known[1] == 4 and same_bits(known[0]["params"], state.params)
    largest(workdir, 4).write_bytes(b"short")
    with pytest.raises(DamagedError, match=r"4 is damaged \(.*\); choose another one with --checkpoint: 2\."):
        restore_for_evaluation(model, workdir, "last", (16, 12), None, averaged=False)
    largest(workdir, 2).write_bytes(b"short")
    with pytest.raises(DamagedError, match="no other checkpoint is intact: put a copy in its place"):
        restore_for_evaluation(model, workdir, "last", (16, 12), None, averaged=False)


DAMAGE = {
    "truncated": lambda path, folder: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": lambda path, folder: shutil.rmtree(folder / "state"),
    "metrics": lambda path, folder: (folder / "metrics" / "metrics").write_text('{"val_psnr_priox": 1.0}'),
    "digests": lambda path, folder: (folder / digests.FILE).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_takes_over(run, capsys, damage):
    config, workdir, state = run
    rows, text = read_rows(workdir), (workdir / "metrics.jsonl").read_text()
    DAMAGE[damage](largest(workdir, 4), folder_of(workdir, 4))
    assert same_bits(resumed(config, workdir), state) and read_rows(workdir) == rows
    told = capsys.readouterr().err
    assert "checkpoints/4 is damaged (" in told and "checkpoints/4.damaged" in told
    assert (folder_of(workdir, "4.damaged") / "metrics.jsonl").read_text() == text
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 4] and same_bits(checkpoints.restore(state, 4)[0], state)


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_is_renamed_where_every_checkpoint_is_damaged(run, damage):
    config, workdir, _ = run
    rows = read_rows(workdir)
    for step in (2, 4):
        DAMAGE[damage](largest(workdir, step), folder_of(workdir, step))
    with pytest.raises(DamagedError, match=r"checkpoints/4 is damaged \(.*\); no other checkpoint is intact"):
        resumed(config, workdir)
    before = (workdir / "config.json").read_text()
    config.num_epochs = 3
    with pytest.raises(DamagedError, match="no other checkpoint is intact"):
        resumed(config, workdir, extend=True)
    assert (workdir / "config.json").read_text() == before
    assert read_rows(workdir) == rows
    assert {path.name for path in (workdir / "checkpoints").iterdir() if path.is_dir()} == {"2", "4"}


def test_other_errors_do_not_send_a_run_back(run, monkeypatch):
    config, workdir, _ = run

    def too_many(self, step, **keywords):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        resumed(config, workdir)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "FORMAT", 99)
        digests.write(folder_of(workdir, 4))
    with pytest.raises(
        UserError, match="has the format 99, and this version of the program knows formats up"
    ):
        resumed(config, workdir)
    assert {path.name for path in (workdir / "checkpoints").iterdir() if path.is_dir()} == {"2", "4"}


def test_a_checkpoint_of_an_earlier_version_has_no_digests(run):
    config, workdir, state = run
    (folder_of(workdir, 4) / digests.FILE).unlink()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        with pytest.raises(DamagedError, match=r"digests.json is missing"):
            checkpoints.restore(state, 4)
    path = folder_of(workdir, 4) / "progress" / "metadata"
    stored = json.loads(path.read_text())
    assert stored.pop("format") == 2
    path.write_text(json.dumps(stored))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert same_bits(checkpoints.restore(state, 4)[0], state)


def without_checksum(folder):
    """Give a checkpoint the digests.json of earlier versions of the program."""
    path = folder / digests.FILE
    stored = json.loads(path.read_text())
    assert set(stored) == {"format", "blake2b", "checksum"}
    path.write_text(json.dumps({name: stored[name] for name in ("format", "blake2b")}, indent=1) + "\n")
    return path


def test_digests_without_a_checksum_are_read(run):
    config, workdir, state = run
    for step in (2, 4):
        without_checksum(folder_of(workdir, step))
        assert digests.is_sound(folder_of(workdir, step))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert same_bits(checkpoints.restore(state, 4)[0], state)
    largest(workdir, 4).write_bytes(b"short")
    assert digests.damage(folder_of(workdir, 4)).kind == "changed"
    assert same_bits(resumed(config, workdir), state)


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "without checksum"])
@pytest.mark.parametrize("form", ["3", "0", "2.5", '"2"', "null"])
def test_a_changed_format_is_damage(run, earlier, form):
    _, workdir, _ = run
    folder = folder_of(workdir, 4)
    path = without_checksum(folder) if earlier else folder / digests.FILE
    path.write_text(path.read_text().replace('"format": 2,', f'"format": {form},'))
    assert digests.damage(folder) == digests.Damage(digests.FILE, "changed")


def test_a_flipped_bit_of_the_digests_is_damage_or_changes_nothing(run):
    _, workdir, _ = run
    path = folder_of(workdir, 4) / digests.FILE
    whole = path.read_bytes()
    content = json.loads(whole)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        assert digests.damage(path.parent) or json.loads(bytes(flipped)) == content, position


def test_damage_has_a_kind(run):
    _, workdir, _ = run
    file = largest(workdir, 4)
    name = file.relative_to(folder_of(workdir, 4)).as_posix()
    file.write_bytes(b"short")
    assert digests.damage(folder_of(workdir, 4)) == digests.Damage(name, "changed")
    file.unlink()
    assert digests.damage(folder_of(workdir, 4)) == digests.Damage(name, "missing")
    assert str(digests.damage(folder_of(workdir, 4))) == f"{name} is missing"
    (folder_of(workdir, 4) / digests.FILE).write_bytes(b"\xff{")
    assert digests.damage(folder_of(workdir, 4)) == digests.Damage(digests.FILE, "unreadable")


def test_resume_from_an_older_step_happens_once(run, capsys):
    config, workdir, state = run
    rows = read_rows(workdir)
    with pytest.raises(UserError, match="--resume_from is 3, but .* no such checkpoint: choose one of 2, 4"):
        resumed(config, workdir, resume_from=3)
    assert same_bits(resumed(config, workdir, resume_from=2), state) and read_rows(workdir) == rows
    told = capsys.readouterr().err
    assert (
        "checkpoints/4 is newer than step 2. It has been moved to" in told
        and "training resumes from step 2." in told
    )
    assert "Resuming from epoch 2, batch 1." in told and folder_of(workdir, "4.set_aside").is_dir()
    resumed(config, workdir, resume_from=2)
    told = capsys.readouterr().err
    assert "gone back to step 2 before, and resumes" in told and "Resuming" not in told
    (workdir / "resumed_from.json").unlink()
    resumed(config, workdir, resume_from=2)
    assert folder_of(workdir, "4.set_aside_2").is_dir()


@pytest.mark.parametrize("requested", [None, 4])
def test_damaged_metrics_and_a_damaged_state_beside_them_change_nothing(run, requested):
    config, workdir, _ = run
    DAMAGE["metrics"](None, folder_of(workdir, 4))
    largest(workdir, 2).write_bytes(b"short")
    with pytest.raises(DamagedError, match=r"checkpoints/4 is damaged \(.*\); no other checkpoint is intact"):
        resumed(config, workdir, resume_from=requested)
    assert {path.name for path in (workdir / "checkpoints").iterdir() if path.is_dir()} == {"2", "4"}


def test_a_requested_checkpoint_whose_metrics_are_damaged(run):
    config, workdir, _ = run
    DAMAGE["metrics"](None, folder_of(workdir, 4))
    with pytest.raises(UserError, match="--resume_from is 4, but that checkpoint has been set aside; .* 2"):
        resumed(config, workdir, resume_from=4)


def test_a_failing_disk_is_damage(run, monkeypatch):
    _, workdir, _ = run
    assert digests.is_sound(folder_of(workdir, 4))

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(digests, "_digest", fail)
    assert digests.damage(folder_of(workdir, 4)).kind == "unreadable"
    monkeypatch.setattr(Path, "read_text", fail)
    assert digests.damage(folder_of(workdir, 4)) == digests.Damage(digests.FILE, "unreadable")


def test_evaluation_beside_a_run_that_deletes_checkpoints(run, monkeypatch):
    """Orbax deletes a folder file by file."""
    config, workdir, state = run
    (folder_of(workdir, 2) / "metrics" / "metrics").unlink()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert same_bits(checkpoints.restore(state, 4)[0], state)
        with pytest.raises(DamagedError, match=r"2 is damaged \(metrics/metrics is missing\)"):
            checkpoints.restore(state, 2)
        largest(workdir, 2).unlink()
        monkeypatch.setattr("time.sleep", lambda seconds: shutil.rmtree(folder_of(workdir, 2)))
        with pytest.raises(UserError, match="Training has deleted the checkpoint .*/2 in the meantime"):
            checkpoints.restore(state, 2)


@pytest.mark.parametrize("replacement", ["complete", "damaged", "without digests", "none"])
def test_a_checkpoint_is_kept_until_its_replacement_is_complete(run, replacement):
    config, workdir, state = run
    shutil.copytree(folder_of(workdir, 4), folder_of(workdir, "4.replaced"))
    if replacement == "none":
        shutil.rmtree(folder_of(workdir, 4))
    elif replacement == "damaged":
        largest(workdir, 4).write_bytes(b"short")
    elif replacement == "without digests":
        (folder_of(workdir, 4) / digests.FILE).unlink()
    assert same_bits(resumed(config, workdir), state)
    assert folder_of(workdir, 4).is_dir() and not folder_of(workdir, "4.replaced").exists()
    assert folder_of(workdir, "4.damaged").exists() == (replacement in ("damaged", "without digests"))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps == [2, 4] and same_bits(checkpoints.restore(state, 4)[0], state)


def test_a_save_waits_for_the_one_before_it(run, tmp_path, monkeypatch):
    config, workdir, state = run
    write, written = digests.write, []

    def slowly(folder):
        time.sleep(0.5)
        written.append(folder.name)
        write(folder)

    monkeypatch.setattr(digests, "write", slowly)
    with Checkpoints(tmp_path / "other", keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, Progress(0, step), None)
        checkpoints.save(3, state, Progress(1, 0), {"val_psnr_prior": 1.0}, replace=True)
        checkpoints.wait()
        assert checkpoints.steps == [1, 2, 3] and len(written) == 4
        assert checkpoints.restore(state, 3)[1] == Progress(1, 0)
        assert not list(checkpoints.folder.glob("*.*"))


def test_one_process_trains_a_run(run):
    config, workdir, _ = run
    first = open_run(config, workdir, jax.local_devices()[:1])
    with pytest.raises(UserError, match="Another process or run is training in .*; wait for it, or give"):
        open_run(config, workdir, jax.local_devices()[:1])
    first.finish()
    open_run(config, workdir, jax.local_devices()[:1]).finish()


# Preemption


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 6, 9], ids=lambda number: f"poll {number}")
def test_a_preempted_run_saves_and_goes_on_bitwise(data, run, tmp_path, asked):
    """It is polled before the first of an epoch's two steps, after each, and after each validated clip."""
    config, workdir, state = run
    parted, polls = tmp_path / "parted", iter(range(1, 1000))
    first = open_run(config, parted, jax.local_devices()[:1])
    with pytest.raises(Preempted) as stop:
        first.finish(lambda: next(polls) == asked)
    assert stop.value.step == min(asked - 1, 2) if asked < 9 else stop.value.step in (2, 3, 4)
    with pytest.raises(Preempted) as again:  # before anything is done
        open_run(config, parted, jax.local_devices()[:1]).finish(lambda: True)
    assert again.value.step == stop.value.step
    with Checkpoints(parted, read_only=True) as checkpoints:
        assert checkpoints.steps[-1:] == ([stop.value.step] if stop.value.step else [])
    assert same_bits(resumed(config, parted), state) and read_rows(parted) == read_rows(workdir)
    assert not list((parted / "checkpoints").glob("*.*"))
    with Checkpoints(parted, read_only=True) as one, Checkpoints(workdir, read_only=True) as other:
        assert one.find("best") == other.find("best") and set(other.steps) <= set(one.steps)
        assert one.restore(state, 2)[1] == Progress(1, 0)


def test_a_first_sigterm_is_noticed_and_a_later_one_ends_the_program(tmp_path):
    program = (
        "import os, signal, sys, time\n"
        "from cvae_jax.runtime import preemption\n"
        "with preemption.noticed() as arrived:\n"
        "    assert not arrived()\n"
        "    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert arrived()\n"
        "    time.sleep(float(sys.argv[1]))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
    )
    for seconds, status in (("0", 0), ("1.1", -signal.SIGTERM)):
        assert subprocess.run([sys.executable, "-c", program, seconds], cwd=ROOT).returncode == status


def test_threads_cannot_catch_signals():
    found = []

    def elsewhere():
        with preemption.noticed() as arrived:
            found.append(arrived())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]
