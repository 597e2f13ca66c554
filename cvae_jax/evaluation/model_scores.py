"""A model's rows: its samples of each clip, scored as they are generated."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import PyTree

from cvae_jax.data.clips import Recording
from cvae_jax.evaluation.latents import SAMPLES, Collected
from cvae_jax.evaluation.pictures import MOST_PICTURES
from cvae_jax.evaluation.rows import ClipScores, Samples
from cvae_jax.evaluation.scores import Scorer
from cvae_jax.evaluation.stability import Flicker
from cvae_jax.evaluation.video_distance import VideoDistance
from cvae_jax.options import EvaluationOptions
from cvae_jax.rollout.chunks import POSTERIOR, PRIOR
from cvae_jax.runtime import processes
from cvae_jax.runtime.progress import clip_bar


@dataclasses.dataclass(frozen=True)
class ModelScores:
    """The scores of a model on the clips of a split.

    Attributes:
      rows: {row: a ClipScores per clip}.
      collected: sample 0 of each clip, with the frames of the first MOST_PICTURES.
      flicker: see `cvae_jax.evaluation.stability`.
      fvd: the fields of the row prior that hold the Frechet video distance; {} if it was not requested.
    """

    rows: dict[str, list[ClipScores]]
    collected: Collected
    flicker: dict[str, float]
    fvd: dict


def score_model(
    options: EvaluationOptions,
    scorer: Scorer,
    variables: PyTree,
    recordings: list[Recording],
    n_past: int,
    distance: VideoDistance | None = None,
) -> ModelScores:
    """Score the samples of every row on every clip.

    Samples are streamed: for each clip only sums and the best so far are kept. If the rows need only one
    sample of the prior, a second is drawn to see how much it differs.
    """
    seed, count = options.seed, max(options.samples, options.best_of, len(SAMPLES))
    jobs: list[tuple[str, dict[str, Any]]] = [("prior", dict(samples=range(count), frames_of=SAMPLES))]
    jobs.append(("prior_mean", dict(temperature=0.0)))
    if options.temperature is not None:
        scaled = dict(samples=range(options.samples), temperature=options.temperature)
        jobs.append(("prior_scaled", scaled | dict(frames_of=())))
    jobs.append(("posterior", {}))
    total = sum(len(keywords.get("samples", range(1))) for _, keywords in jobs)
    rows: dict[str, list[ClipScores]] = {}
    collected = Collected(range(MOST_PICTURES))
    flicker = Flicker(recordings, n_past)
    with clip_bar(total * len(recordings)) as bar:
        bar.set_description("rolling out (the first compiles)")
        for name, keywords in jobs:
            mode = POSTERIOR if name == "posterior" else PRIOR
            own = [Samples(r.scene, options.samples, options.best_of) for r in recordings]
            for scored in scorer.run(variables, recordings, mode, seed, **keywords):
                own[scored.clip].add(scored)
                if name in (PRIOR, POSTERIOR):
                    collected.add(mode, scored)
                if name in (PRIOR, "prior_mean") and scored.sample == 0:
                    assert scored.frames is not None, "the frames of sample 0 are asked for"
                    flicker.add(name, scored.clip, scored.frames)
                    if name == PRIOR and distance is not None:
                        distance.add(scored.clip, scored.frames)
                bar.update()
            rows[name] = [clip.mean for clip in own]
            if name == PRIOR and options.best_of:
                rows["prior_best_of_N"] = [clip.best for clip in own]
    fvd = processes.on_first(lambda: {} if distance is None else distance.fields(seed))
    return ModelScores(rows, collected, flicker.means, fvd)
