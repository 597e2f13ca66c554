"""The settings of the process: on a CPU only, never over the user's own, only where they are known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvae_jax.runtime import files, platform

ROOT = Path(__file__).parent.parent.parent
DOOR = """
import os, sys
from cvae_jax.runtime import files, platform
platform.prepare(restart=True)
for name in ("XLA_FLAGS", "GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR"):
    print(name, os.environ.get(name), sep=":")
print(sys.argv[1:])
"""


def run_script(tmp_path, **environment):
    """Run a script in a clean environment; return its settings and what it printed."""
    script = tmp_path / "script of mine.py"
    script.write_text(DOOR)
    names = ("XLA_FLAGS", "GLIBC_TUNABLES", "JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, str(script), "--flag=a b", "--other"],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)} | environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['--flag=a b', '--other']"
    lines = done.stdout.splitlines()
    assert len(lines) == 4  # the settings themselves are printed on standard error
    return dict(line.split(":", 1) for line in lines[:-1]), done.stderr.splitlines()


def test_a_script_on_a_cpu_makes_and_prints_its_settings(tmp_path):
    settings, told = run_script(tmp_path, JAX_PLATFORMS="cpu")
    assert all(f"{flag}={value}" in settings["XLA_FLAGS"] for flag, value in platform.CPU_FLAGS.items())
    assert settings["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "cvae_jax"))
    (line,) = told
    assert settings["XLA_FLAGS"] in line
    if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION"):
        name, value = platform.ALLOCATOR
        assert settings[name] == value
        assert f"{name}={value}" in line


def test_what_the_user_sets_is_kept(tmp_path):
    given = {
        "XLA_FLAGS": "--xla_backend_optimization_level=3",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine"),
    }
    settings, _ = run_script(tmp_path, JAX_PLATFORMS="cpu", **given)
    assert settings["XLA_FLAGS"].startswith(given.pop("XLA_FLAGS") + " --xla_cpu")
    assert settings["XLA_FLAGS"].count("optimization_level") == 1
    assert {name: settings[name] for name in given} == given


def test_a_home_that_cannot_be_written_keeps_no_programs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings, _ = run_script(tmp_path, JAX_PLATFORMS="cpu", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert settings["JAX_COMPILATION_CACHE_DIR"] == "None"


def test_an_accelerator_is_left_alone(tmp_path):
    settings, told = run_script(tmp_path, JAX_PLATFORMS="cuda")
    assert "optimization_level" not in settings["XLA_FLAGS"]  # it is a GPU's compiler's, too
    assert all(flag.startswith("--xla_cpu") for flag in settings["XLA_FLAGS"].split())
    assert settings["GLIBC_TUNABLES"] == "None"
    assert told == []


def test_a_file_of_flags_is_left_alone(tmp_path):
    settings, _ = run_script(tmp_path, JAX_PLATFORMS="cpu", XLA_FLAGS=str(tmp_path / "flags.txt"))
    assert settings["XLA_FLAGS"] == str(tmp_path / "flags.txt")


def test_a_flag_that_jaxlib_does_not_know_is_not_set(monkeypatch):
    monkeypatch.setattr(platform, "CPU_FLAGS", {"--xla_no_such_flag_at_all": "1"})
    monkeypatch.setenv("XLA_FLAGS", "")
    assert platform.set_cpu_flags() == []


@pytest.mark.parametrize(("chosen", "cpu"), [("cpu", True), ("tpu,cpu", False), ("cuda", False)])
def test_on_cpu(monkeypatch, chosen, cpu):
    monkeypatch.setenv("JAX_PLATFORMS", chosen)
    assert platform.on_cpu() is cpu


def test_on_cpu_without_a_choice_asks_for_plugins(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(platform.importlib.metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: None)
    assert platform.on_cpu()
    monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    assert not platform.on_cpu()


def test_with_a_run_per_core_every_core_is_a_device_of_one_thread(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    platform.prepare()
    assert "JAX_NUM_CPU_DEVICES" not in os.environ and "eigen" not in os.environ["XLA_FLAGS"]
    platform.prepare(run_per_core=True)
    assert int(os.environ["JAX_NUM_CPU_DEVICES"]) == len(os.sched_getaffinity(0))
    assert "--xla_cpu_multi_thread_eigen=false" in os.environ["XLA_FLAGS"]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # the user's own
    platform.prepare(run_per_core=True)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "1"


def test_the_scripts_import_no_jax_before_the_settings_are_made():
    names = [path.stem for path in (ROOT / "cvae_jax" / "scripts").glob("[a-z]*.py")]
    assert len(names) == 7
    program = "import sys\n" + "".join(f"import cvae_jax.scripts.{name}\n" for name in names)
    program += "print([name for name in ('jax', 'jaxlib', 'tensorflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_everything_kept_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    from cvae_jax.prepare.pose_environment import POSE

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(POSE.variable, raising=False)
    assert files.user_cache_folder() == tmp_path / "cvae_jax"
    assert platform.cache_folder().parent == POSE.folder().parent
    assert platform.cache_folder().parent == tmp_path / "cvae_jax"


def test_the_cache_of_compiled_programs_holds_no_empty_entries(monkeypatch, tmp_path, capsys):
    """JAX leaves one where it is killed, and would never write it again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folder = platform.cache_folder()
    folder.mkdir(parents=True)
    for name in ("jit_one-cache", "jit_now-cache"):  # another process may be writing the newer one
        (folder / name).write_bytes(b"")
    os.utime(folder / "jit_one-cache", (0, 0))
    (folder / "jit_two-cache").write_bytes(b"compiled")
    platform.prepare()
    assert os.environ.pop("JAX_COMPILATION_CACHE_DIR") == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["jit_now-cache", "jit_two-cache"]
    assert capsys.readouterr().err == ""


def test_without_room_compiled_programs_are_not_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "cvae_jax").write_text("no folder")
    platform.prepare()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Cannot write to the folder") and line.endswith("compiled programs are not kept.")
