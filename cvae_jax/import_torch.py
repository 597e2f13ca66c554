"""Turn a checkpoint of the original PyTorch program into a workdir: `python -m cvae_jax.import_torch`.

python -m cvae_jax.import_torch lab.ckpt --workdir=runs/lab
python evaluate.py --workdir=runs/lab --config.data.name=frame_folder --config.data.dir=D
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np

from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing
from cvae_jax.runtime.workdir import FRAMES_FILE

FRAME_SIZE = (32, 64)  # of the lab's data
MODULES = {
    "frame_transformation": "frame_encoder",
    "label_transformation": "label_encoder",
    "Gaussian_Predictor": "gaussian_predictor",
    "Decoder_Fusion": "decoder_fusion",
    "Generator": "generator",
}
LAYERS = {
    "conv1": "conv1",
    "conv2": "conv2",
    "skip": "skip",
    "block.0.conv1.0": "conv1",
    "block.0.depth_conv": "depth_conv",
    "block.0.conv2": "conv2",
    "block.0.adaptor": "skip",
    "block.1.conv": "ffn_in",
    "block.1.conv_out": "ffn_out",
}
BATCH_NORM = "label_transformation.2"
_NAME = re.compile(r"(?:module\.)?([A-Za-z_]+)\.(\d+)(?:\.(.+))?\.([a-z_]+)")


def to_variables(state_dict: dict[str, np.ndarray]) -> dict:
    """Return {'params', 'batch_stats'} of a `state_dict` with the original program's names.

    Convolution weights (O, I, h, w) become kernels (h, w, I, O). Gradients under the same names are
    mapped the same way. Raises UserError for a name that is not the model's.
    """
    variables: dict = {"params": {}, "batch_stats": {}}
    for name, value in state_dict.items():
        value = np.asarray(value)
        collection, path = _path(name, value.ndim)
        if collection is None:
            continue
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        branch = variables[collection]
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = np.ascontiguousarray(value, dtype=np.float32)
    return variables


def dimensions(state_dict: dict[str, np.ndarray]) -> dict[str, int]:
    """Return the model's dimensions (keyword arguments of `CVAE`) that the shapes imply."""
    shapes = {name.removeprefix("module."): np.shape(value) for name, value in state_dict.items()}
    try:
        return {
            "frame_features": shapes["frame_transformation.6.weight"][0],
            "label_features": shapes["label_transformation.4.conv2.weight"][0],
            "latent_channels": shapes["Gaussian_Predictor.6.weight"][0] // 2,
            "decoder_features": shapes["Decoder_Fusion.5.weight"][0],
        }
    except KeyError as error:
        raise UserError(
            f"The state_dict has no {error.args[0]!r}; it is not of the pose-conditioned CVAE."
        ) from None


def _path(name: str, ndim: int) -> tuple[str | None, tuple[str, ...]]:
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in MODULES or (match[3] and match[3] not in LAYERS):
        raise UserError(f"The state_dict's entry {name!r} is not of the pose-conditioned CVAE.")
    module, index, layer, kind = match.groups()
    place = (MODULES[module], f"layer_{index}", *((LAYERS[layer],) if layer else ()))
    if kind == "num_batches_tracked":
        return None, ()
    if kind.startswith("running_"):
        return "batch_stats", (*place, kind.removeprefix("running_"))
    if kind == "bias":
        return "params", (*place, "bias")
    return "params", (*place, "kernel" if ndim == 4 else "scale")


def load_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a checkpoint's `state_dict` with PyTorch (`weights_only=True`: no code is run)."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}; give the path of the lab's .ckpt file.")
    try:
        import torch
    except ImportError:
        raise UserError(
            "Reading a PyTorch checkpoint needs PyTorch: pip install -r requirements-dev.txt "
            "(or any torch of 2.6 or later) and try again."
        ) from None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint with weights_only=True ({reason}); "
            "save it again as torch.save({'state_dict': model.state_dict()}, path)."
        ) from None
    state_dict = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state_dict, dict):
        raise UserError(f"{path} holds no 'state_dict'; a lab checkpoint is a dict with that key.")
    return {
        name: value.detach().numpy() for name, value in state_dict.items() if isinstance(value, torch.Tensor)
    }


def import_checkpoint(path: Path, workdir: Path, frame_size: tuple[int, int] = FRAME_SIZE) -> int:
    """Write a workdir with the checkpoint's weights and its dimensions; return the parameter count.

    frame_size: (H, W) of the frames that the checkpoint was trained on, which it does not say itself.

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
    variables = to_variables(state_dict)
    config = defaults.get_config()
    config.name, config.beta.kind = path.stem, "monotonic"
    config.model.cvae.update(dimensions(state_dict))
    parts = Components.build(config)
    expected = init_variables(parts.model, 0, frame_size)
    _refuse_other_shapes(variables, expected, path)
    state = TrainState.create(variables, parts.optimizer)
    config_files.save(config, workdir)
    with replacing(workdir / FRAMES_FILE) as partial:
        partial.write_text(json.dumps(list(frame_size)) + "\n")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state, Progress(), None)
        checkpoints.wait()
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


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
    parser.add_argument("checkpoint", type=Path, help="the lab's .ckpt: a dict with 'state_dict'")
    parser.add_argument("--workdir", type=Path, required=True, help="folder to create the run in")
    parser.add_argument(
        "--frame_size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        default=FRAME_SIZE,
        help="height and width of the frames it was trained on; default: 32 64, the lab's",
    )
    arguments = parser.parse_args(argv)
    size = tuple(arguments.frame_size)
    count = cli.guarded(lambda: import_checkpoint(arguments.checkpoint, arguments.workdir, size))
    print(
        f"Imported {count:,} parameters; now run: {cli.command('evaluate')} --workdir={arguments.workdir} "
        "--config.data.name=frame_folder --config.data.dir=D (the lab's data; without, the embedded clips)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
