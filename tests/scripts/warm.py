"""The scripts in processes that start in milliseconds: forked from one that has imported what they import.

That process has started no backend of JAX, so its children start as new processes do.
"""

import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from helpers import ROOT
from small_model import SmallCVAE

from cvae_jax import models
from cvae_jax.data import datasets

IMPORTED = [  # by the scripts, also after their flags are parsed
    "warm",
    "tensorflow_datasets",
    "matplotlib.pyplot",
    *(f"cvae_jax.scripts.{name}" for name in ("train", "evaluate", "generate", "study", "prepare", "export")),
    *(
        f"cvae_jax.{name}"
        for name in ("train", "evaluation.evaluate", "generation.generate", "study.run", "puppet.export")
    ),
    "cvae_jax.prepare.preparation",
    *(f"cvae_jax.data.datasets.{name}" for name in datasets.names()),
]
# Where a script has accepted its input and begins to work; it then ends with the status REACHED.
WORK = {
    "train": "cvae_jax.training.loop.Run.finish",
    "evaluate": "cvae_jax.evaluation.evaluate.score_model",
    "generate": "cvae_jax.generation.generate.sample_videos",
    "study": "cvae_jax.study.run._run_all",
    "prepare": "cvae_jax.prepare.preparation.write",
    "export": "cvae_jax.puppet.converter.prepare",
}
REACHED = 70


class Done(NamedTuple):
    """How a script ended."""

    returncode: int | None
    stdout: str
    stderr: str


class Scripts:
    """Runs scripts, with the small model; the first one waits for the imports."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(IMPORTED)

    def run(self, script: str, *flags: object, cwd: Path, timeout: float = 60) -> Done:
        """Return how `python <script>.py <flags>` ends in a folder."""
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / name for name in ("stdout", "stderr")]
            arguments = (script, list(map(str, flags)), cwd, outputs)
            process = self._context.Process(target=_main, args=arguments)
            process.start()
            process.join(timeout)
            if process.exitcode is None:
                process.kill()
                process.join()
                raise TimeoutError(f"{script} {flags}: {outputs[1].read_text()}")
            return Done(process.exitcode, *(path.read_text(errors="replace") for path in outputs))


def _main(script: str, flags: list[str], cwd: Path, outputs: list[Path]) -> None:
    gc.freeze()  # a collection would copy the memory of all that is imported
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    sys.argv = [str(ROOT / f"{script}.py"), *flags]
    small = mock.patch.dict(models.KINDS, cvae=SmallCVAE)
    with small, mock.patch(WORK[script], side_effect=SystemExit(REACHED)):
        importlib.import_module(f"cvae_jax.scripts.{script}").main()
