"""A run as a folder with a page: the puppet."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
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
from cvae_jax.data.clips import Recording, to_unit
from cvae_jax.data.load import load_data, load_poses
from cvae_jax.models.interface import VideoModel
from cvae_jax.puppet import converter
from cvae_jax.puppet.scenes import describe, label_kind, packed, ranges, scenes_of, skeleton
from cvae_jax.puppet.step import build_model, make_start, make_step, names_of
from cvae_jax.rollout.scan import RolloutState
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import replacing, require_writable
from cvae_jax.training.checkpoint import restore_for_evaluation

MARKER = "puppet.json"  # says that a folder is a page, and which files are its own
PAGE = Path(__file__).parent / "page"
SCRIPTS = ("arrays.js", "pose.js", "noise.js", "model.js", "page.js")
STAGES = 3
CHECKED_FRAMES = 30  # that the converted model is compared on, each fed back into the next
MOST_DIFFERENCE = 1e-3  # of pixels in [0, 1]


def export(config: ConfigDict, workdir: Path, checkpoint: str, out: Path) -> dict[str, Any]:
    """Write the page of a checkpoint of the run in `workdir` to the folder `out`.

    Returns what was checked: 'difference', the largest between the converted model and JAX over
    CHECKED_FRAMES frames, in [0, 1]; and 'megabytes', of the folder.

    Raises UserError if the checkpoint or the data are missing, if `out` contains anything but an exported
    page, or if the model cannot be converted.
    """
    parts = Components.build(config)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: give the name of a folder.")
    if out.is_dir() and any(out.iterdir()) and not _own_files(out):
        raise UserError(f"--out={out} holds other files: give a new folder, or that of an earlier export.")
    require_writable(out, "give another folder with --out")
    scenes = scenes_of(load_data(config.data, config.n_past))
    first = scenes[0].first
    poses = load_poses(config.data) if first.image_labels else None
    kind = label_kind(first, poses)
    size, label_size = first.frames.shape[1:3], first.label_size
    variables, *_ = restore_for_evaluation(
        parts.model, workdir, checkpoint, size, label_size, averaged=parts.optimizer.averages
    )
    converter.prepare()
    with tqdm(total=STAGES, unit="stage", file=sys.stderr, leave=False) as bar:
        bar.set_description("running the model")
        model = build_model(config.model.to_dict(), config.adversarial.to_dict())
        start = make_start(model)
        starts = [
            jax.device_get(start(variables, *_context(one.first, config.n_past), one.index)) for one in scenes
        ]
        check = _check(model, variables, first, starts[0], config.n_past)
        bar.update()
        bar.set_description("converting the model")
        onnx, checked = converter.convert(_files(config, variables, check))
        if not checked["difference"] < MOST_DIFFERENCE:
            raise UserError(
                f"The converted model differs from JAX by {checked['difference']:.2g} (pixels from 0 to 1) "
                f"in {CHECKED_FRAMES} frames; at most {MOST_DIFFERENCE} is allowed. Please report this and "
                "attach the run's config."
            )
        bar.update()
        bar.set_description("writing the page")
        names = names_of(model, starts[0][0], starts[0][1].carry)
        described = {
            "frame_size": list(size),
            "n_past": config.n_past,
            "label": {
                "kind": kind,
                "size": label_size,
                "ranges": ranges(scenes) if kind == "vector" else None,
            },
            "latent_shape": list(model.latent_shape(size)),
            "has_latent": checked["has_latent"],
            "noise_correlation": config.eval.noise_correlation,
            "sees_previous": model.sees_previous,
            "inputs": checked["inputs"],
            "changing": checked["changing"],
            "masks": names.masks,
            "skeleton": skeleton(poses.style) if poses else None,
            "scenes": [
                {
                    **describe(scene, kind, poses),
                    "frame": packed(np.asarray(state.frame)),
                    "state": {
                        name: packed(np.asarray(leaf))
                        for name, leaf in zip(
                            names.constants + names.carry,
                            jax.tree.leaves((constants, state.carry)),
                            strict=True,
                        )
                        if name in checked["inputs"]
                    },
                }
                for scene, (constants, state) in zip(scenes, starts, strict=True)
            ],
        }
        _write(out, config.name, described, onnx)
        bar.update()
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"difference": checked["difference"], "megabytes": total / 1e6}


def _context(recording: Recording, n_past: int) -> tuple[np.ndarray, np.ndarray]:
    return recording.frames[:n_past], recording.labels[:n_past]


def _check(
    model: VideoModel,
    variables: PyTree,
    recording: Recording,
    started: tuple[PyTree, RolloutState],
    n_past: int,
) -> dict[str, np.ndarray]:
    """Return the inputs and frames of a rollout of a recording, in the form that `worker` reads."""
    constants, (frame, carry) = started
    names = names_of(model, constants, carry)
    step = jax.jit(make_step(model, variables, n_past, constants, carry))
    size = recording.frames.shape[1:3]
    fixed, kept = jax.tree.leaves(constants), jax.tree.leaves(carry)
    labels = recording.labels
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
    frames: list[np.ndarray] = []
    for t, label, noise in zip(*inputs.values(), strict=True):
        seen = frames[-1] if frames else frame
        predicted, *rest = step(t, *map(jnp.asarray, (seen, label, noise)), *fixed, *kept)
        kept = rest[len(names.masks) :]
        frames.append(np.asarray(predicted))
    leaves = map(np.asarray, jax.tree.leaves((constants, carry)))
    given, labels_given = _context(recording, n_past)
    return {
        **inputs,
        **dict(zip(names.constants + names.carry, leaves, strict=True)),
        "frame": np.asarray(frame),
        "frames": np.concatenate(frames),
        "given": given,
        "labels_given": labels_given,
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


def _write(out: Path, title: str, described: dict[str, Any], onnx: bytes) -> None:
    """Write the page: each file appears whole, and what only an earlier page had is removed at the end."""
    runtime = converter.runtime_folder()
    texts = {name: (PAGE / name).read_text(encoding="utf-8") for name in ("style.css", *SCRIPTS)}
    texts["data.js"] = _script("PUPPET", described)
    texts["weights.js"] = _script("PUPPET_MODEL", base64.b64encode(onnx).decode())
    for backend, (script, glue, program) in converter.RUNTIME_FILES.items():
        content = {
            "glue": (runtime / glue).read_text(encoding="utf-8"),
            "program": base64.b64encode(gzip.compress((runtime / program).read_bytes(), mtime=0)).decode(),
        }
        own = (runtime / script).read_text(encoding="utf-8")
        texts[f"runtime_{backend}.js"] = _script("PUPPET_RUNTIME", content) + own
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    texts["index.html"] = page.replace("{{title}}", html.escape(title))
    old = [name for name in _own_files(out) if name not in texts and name != MARKER]
    texts = {MARKER: json.dumps({"files": [*texts, *old, MARKER]}), **texts}
    for name, text in texts.items():
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for name in old:
        (out / name).unlink(missing_ok=True)


def _own_files(out: Path) -> list[str]:
    """Return the names of the files of the page in a folder; [] where it holds none."""
    try:
        names = json.loads((out / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    named = names if isinstance(names, list) else []
    return [
        name for name in named if isinstance(name, str) and re.fullmatch(r"[a-z_]+\.(js|css|html|json)", name)
    ]


def _script(name: str, value: Any) -> str:
    """Return a script that sets a global constant: a page opened as a file cannot read JSON."""
    return f"globalThis.{name} = {json.dumps(value)};\n"
