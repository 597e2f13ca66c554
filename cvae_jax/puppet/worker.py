"""The script that runs in the converter's environment: it converts a model's step to ONNX and checks it.

python worker.py FOLDER reads model.json, variables.npz, and check.npz from FOLDER and writes model.onnx and
checked.json there; see `converter.convert`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import onnxruntime
from flax.traverse_util import unflatten_dict
from jax2onnx import to_onnx

from cvae_jax.puppet.step import build_model, make_start, make_step, names_of, straightened, without_copies

OPSET = 20  # the ONNX operator set, supported by onnxruntime-web


def main(folder: Path) -> None:
    """Convert the model in a folder to ONNX, run the rollout in check.npz with it, and compare the frames."""
    model = build_model(**json.loads((folder / "model.json").read_text(encoding="utf-8")))
    stored = np.load(folder / "variables.npz")
    nested = unflatten_dict({tuple(name.split("/")): stored[name] for name in stored})
    variables = {"batch_stats": {}, **nested}
    check = dict(np.load(folder / "check.npz"))
    given, labels = check.pop("given"), check.pop("labels_given")
    constants, state = jax.eval_shape(lambda own: make_start(model)(own, given, labels), variables)
    carry, n_past = state.carry, len(given)
    names = names_of(model, constants, carry)
    shapes = [check["t"][0], check["frame"], check["label"][0], check["noise"][0]]
    shapes += [check[name] for name in (*names.constants, *names.carry)]
    step = make_step(model, variables, n_past, constants, carry)
    step, names = without_copies(straightened(step), names, shapes)
    converted = to_onnx(
        step,
        inputs=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes],
        input_names=names.inputs,
        output_names=names.outputs,
        opset=OPSET,
        model_name="step",
    )
    consumed = {name for node in converted.graph.node for name in node.input}
    raw = folder / "raw.onnx"
    raw.write_bytes(converted.SerializeToString())
    path = folder / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)  # constants folded once and for all
    onnxruntime.InferenceSession(str(raw), options, providers=["CPUExecutionProvider"])
    options.optimized_model_filepath = ""
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {one.name for one in session.get_inputs()}
    fed = {name: check[name] for name in ("frame", *names.constants, *names.carry)}
    frames = []
    for t, label, noise in zip(check["t"], check["label"], check["noise"], strict=True):
        inputs = fed | {"t": np.asarray(t), "label": label, "noise": noise}
        outputs = session.run(None, {name: x for name, x in inputs.items() if name in used})
        found = dict(zip([one.name for one in session.get_outputs()], outputs, strict=True))
        fed |= {name: found[f"next_{name}"] for name in ("frame", *names.changing)}
        frames.append(found["next_frame"])
    difference = float(np.abs(np.concatenate(frames) - check["frames"]).max())
    (folder / "checked.json").write_text(
        json.dumps(
            {
                "difference": difference,
                "inputs": sorted(used),
                "changing": names.changing,
                "has_latent": "noise" in consumed,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
