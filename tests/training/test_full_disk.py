"""A disk that is full, read-only or failing: one sentence, nothing lost, and the same command resumes."""

import errno
import os
import resource
import subprocess
import sys
import time

import jax
import pytest
from helpers import ROOT, TINY, read_rows, same_bits, tiny_config

from cvae_jax.runtime import cli
from cvae_jax.runtime.errors import StorageError, UserError
from cvae_jax.runtime.files import append_line, replacing, require_writable, writing
from cvae_jax.train import train
from cvae_jax.training import digests, loop
from cvae_jax.training.checkpoint import Checkpoints, Progress
from cvae_jax.training.checkpoint_folder import stored_steps
from cvae_jax.training.logging import Writers

pytestmark = pytest.mark.usefixtures("small_model")
NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def config():
    config = tiny_config()
    config.checkpoint.keep = 2
    return config


@pytest.fixture
def whole(data, config, tmp_path):
    """(workdir, final state) of an uninterrupted run of 3 epochs, of 2 steps each."""
    return tmp_path / "whole", trained(config, tmp_path / "whole")


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def trained(config, workdir):
    return jax.device_get(train(config, workdir, jax.local_devices()[:1]))


def fill(folder, leave):
    """Take all room of a file system but `leave` bytes."""
    status = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(status.f_bavail * status.f_bsize - leave))


def raise_no_room(*_, **__):
    raise NO_ROOM


def assert_resumes(config, workdir, whole):
    """The same command resumes the run, ends as the uninterrupted one, and leaves nothing half-written."""
    assert same_bits(trained(config, workdir), whole[1])
    assert read_rows(workdir) == read_rows(whole[0])
    assert not [path for path in workdir.rglob("*") if "tmp" in path.relative_to(workdir).as_posix()]


@pytest.mark.parametrize("room", [0, 7])
def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path, room):
    path = tmp_path / "lines"
    append_line(path, "first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, before[1]))
    try:
        with pytest.raises(StorageError, match=r"Cannot write .*lines \(File too large\): raise the limit"):
            append_line(path, "a second line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "first\n"
    append_line(path, "a second line")
    assert path.read_text() == "first\na second line\n"


def test_a_line_that_does_not_reach_the_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_text("first\n")
    monkeypatch.setattr(os, "fsync", raise_no_room)
    with pytest.raises(StorageError, match="No space left on device"):
        append_line(path, "second")
    assert path.read_text() == "first\n"


def test_a_file_that_cannot_be_replaced_stays(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(StorageError, match="Cannot write .*file .*No space left on device"):
        with replacing(path) as partial:
            partial.write_text("ne")
            with open("/dev/full", "w") as full:
                full.write("w")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EMFILE, "Too many open files")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised:
        with writing("a file"):
            raise error
    assert raised.value is error
    with pytest.raises(type(error)):
        cli.guarded(lambda: (_ for _ in ()).throw(error))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_an_error_of_the_disk_ends_a_script_with_a_sentence(capsys, number):
    def main():
        raise OSError(number, os.strerror(number), "some/file")

    with pytest.raises(SystemExit) as ended:
        cli.guarded(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.endswith(", then run the same command again.")
    assert line.startswith(f"error: Cannot read or write some/file ({os.strerror(number)}): ")


def test_tensorboards_events_do_not_fit(tmp_path):
    class Full:
        def flush(self):  # as TensorFlow says it
            raise RuntimeError("{{function_node}} events.out.tfevents.1; No space left on device\n Failed to")

        write_scalars = close = lambda *_: None

    writers = Writers(tmp_path, images=False)
    writers.__dict__["_tensorboard"] = Full()
    with pytest.raises(StorageError, match=f"Cannot write TensorBoard's events in {tmp_path} "):
        writers.epoch({"epoch": 0, "step": 1})
    with pytest.raises(StorageError, match="TensorBoard"):
        writers.validation(1, {}, {})


@pytest.mark.parametrize("error", [NO_ROOM, ValueError("RESOURCE_EXHAUSTED: write; No space left on device")])
def test_a_checkpoint_that_fails_in_the_background_is_named(config, whole, tmp_path, monkeypatch, error):
    write = digests.write

    def fail(folder):
        if folder.name.startswith("4."):
            raise error
        write(folder)

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(digests, "write", fail)
        with pytest.raises(StorageError, match="the checkpoint of step 4 in .*No space left on device"):
            trained(config, workdir)
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]
    assert digests.is_sound(workdir / "checkpoints" / "2")
    assert_resumes(config, workdir, whole)


def test_a_checkpoint_is_kept_where_its_replacement_fails(config, whole, monkeypatch):
    workdir, state = whole
    with monkeypatch.context() as patch:
        patch.setattr(digests, "write", raise_no_room)
        with pytest.raises(StorageError, match="the checkpoint of step 6 in"):
            with Checkpoints(workdir, keep=2) as checkpoints:
                checkpoints.save(6, state, Progress(), None, replace=True)
    assert not list((workdir / "checkpoints").glob("*.*"))
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps[-1] == 6
        assert checkpoints.restore(state, 6)[1] == Progress(3)


def test_a_results_folder_without_room(disk):
    fill(disk, 0)
    with pytest.raises(UserError, match="No space left on device"):
        require_writable(disk / "eval", "give another place")


@pytest.mark.slow
# Threads of libraries that cannot write end with errors of their own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("leave", [0, 60_000])
@pytest.mark.parametrize("moment", ["append_row", "save"])
def test_a_disk_that_fills_up(config, whole, disk, monkeypatch, moment, leave):
    """Before the row of the second epoch, or before its checkpoint; some of a checkpoint fits, or nothing."""
    calls = iter(range(100))
    owner = loop if moment == "append_row" else Checkpoints
    original = getattr(owner, moment)

    def filling(*arguments, **keywords):
        if next(calls) == 1:
            fill(disk, leave)
        return original(*arguments, **keywords)

    workdir = disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, filling)
        with pytest.raises(StorageError, match="Cannot write .*No space left on device.*: free some space"):
            trained(config, workdir)
    for row in (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
        assert row.endswith(b"}")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert 2 in checkpoints.steps and checkpoints.restore(whole[1], 2)[1] == Progress(1)
    (disk / "filler").unlink()
    assert_resumes(config, workdir, whole)


@pytest.mark.slow
def test_train_py_on_a_disk_that_fills_up(environment, lab_folder, disk, tmp_path):
    """There is room for half a checkpoint. Once there is more, the same command resumes the run."""
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--config.num_epochs=8"]
    command += ["--config.data.name=frame_folder", f"--config.data.dir={lab_folder}"]
    command += [f"--config.data.cache={tmp_path / 'cache'}", f"--workdir={disk / 'run'}"]
    command += ["--config.log.images=False"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=err)
    while process.poll() is None and not stored_steps(disk / "run"):
        time.sleep(0.05)
    fill(disk, 100_000)
    assert process.wait(400) == 2
    said = (tmp_path / "err").read_text()
    sentence = said.splitlines()[-1]
    assert "Traceback" not in said, said[-3000:]
    assert "error: Cannot write" in sentence and "free some space there" in sentence
    (disk / "filler").unlink()
    resumed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0 and "Resuming from epoch" in resumed.stderr, resumed.stderr[-2000:]
    assert [row["epoch"] for row in read_rows(disk / "run")] == list(range(8))
