"""A run as a folder with a page: the puppet."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from cvae_jax import models
from cvae_jax.config import Components
from cvae_jax.data.clips import to_unit
from cvae_jax.data.load import load_data, load_poses
from cvae_jax.models.adversarial import AdversarialOptions
from cvae_jax.models.interface import VideoModel
from cvae_jax.puppet import converter
from cvae_jax.puppet.scenes import SceneOfPage, describe, label_kind, packed, scenes_of, skeleton
from cvae_jax.puppet.step import make_step, names_of
from cvae_jax.rollout.programs import make_begin
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import require_writable
from cvae_jax.training.checkpoint import restore_for_evaluation

MARKER = "puppet.json"  # says that a folder is a page, and which files are its own
PAGE = Path(__file__).parent / "page"
SCRIPTS = ("arrays.js", "pose.js", "noise.js", "model.js", "page.js")
STAGES = 4
CHECKED_FRAMES = 30  # that the converted model is compared on, each fed back into the next
MOST_DIFFERENCE = 1e-3  # of pixels in [0, 1]


def export(config: ConfigDict, workdir: Path, checkpoint: str, out: Path) -> dict[str, Any]:
    """Write the page of a checkpoint of the run in `workdir` to the folder `out`.

    Returns what was checked: 'difference', the largest between the converted model and JAX over
    CHECKED_FRAMES frames, in [0, 1]; and 'megabytes', of the folder.

    Raises UserError where the checkpoint or the data are not there, `out` holds something else than a page,
    or the model cannot be converted.
    """
    parts = Components.build(config)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: give the name of a folder.")
    if out.is_dir() and any(out.iterdir()) and not _own_files(out):
        raise UserError(f"--out={out} holds other files: give a new folder, or one of an earlier export.")
    require_writable(out, "give --out another place")
    converter.prepare()
    with tqdm(total=STAGES, unit="stage", file=sys.stderr, leave=False) as bar:
        bar.set_description("reading the data")
        data = load_data(config.data, config.n_past)
        scenes = scenes_of(data)
        first = scenes[0].first
        poses = load_poses(config.data) if first.image_labels else None
        kind = label_kind(first, poses)
        size, label_size = first.frames.shape[1:3], first.label_size
        variables, step, _ = restore_for_evaluation(
            parts.model, workdir, checkpoint, size, label_size, averaged=parts.optimizer.averages
        )
        bar.update()
        bar.set_description("running the model")
        model = _model_alone(config)
        begin = jax.jit(make_begin(model))
        starts = [_started(begin, variables, scene, config.n_past) for scene in scenes]
        check = _check(model, variables, scenes[0], starts[0], config.n_past)
        bar.update()
        bar.set_description("converting the model")
        onnx, checked = converter.convert(_files(config, variables, check))
        if not checked["difference"] < MOST_DIFFERENCE:
            raise UserError(
                f"The converted model differs from JAX by {checked['difference']:.2g} of a pixel's range "
                f"over {CHECKED_FRAMES} frames, more than {MOST_DIFFERENCE}: please report this with the "
                "run's config."
            )
        bar.update()
        bar.set_description("writing the page")
        names = names_of(model, starts[0]["constants"], starts[0]["state"].carry)
        described = {
            "title": config.name,
            "frame_size": list(size),
            "n_past": config.n_past,
            "label": {"kind": kind, "size": label_size},
            "latent_shape": list(model.latent_shape(size)),
            "noise_correlation": config.eval.noise_correlation,
            "sees_previous": model.sees_previous,
            "inputs": checked["inputs"],
            "constants": names.constants,
            "carry": names.carry,
            "changing": checked["changing"],
            "masks": names.masks,
            "step": step,
            "skeleton": skeleton(poses.style) if poses else None,
            "scenes": [
                {
                    **describe(scene, kind, poses),
                    "frame": packed(np.asarray(start["state"].frame)),
                    "state": {
                        name: packed(np.asarray(leaf))
                        for name, leaf in zip(
                            names.constants + names.carry,
                            jax.tree.leaves((start["constants"], start["state"].carry)),
                            strict=True,
                        )
                    },
                }
                for scene, start in zip(scenes, starts, strict=True)
            ],
        }
        _write(out, described, onnx)
        bar.update()
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"difference": checked["difference"], "megabytes": total / 1e6}


def _model_alone(config: ConfigDict) -> VideoModel:
    """Return the model of a config in float32, on one device."""
    adversarial = AdversarialOptions(**config.adversarial)
    critic = adversarial if adversarial.weight else None
    return models.build(config.model, "float32", None, critic)


def _context(scene: SceneOfPage, n_past: int) -> dict[str, np.ndarray]:
    recording = scene.first
    return {
        "given": recording.frames[None, :n_past],
        "labels": recording.labels[None, :n_past],
        "mask": np.ones(1, np.float32),
        "index": np.full(1, scene.index, np.uint32),
        "sample": np.zeros(1, np.uint32),
    }


def _started(begin: Any, variables: PyTree, scene: SceneOfPage, n_past: int) -> dict[str, Any]:
    """Return the constants and the state after a scene's context frames."""
    return jax.device_get(begin(variables, _context(scene, n_past), {"seed": np.uint32(0)}))


def _check(
    model: VideoModel, variables: PyTree, scene: SceneOfPage, start: dict[str, Any], n_past: int
) -> dict[str, np.ndarray]:
    """Return the inputs and frames of a rollout of the first scene, in the form that `worker` reads."""
    constants, carry = start["constants"], start["state"].carry
    names = names_of(model, constants, carry)
    step = jax.jit(make_step(model, variables, n_past, constants, carry))
    size = scene.first.frames.shape[1:3]
    fixed, kept = jax.tree.leaves(constants), jax.tree.leaves(carry)
    labels = scene.first.labels
    labels = to_unit(labels) if labels.dtype == np.uint8 else labels
    last = len(labels) - 1
    numbers = np.arange(n_past, n_past + CHECKED_FRAMES)
    inputs = {
        "t": numbers.astype(np.int32),
        "label": labels[np.minimum(numbers, last)][:, None],
        "noise": np.asarray(
            jax.random.normal(jax.random.key(0), (CHECKED_FRAMES, 1, *model.latent_shape(size)))
        ),
    }
    frame, frames = jnp.asarray(start["state"].frame), []
    for t, label, noise in zip(*inputs.values(), strict=True):
        frame, *rest = step(t, frame, label, noise, *fixed, *kept)
        kept = rest[len(names.masks) :]
        frames.append(np.asarray(frame))
    leaves = jax.tree.leaves((constants, carry))
    state = dict(zip(names.constants + names.carry, map(np.asarray, leaves), strict=True))
    context = _context(scene, n_past)
    return {
        **inputs,
        **state,
        "frame": np.asarray(start["state"].frame),
        "frames": np.concatenate(frames),
        "given": context["given"],
        "labels_given": context["labels"],
    }


def _files(config: ConfigDict, variables: PyTree, check: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the files that `worker` reads."""
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
    section = models.in_plain_formulation(config.model.to_dict())
    description = {"section": section, "adversarial": config.adversarial.to_dict()}
    files = {"model.json": json.dumps(description).encode()}
    for name, arrays in (("variables.npz", flat), ("check.npz", check)):
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]  # names of arrays, not of options
        files[name] = file.getvalue()
    return files


def _write(out: Path, described: dict[str, Any], onnx: bytes) -> None:
    """Write the page; each file appears whole, the index last."""
    runtime = converter.runtime_folder()
    out.mkdir(parents=True, exist_ok=True)
    for name in _own_files(out):
        (out / name).unlink(missing_ok=True)
    own = ["data.js", "weights.js", "style.css", *SCRIPTS, *map(_runtime_script, converter.RUNTIME_FILES)]
    (out / MARKER).write_text(json.dumps({"title": described["title"], "files": [*own, "index.html"]}))
    for name in ("style.css", *SCRIPTS):
        shutil.copyfile(PAGE / name, out / name)
    _write_script(out / "data.js", "PUPPET", described)
    _write_script(out / "weights.js", "PUPPET_MODEL", base64.b64encode(onnx).decode())
    for backend, (script, glue, program) in converter.RUNTIME_FILES.items():
        content = {
            "glue": (runtime / glue).read_text(),
            "program": base64.b64encode(gzip.compress((runtime / program).read_bytes(), mtime=0)).decode(),
        }
        path = out / _runtime_script(backend)
        _write_script(path, "PUPPET_RUNTIME", content)
        with path.open("a", encoding="utf-8") as file:
            file.write((runtime / script).read_text())
    page = (PAGE / "index.html").read_text().replace("{{title}}", html.escape(described["title"]))
    (out / "index.html").write_text(page)


def _own_files(out: Path) -> list[str]:
    """Return the names of the files of the page in a folder; [] where it holds none."""
    try:
        names = json.loads((out / MARKER).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    named = names if isinstance(names, list) else []
    return [name for name in named if isinstance(name, str) and Path(name).name == name]


def _runtime_script(backend: str) -> str:
    return f"runtime_{backend}.js"


def _write_script(path: Path, name: str, value: Any) -> None:
    """Write a JavaScript file that sets a global constant: a page opened as a file cannot read JSON."""
    path.write_text(f"globalThis.{name} = {json.dumps(value)};\n", encoding="utf-8")
