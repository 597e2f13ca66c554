"""Videos from a trained run: from images, from a clip, after another clip's motion, or as a submission."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cvae_jax.config import Components
from cvae_jax.data import datasets
from cvae_jax.data.clips import Recording
from cvae_jax.data.images import read_folder, read_image
from cvae_jax.data.load import load_data, trained_frame_size
from cvae_jax.evaluation.diversity import coincide
from cvae_jax.generation import submission, transfer
from cvae_jax.generation.samples import Sample, check_sampling, make_rollout, sample_videos
from cvae_jax.report import figures, video
from cvae_jax.report.tables import SAMPLES_COINCIDE
from cvae_jax.rollout.chunks import Prompt
from cvae_jax.runtime.devices import Devices
from cvae_jax.runtime.errors import UserError
from cvae_jax.runtime.files import require_writable
from cvae_jax.runtime.progress import tell
from cvae_jax.training.checkpoint import restore_for_evaluation

FOLDER = "generated"  # in the workdir, where no --out is given
SAMPLES = 3
STRIP_FRAMES = 12  # about as many are shown in a film strip
MODES = "--first=PNG with --labels=FOLDER, --clip=NAME, --person=CLIP with --drive=CLIP, or --csv=FILE"
SLOWEST = 0.01  # frames a second; the format of a GIF counts to 655 seconds a frame


@dataclasses.dataclass(frozen=True)
class Request:
    """What to generate, as the script's flags say it; None is a flag that was not given.

    Attributes:
      first, labels: a PNG and a folder of numbered PNGs, one per frame of the video, the first included.
      clip: name or scene of a recording of the run's data set.
      person, drive: names or scenes: the first person moves as the second does.
      csv: where the lab's submission goes.
      samples: how many are drawn; None: 3, and 1 of another's motion and in a submission.
      seed, temperature: of the noise that z is drawn with.
      fps: of the GIF and the MP4.
      masks: also show which pixels sample 0 copies, from a model that composes its frames.

    Raises UserError unless one thing is asked for, with values in their range.
    """

    first: str | None = None
    labels: str | None = None
    clip: str | None = None
    person: str | None = None
    drive: str | None = None
    csv: str | None = None
    checkpoint: str = "best"
    out: str | None = None
    samples: int | None = None
    seed: int = 0
    temperature: float = 1.0
    fps: float = 10.0
    masks: bool = False

    def __post_init__(self) -> None:
        for one, other in (("first", "labels"), ("person", "drive")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise UserError(f"--{one} and --{other} go together; give both.")
        asked = [f"--{m}" for m in ("first", "clip", "person", "csv") if getattr(self, m) is not None]
        if not asked:
            raise UserError(f"Nothing to generate; give {MODES}.")
        if len(asked) > 1:
            raise UserError(f"{' and '.join(asked)} cannot go together; give one of {MODES}.")
        if self.csv is not None and self.samples not in (None, 1):
            raise UserError(f"--samples is {self.samples}, but a submission holds one; leave it out.")
        if self.csv is not None and self.masks:
            raise UserError("--masks and --csv cannot go together: a submission shows no masks.")
        samples = 1 if self.samples is None else self.samples
        check_sampling(samples, self.seed, self.temperature, prefix="--")
        if not (math.isfinite(self.fps) and self.fps >= SLOWEST):
            raise UserError(f"--fps is {self.fps}; give a finite number of at least {SLOWEST}.")


@dataclasses.dataclass(frozen=True)
class Scene:
    """A prompt and the videos (T, H, W, 3) that are shown before and after what was generated."""

    prompt: Prompt
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


def generate(
    config: ConfigDict, workdir: Path, request: Request, devices: Sequence[jax.Device] | None = None
) -> list[Path]:
    """Generate what is asked for with a checkpoint of the run in `workdir`; returns the files written.

    Says on standard error where several samples were drawn and do not differ.

    Raises UserError where the checkpoint, the data or the images are not there or cannot be read.
    """
    parts = Components.build(config)
    if config.n_past > 1 and (request.first is not None or request.drive is not None):
        raise UserError(
            f"--first and --drive give the model one frame and the run has config.n_past={config.n_past}: "
            "give --clip=NAME of a clip of its data set."
        )
    if request.first is not None and not datasets.find(config.data.name).image_labels:
        raise UserError(
            f"--first needs a run whose labels are images, and those of {config.data.name} are not: "
            "give --clip=NAME of a clip of its data set."
        )
    if request.masks and not parts.model.mask_names:
        raise UserError(
            "--masks shows which pixels are copied, but the model of config.model.kind="
            f"{config.model.kind} draws them whole: leave it out."
        )
    out = Path(request.out) if request.out else workdir / FOLDER
    require_writable(out, "give --out another place")
    chosen = Devices(devices)

    def sample(prompts: list[Prompt], count: int) -> list[Sample]:
        variables, *_ = restore_for_evaluation(
            parts.model,
            workdir,
            request.checkpoint,
            prompts[0].frame_size,
            prompts[0].label_size,
            averaged=parts.optimizer.averages,
        )
        rollout = make_rollout(parts, chosen, masks=request.masks)
        seed, temperature = request.seed, request.temperature
        return list(sample_videos(rollout, variables, prompts, count, seed, temperature, progress=True))

    if request.csv is not None:
        require_writable(Path(request.csv).parent, "give --csv another place")
        if Path(request.csv).is_dir():
            raise UserError(f"--csv={request.csv} is a folder; give the name of a file.")
        prompts = submission.read_prompts(config, trained_frame_size(config, workdir))
        videos = [drawn.frames for drawn in sample(prompts, 1)]
        written = [Path(request.csv)]
        submission.write_csv(written[0], videos)
        for prompt, frames in zip(prompts, videos, strict=True):
            written.append(out / f"test_{prompt.name}.gif")
            shown = {} if prompt.label_size is not None else {"label": prompt.labels}
            columns = shown | {"generated": frames}
            figures.save_gif(written[-1], columns, request.fps)
        return written
    scene = read_scene(config, workdir, request)
    prompt = scene.prompt
    samples = request.samples or (SAMPLES if request.drive is None else 1)
    drawn = sample([prompt], samples)
    if samples > 1 and request.temperature and coincide([one.frames[config.n_past :] for one in drawn]):
        tell(SAMPLES_COINCIDE)
    generated = {f"sample {number}": one.frames for number, one in enumerate(drawn)}
    if samples == 1:
        generated = {"generated": generated["sample 0"]}
    masks = {f"from {name}": mask for name, mask in drawn[0].masks.items()}
    columns = scene.before | generated | masks | scene.after
    stem = "generated" if request.drive is None else "transfer"
    written = [out / f"{stem}{ending}" for ending in (".gif", ".mp4", "_strip.png")]
    figures.save_gif(written[0], columns, request.fps)
    video.save_mp4(written[1], columns, request.fps)
    every = max(1, len(prompt.labels) // STRIP_FRAMES)
    figures.save_strip(written[2], columns, every=every)
    return written


def read_scene(config: ConfigDict, workdir: Path, request: Request) -> Scene:
    """Return what a request other than a submission generates from; UserError for what is not there."""
    if request.first is not None and request.labels is not None:
        size = trained_frame_size(config, workdir)
        if not Path(request.first).is_file():
            raise UserError(f"There is no file {request.first}: give --first a PNG.")
        first, _ = read_image(Path(request.first), size)
        labels = read_folder(Path(request.labels), size)
        if len(labels) < 2:
            raise UserError(
                f"{request.labels} holds one label, that of the first frame: add one per frame to generate."
            )
        return Scene(Prompt("files", first[None], labels), {"label": labels}, {})
    poses = None if request.drive is None else transfer.require_poses(config.data)
    data = load_data(config.data, config.n_past)
    if poses is not None and request.drive is not None and request.person is not None:
        person, driver = (
            find_clip(data, name, flag)[0]
            for name, flag in ((request.person, "--person"), (request.drive, "--drive"))
        )
        labels = transfer.transfer_labels(poses, itertools.chain(*data.values()), person, driver)
        before = {"driver": driver.frames, "its label": driver.labels, "normalised": labels}
        return Scene(Prompt(person.name, person.frames[:1], labels), before, {})
    assert request.clip is not None, "something is asked for"
    recording, index = find_clip(data, request.clip, "--clip")
    before = {"label": recording.labels} if recording.image_labels else {}
    return Scene(Prompt.of(recording, config.n_past, index), before, {"truth": recording.frames})


def find_clip(data: dict[str, list[Recording]], name: str, flag: str) -> tuple[Recording, int]:
    """Return the recording of a name or scene and its index in its split: validation first, train last.

    Raises UserError where there is none, or where a scene has several in the split.
    """
    splits = sorted(data, key=lambda split: (split == "train", split != "validation"))
    for field in ("name", "scene"):
        for split in splits:
            found = [(r, i) for i, r in enumerate(data[split]) if getattr(r, field) == name]
            if len(found) > 1:
                names = ", ".join(r.name for r, _ in found)
                raise UserError(f"{flag}={name} is a scene with several clips; give one of {names}.")
            if found:
                return found[0]
    names = ", ".join(r.name for split in splits for r in data[split])
    raise UserError(f"{flag}={name} names no clip of the run's data set; give one of {names}.")
