"""Turn a checkpoint of the original PyTorch program into a workdir: `python -m cvae_jax.import_torch`.

python -m cvae_jax.import_torch lab.ckpt --workdir=runs/lab
python evaluate.py --workdir=runs/lab --config.data.name=frame_folder --config.data.dir=D

It also reads SVG-FP and SVG-LP saved as state dicts (docs/parity.md), with --n_past as they were trained.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np

from cvae_jax.models import cvae_torch, svg_torch
from cvae_jax.models.torch_format import TorchFormat
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing
from cvae_jax.runtime.workdir import FRAMES_FILE

# The first version whose weights_only=True runs no code of the file (CVE-2025-32434).
SAFE_TORCH = (2, 6)
FORMATS = (svg_torch.FORMAT, cvae_torch.FORMAT)


def load_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a checkpoint's `state_dict` with PyTorch (`weights_only=True`: no code is run)."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}; give the path of the lab's .ckpt file.")
    try:
        import torch
    except ImportError:
        raise UserError(
            "Reading a PyTorch checkpoint needs PyTorch: pip install -r requirements-dev.txt "
            f"(or any torch of {_dotted(SAFE_TORCH)} or later) and try again."
        ) from None
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or tuple(map(int, version.groups())) < SAFE_TORCH:
        raise UserError(
            f"PyTorch {torch.__version__} can run code that a checkpoint holds, even with weights_only=True: "
            f"pip install 'torch>={_dotted(SAFE_TORCH)}' and try again."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        objects = "GLOBAL" in str(error)  # whole modules, as the published SVG program pickles them
        advice = (
            "it holds whole Python objects: load it in the program that wrote it, with weights_only=False, "
            "and save state dicts, torch.save({name: module.state_dict() for name, module in ...}, path)."
            if objects
            else "save it again as torch.save({'state_dict': model.state_dict()}, path)."
        )
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint with weights_only=True ({reason}); {advice}"
        ) from None
    state_dict = _joined(checkpoint)
    if state_dict is None:
        modules = ", ".join(name for form in FORMATS for name in form.modules)
        raise UserError(
            f"{path} holds no 'state_dict'; a lab checkpoint is a dict with that key, one of SVG a dict with "
            f"the state dicts of {modules}."
        )
    return {
        name: value.detach().numpy() for name, value in state_dict.items() if isinstance(value, torch.Tensor)
    }


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _joined(checkpoint: object) -> dict | None:
    """Return one state dict of a checkpoint that holds one, or one for each module; None otherwise."""
    if not isinstance(checkpoint, dict):
        return None
    modules = {name for form in FORMATS for name in form.modules} & checkpoint.keys()
    if modules and all(isinstance(checkpoint[name], dict) for name in modules):
        return {f"{name}.{key}": value for name in modules for key, value in checkpoint[name].items()}
    found = checkpoint.get("state_dict")
    return found if isinstance(found, dict) else None


def import_checkpoint(
    path: Path, workdir: Path, frame_size: tuple[int, int] | None = None, n_past: int | None = None
) -> tuple[int, TorchFormat]:
    """Write a workdir with the checkpoint's weights and its dimensions; return their number and its format.

    What the checkpoint does not say itself:
      frame_size: (H, W) of the frames it was trained on; None: (32, 64), or (64, 64) for SVG.
      n_past: the given frames; None: 1, or for SVG those that were published with its size of z (5 where
        there is none).

    Raises UserError for a file that is not such a checkpoint, and where the workdir has a run already.
    """
    import jax

    from cvae_jax import config as config_files
    from cvae_jax import defaults
    from cvae_jax.config import Components
    from cvae_jax.models.interface import init_variables
    from cvae_jax.training.checkpoint import Checkpoints, Progress
    from cvae_jax.training.state import TrainState

    if (workdir / config_files.FILE).exists():
        raise UserError(f"There is a run in {workdir} already; give another --workdir.")
    state_dict = load_state_dict(path)
    form = next(form for form in FORMATS if form.recognises(state_dict))
    variables = form.to_variables(state_dict)
    config = defaults.get_config()
    config.update_from_flattened_dict(form.changes(state_dict))
    config.name = path.stem
    config.n_past = config.n_past if n_past is None else n_past
    config.clip_length = max(config.clip_length, config.n_past + 1)
    frame_size = frame_size or form.frame_size
    parts = Components.build(config)
    expected = init_variables(parts.model, 0, frame_size, form.label_size)
    _refuse_other_shapes(variables, expected, path)
    state = TrainState.create(variables, parts.optimizer)
    config_files.save(config, workdir)
    with replacing(workdir / FRAMES_FILE) as partial:
        partial.write_text(json.dumps(list(frame_size)) + "\n")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state, Progress(), None)
        checkpoints.wait()
    return sum(leaf.size for leaf in jax.tree.leaves(state.params)), form


def _refuse_other_shapes(variables: dict, expected: dict, path: Path) -> None:
    from flax.traverse_util import flatten_dict

    given = {name: np.shape(leaf) for name, leaf in flatten_dict(variables, sep=".").items()}
    wanted = {name: np.shape(leaf) for name, leaf in flatten_dict(expected, sep=".").items()}
    wrong = sorted(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
    if wrong:
        raise UserError(
            f"{path} does not hold the whole model: {wrong[0]} has shape "
            f"{given.get(wrong[0], 'none')}, expected {wanted.get(wrong[0], 'none')} "
            f"({len(wrong)} entries differ)."
        )


def main(argv: list[str]) -> None:
    """The command line."""
    from cvae_jax.runtime import cli

    parser = argparse.ArgumentParser(prog="python -m cvae_jax.import_torch", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a dict with 'state_dict', or with SVG's state dicts")
    parser.add_argument("--workdir", type=Path, required=True, help="folder to create the run in")
    parser.add_argument(
        "--frame_size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the frames it was trained on; default: 32 64, the lab's, and 64 64 for SVG",
    )
    parser.add_argument("--n_past", type=int, help="given frames; default: 1, or as published for SVG")
    arguments = parser.parse_args(argv)
    size = tuple(arguments.frame_size) if arguments.frame_size else None
    count, form = cli.guarded(
        lambda: import_checkpoint(arguments.checkpoint, arguments.workdir, size, arguments.n_past)
    )
    print(
        f"Imported {count:,} parameters; now run: {cli.command('evaluate')} --workdir={arguments.workdir} "
        f"{form.evaluate_with}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
