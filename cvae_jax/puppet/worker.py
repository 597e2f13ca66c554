"""What runs in the converter's environment: a model's step becomes an ONNX file, which is then checked.

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
from ml_collections import ConfigDict

from cvae_jax import models
from cvae_jax.models.adversarial import AdversarialOptions
from cvae_jax.puppet.step import make_step, names_of, straightened, without_copies
from cvae_jax.rollout.programs import make_begin

OPSET = 20  # what onnxruntime-web knows of


def main(folder: Path) -> None:
    """Convert the model of a folder, and roll the ONNX file out over the steps of check.npz."""
    description = json.loads((folder / "model.json").read_text())
    adversarial = AdversarialOptions(**description["adversarial"])
    critic = adversarial if adversarial.weight else None
    model = models.build(ConfigDict(description["section"]), "float32", None, critic)
    stored = np.load(folder / "variables.npz")
    variables = {
        "batch_stats": {},
        **unflatten_dict({tuple(name.split("/")): stored[name] for name in stored}),
    }
    check = dict(np.load(folder / "check.npz"))
    given = {name: check.pop(name) for name in ("given", "labels_given")}
    n_past = given["given"].shape[1]
    batch = {
        "given": given["given"],
        "labels": given["labels_given"],
        "mask": np.ones(1, np.float32),
        "index": np.zeros(1, np.uint32),
        "sample": np.zeros(1, np.uint32),
    }
    started = jax.eval_shape(make_begin(model), variables, batch, {"seed": np.uint32(0)})
    constants, carry = started["constants"], started["state"].carry
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
    state = {name: check[name] for name in (*names.constants, *names.carry)} | {"frame": check["frame"]}
    frames = []
    for t, label, noise in zip(check["t"], check["label"], check["noise"], strict=True):
        inputs = state | {"t": np.asarray(t), "label": label, "noise": noise}
        outputs = session.run(None, {name: x for name, x in inputs.items() if name in used})
        found = dict(zip([one.name for one in session.get_outputs()], outputs, strict=True))
        state |= {name: found[f"next_{name}"] for name in ("frame", *names.changing)}
        frames.append(found["next_frame"])
    difference = float(np.abs(np.concatenate(frames) - check["frames"]).max())
    (folder / "checked.json").write_text(
        json.dumps({"difference": difference, "inputs": sorted(used), **names._asdict()})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
