"""Settings of the process that must be made before JAX starts its backend."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import mmap
import os
import sys
import time
from pathlib import Path

from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import require_writable, user_cache_folder

CPU_FLAGS = {
    # jaxlib 0.10's default hands products and convolution gradients to YNNPACK fusions that take up to
    # three times as long; sums over pixels gain from it.
    "--xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
    # Compiles in two thirds of the time, and what it compiles is not slower.
    "--xla_backend_optimization_level": "1",
}
# The C library reads it as the process starts: huge pages, and memory that is kept from step to step instead
# of being given back and faulted in again.
ALLOCATOR = (
    "GLIBC_TUNABLES",
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184",
)
# One run on each core, each with one thread: on two cores 1.6 times as fast as one run after the other.
ONE_THREAD = {"--xla_cpu_multi_thread_eigen": "false"}
# Programs that take longer to compile than this are kept for the next start.
CACHE_FROM_SECONDS = 0.1
ABANDONED_SECONDS = 60  # after which an empty file in the cache is not being written any more


def prepare(restart: bool = False, run_per_core: bool = False, quiet: bool = False) -> None:
    """Apply the settings that docs/performance.md recommends, print them on standard error.

    On a CPU: CPU_FLAGS, and ALLOCATOR where `restart` allows to start the process again with it. Elsewhere
    only the flags that act on nothing but the CPU backend. What the environment sets already is left as it
    is. With `run_per_core` every core of a CPU is a device of one thread (ONE_THREAD), for runs side by side.
    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default a folder of this kind of machine
    in the user's cache folder. quiet: print nothing.
    """
    cpu = on_cpu()
    if cpu and restart and _can_restart():
        _restart_with_allocator()
    if cpu and run_per_core and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(affinity(0))))
    set_cpu_flags(cpu, ONE_THREAD if run_per_core else None)
    if cpu and restart and not quiet:
        allocator = f"{ALLOCATOR[0]}={os.environ.get(ALLOCATOR[0], '')}"
        print(f"CPU settings: XLA_FLAGS='{os.environ['XLA_FLAGS']}' {allocator}", file=sys.stderr)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # TensorFlow tells of its own settings otherwise
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := _made(cache_folder(), quiet)):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(CACHE_FROM_SECONDS))


def keep_compiled_programs() -> None:
    """Use the cache that `prepare` has chosen also where JAX had been imported before."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder and jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", folder)
        seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def on_cpu() -> bool:
    """Return whether JAX will run on the CPU, without importing it."""
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if chosen:
        return chosen.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def set_cpu_flags(cpu: bool = True, more: dict[str, str] | None = None) -> list[str]:
    """Add CPU_FLAGS, and more, to XLA_FLAGS and return those added.

    Without `cpu` only those that no other backend reads.

    A flag is added only where the installed jaxlib knows it and its value (an unknown one aborts the
    process), never over the user's own, and not where XLA_FLAGS names a file.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if given.strip() and not given.strip().startswith("-"):
        return []
    wanted = {
        name: value
        for name, value in (CPU_FLAGS | (more or {})).items()
        if name not in given and (cpu or name.startswith("--xla_cpu"))
    }
    added = [
        f"{name}={value}"
        for name, value in wanted.items()
        if _jaxlib_knows(name.removeprefix("--")) and (value.isdigit() or _jaxlib_knows(value))
    ]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, [given, *added]))
    return added


def cache_folder() -> Path:
    """Return where compiled programs are kept: one folder per kind of CPU, for homes that machines share."""
    return user_cache_folder() / f"xla-{_cpu_kind()}"


def _can_restart() -> bool:
    """Whether a new start would bring the allocator's setting: not in a notebook, not over the user's own."""
    as_module = "-m" in sys.orig_argv and getattr(sys.modules["__main__"], "__spec__", None) is not None
    if ALLOCATOR[0] in os.environ or not (as_module or sys.argv[0] in sys.orig_argv[1:]):
        return False
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (AttributeError, ValueError, OSError):
        return False


def _restart_with_allocator() -> None:
    sys.stdout.flush()
    environment = os.environ | dict([ALLOCATOR])
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:  # continue without it
        pass


def _made(folder: Path, quiet: bool) -> Path | None:
    """Return the folder, or None where it cannot be made or written to: then nothing is kept."""
    if not folder.is_absolute():  # there is no home
        return None
    try:
        require_writable(folder, "compiled programs are not kept")
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        if not quiet:
            print(error, file=sys.stderr)
        return None
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removes it
            found = entry.stat()  # an empty one was left by a kill; JAX would never write it again
            if found.st_size == 0 and time.time() - found.st_mtime > ABANDONED_SECONDS:
                entry.unlink()
    return folder


def _cpu_kind() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.blake2b("\n".join(described).encode(), digest_size=6).hexdigest()


def _jaxlib_knows(word: str) -> bool:
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        return False
    for library in sorted(Path(spec.origin).parent.glob("libjax_common*")):
        with library.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(word.encode()) >= 0:
                    return True
    return False
