"""The CVAE's networks under the names of the original PyTorch program."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from cvae_jax.models.torch_format import StateDict, TorchFormat
from cvae_jax.runtime.errors import UserError

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


def to_variables(state_dict: StateDict) -> dict:
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


def dimensions(state_dict: StateDict) -> dict[str, int]:
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


def _changes(state_dict: StateDict) -> dict[str, Any]:
    model = {f"model.cvae.{name}": value for name, value in dimensions(state_dict).items()}
    return model | {"beta.kind": "monotonic"}


FORMAT = TorchFormat(
    recognises=lambda names: True,  # what is not is refused entry by entry
    to_variables=to_variables,
    changes=_changes,
    modules=(),
    frame_size=(32, 64),
    label_size=None,
    evaluate_with=(
        "--config.data.name=frame_folder --config.data.dir=D (the lab's data; without, the embedded clips)"
    ),
)
