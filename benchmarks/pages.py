"""What the benchmarks write: sections of docs/benchmarks.md, and files of numbers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cvae_jax.runtime.cli import fail
from cvae_jax.runtime.files import replacing

LOADER_HEADING = "## Loader"
ACCELERATOR_HEADING = "## Accelerator"
OTHERS = (LOADER_HEADING, ACCELERATOR_HEADING)  # sections of docs/benchmarks.md that other scripts write


def with_section(text: str, section: str) -> str:
    """Return the page with the section of the same heading replaced, or with the section appended."""
    heading = section.partition("\n")[0]
    parts = [part.rstrip("\n") for part in re.split("(?m)^(?=## )", text)]
    headings = [part.partition("\n")[0] for part in parts]
    if heading in headings:
        parts[headings.index(heading)] = section.rstrip("\n")
    else:
        parts.append(section.rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def sections_of_others(text: str) -> list[str]:
    """Return the sections of docs/benchmarks.md that `benchmarks/run.py` does not write."""
    return [part for part in re.split("(?m)^(?=## )", text) if part.partition("\n")[0] in OTHERS]


def write(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as partial:
        partial.write_text(text)


def refuse_unwritable(file: Path) -> None:
    """End the program with a sentence if the file of --json cannot be written."""
    folder = file.absolute().parent
    if not folder.is_dir():
        fail(f"There is no folder {folder} for --json; make it first.")
    if file.is_dir() or not os.access(folder, os.W_OK):
        fail(f"--json={file} cannot be written; give a file in a folder that you can write to.")
