"""SVG's networks under the names of the published PyTorch program.

Names are `<module>.<name>`, with the modules encoder, decoder, frame_predictor, posterior and, in SVG-LP,
prior. A nested dict of the modules' state dicts is read as well. docs/parity.md says how to save one.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from cvae_jax.models.torch_format import StateDict, TorchFormat
from cvae_jax.runtime.errors import UserError

MODULES = {
    "encoder": "encoder",
    "decoder": "decoder",
    "frame_predictor": "frame_predictor",
    "posterior": "posterior_network",
    "prior": "prior_network",
}
LINEAR = {"embed": "embed", "output.0": "output", "mu_net": "mean", "logvar_net": "logvar"}
LSTM = {
    "weight_ih": "input_kernel",
    "weight_hh": "hidden_kernel",
    "bias_ih": "input_bias",
    "bias_hh": "hidden_bias",
}
# By the size of z: given frames, beta, learning rate; on Moving MNIST, KTH and BAIR.
PUBLISHED = {10: (5, 1e-4, 2e-3), 24: (10, 1e-6, 8e-4), 64: (2, 1e-4, 2e-3)}
_CONV = re.compile(r"(c|upc)([1-5])\.(?:(\d)\.)?(?:main\.)?([01])\.(\w+)")
_CELL = re.compile(r"lstm\.(\d)\.(\w+)")


def to_variables(state_dict: StateDict) -> dict:
    """Return {'params', 'batch_stats'} from the networks' state dicts, by `<module>.<name>`.

    Gradients under the same names are mapped the same way. Kernels become (h, w, I, O), including those of
    transposed convolutions; the vgg decoder's last layer, a transposed 3x3 convolution of stride 1, becomes
    the equivalent convolution. Raises UserError for a name that is not the model's.
    """
    last_vgg = "decoder.upc5.1.weight"
    variables: dict = {"params": {}, "batch_stats": {}}
    for name, value in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        collection, path = _path(name, state_dict)
        value = np.asarray(value)
        if value.ndim == 4:
            transposed = name.startswith("decoder.upc1.") or name == last_vgg or _is_dcgan(state_dict)
            transposed = transposed and name.startswith("decoder.")
            value = value.transpose((2, 3, 0, 1) if transposed else (2, 3, 1, 0))
            value = value[::-1, ::-1] if name == last_vgg else value
        elif value.ndim == 2:
            value = value.T
        branch = variables[collection]
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = np.ascontiguousarray(value, dtype=np.float32)
    return variables


def dimensions(state_dict: StateDict) -> dict[str, str | int]:
    """Return the model's dimensions (keyword arguments of `SVG`) that names and shapes imply."""
    shapes = {name: np.shape(value) for name, value in state_dict.items()}
    first = "encoder.c1.main.0.weight" if _is_dcgan(state_dict) else "encoder.c1.0.main.0.weight"
    try:
        width, channels = shapes[first][:2]
        return {
            "prior": "learned" if any(name.startswith("prior.") for name in shapes) else "fixed",
            "backbone": "dcgan" if _is_dcgan(state_dict) else "vgg",
            "channels": channels,
            "width": width,
            "code_size": shapes["encoder.c5.0.weight"][0],
            "latents": shapes["posterior.mu_net.weight"][0],
            "rnn_size": shapes["posterior.embed.weight"][0],
        }
    except KeyError as error:
        raise UserError(f"The state_dict has no {error.args[0]!r}; it is not of SVG.") from None


def _is_dcgan(state_dict: StateDict) -> bool:
    return "encoder.c1.main.0.weight" in state_dict


def _path(name: str, state_dict: StateDict) -> tuple[str, tuple[str, ...]]:
    module, _, rest = name.partition(".")
    layer = _convolution if module in ("encoder", "decoder") else _recurrent
    path = layer(module, rest, state_dict) if module in MODULES else None
    if path is None:
        raise UserError(f"The state_dict's entry {name!r} is not of SVG.")
    collection, *keys = path
    return collection, (MODULES[module], *keys)


def _convolution(module: str, rest: str, state_dict: StateDict) -> tuple[str, ...] | None:
    match = _CONV.fullmatch(rest)
    if match is None or (match[1] == "c") != (module == "encoder"):
        return None
    group, place, part, kind = int(match[2]), int(match[3] or 0), match[4], match[5]
    last_of_vgg = module == "decoder" and group == 5 and ".main." not in rest and not _is_dcgan(state_dict)
    if module == "encoder":
        layer = "code" if group == 5 else f"groups_{group - 1}_{place}"
    elif group == 1:
        layer = "first"
    elif last_of_vgg or (group == 5 and _is_dcgan(state_dict)):
        layer, part = "last", "0"
    else:
        layer = f"groups_{group - 2}_{place}"
    if kind.startswith("running_"):
        return "batch_stats", layer, "norm", kind.removeprefix("running_")
    if part == "1":
        return "params", layer, "norm", "scale" if kind == "weight" else "bias"
    return "params", layer, "kernel" if kind == "weight" else "bias"


def _recurrent(module: str, rest: str, state_dict: StateDict) -> tuple[str, ...] | None:
    cell = _CELL.fullmatch(rest)
    if cell is not None and cell[2] in LSTM:
        return "params", f"cells_{cell[1]}" if module == "frame_predictor" else "cell", LSTM[cell[2]]
    layer, _, kind = rest.rpartition(".")
    if layer in LINEAR and kind in ("weight", "bias"):
        return "params", LINEAR[layer], "kernel" if kind == "weight" else "bias"
    return None


def _changes(state_dict: StateDict) -> dict[str, Any]:
    """Return the settings of the published training; the size of z tells for which data set."""
    size = dimensions(state_dict)
    n_past, beta, rate = PUBLISHED.get(int(size["latents"]), PUBLISHED[10])
    model = {f"model.svg.{name}": value for name, value in size.items()}
    return model | {
        "model.kind": "svg",
        # The published model has no labels, and its decoder sees the frame before the last given one.
        "model.svg.label_features": 0,
        "model.svg.skip": "original",
        "n_past": n_past,
        "loss.clamp": False,
        "loss.divide_recon_by_batch": False,
        "loss.logvar_clip": 0.0,
        "beta.kind": "none",
        "beta.scale": beta,
        "teacher_forcing.kind": "constant",
        "teacher_forcing.initial": 1.0,
        "learning_rate.peak": rate,
        "learning_rate.end": rate,
        "optimizer.clip_norm": 0.0,
    }


FORMAT = TorchFormat(
    recognises=lambda names: any(name.partition(".")[0] in MODULES for name in names),
    to_variables=to_variables,
    changes=_changes,
    modules=tuple(MODULES),
    frame_size=(64, 64),
    label_size=0,
    evaluate_with="--config.data.name=NAME (the data set it was trained on; docs/data.md names them)",
)
