"""Export a run as a web page: python export.py --workdir=W --out=puppet, then open puppet/index.html."""

from pathlib import Path
from typing import cast

from absl import flags
from ml_collections import ConfigDict

from cvae_jax import config_flag, defaults
from cvae_jax.runtime import cli, platform, processes


def main() -> None:
    """Export the run in --workdir as a page for browsers; print where it is and how to open it."""
    platform.prepare(restart=True)
    workdir = flags.DEFINE_string("workdir", None, f"Folder of a run that {cli.script('train')} has started.")
    checkpoint = flags.DEFINE_string("checkpoint", "best", "best, last, or a step.")
    out = flags.DEFINE_string("out", None, "Folder for the page; default: puppet/ in the workdir.")
    config = config_flag.define_stored(defaults.get_config())  # ends the program without --workdir
    cli.run(
        lambda: _export(config.value, Path(cast(str, workdir.value)), checkpoint.value, out.value),
        __doc__,
    )


def _export(config: ConfigDict, workdir: Path, checkpoint: str, out: str | None) -> None:
    from cvae_jax.puppet.export import CHECKED_FRAMES, export

    processes.require_one(cli.script("export"))
    folder = Path(out) if out else workdir / "puppet"
    found = export(config, workdir, checkpoint, folder)
    print(
        f"The page is in {folder} ({found['megabytes']:.1f} MB). Over {CHECKED_FRAMES} predicted frames, its "
        f"pixels (0 to 1) differ from JAX's by at most {found['difference']:.1g}."
    )
    print(f"Open {folder / 'index.html'} in a browser, or run: python -m http.server --directory {folder}")
