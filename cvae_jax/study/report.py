"""The report of a study: figures and tables with intervals over seeds, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import markdown
from ml_collections import ConfigDict

from cvae_jax.report import columns
from cvae_jax.report.compare import OF_THE_RUN, refuse_other_protocol
from cvae_jax.report.tables import protocol_card
from cvae_jax.runtime.files import replacing
from cvae_jax.study import figures, tables
from cvae_jax.study.plan import Planned
from cvae_jax.study.summary import summarise


def write(
    study: ConfigDict, workdir: Path, runs: Sequence[Planned], baselines: dict[str, dict]
) -> list[dict]:
    """Write report.md, report.html, results.json and figures/ into the study's folder; return the rows."""
    rows = summarise(study, runs)
    pictures = draw(study, workdir / "figures", runs, rows)
    protocol = shared_protocol(study, runs)
    text = render(study, rows, baselines, pictures, protocol)
    results = {"study": study.to_dict(), "protocol": protocol, "rows": rows, "baselines": baselines}
    with replacing(workdir / "results.json") as partial:
        partial.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    with replacing(workdir / "report.md") as partial:
        partial.write_text(text)
    with replacing(workdir / "report.html") as partial:
        partial.write_text(html(text, workdir))
    return rows


def shared_protocol(study: ConfigDict, runs: Sequence[Planned]) -> dict:
    """Return the protocol of all runs' scores, {} if nothing is scored; per-run fields list all values.

    Raises UserError if two runs were scored under different protocols, or on other data.
    """
    scored = [(run, run.scores(study.split, run.config.num_epochs)) for run in runs]
    protocols = {str(run.workdir): scores["protocol"] for run, scores in scored if scores}
    if not protocols:
        return {}
    (first, reference), *others = protocols.items()
    for name, other in others:
        refuse_other_protocol(first, reference, name, other)
    of_the_runs = {
        field: sorted({str(protocol.get(field)) for protocol in protocols.values()}) for field in OF_THE_RUN
    }
    return reference | {field: ", ".join(values) for field, values in of_the_runs.items()}


def draw(
    study: ConfigDict, folder: Path, runs: Sequence[Planned], rows: Sequence[dict]
) -> list[tuple[str, str]]:
    """Write the figures the study asks for; return (file, caption) of each."""

    def course(names: Sequence[str]) -> figures.Course:
        return {name: [h for r in runs if r.variant == name and (h := _located(r))] for name in names}

    drawn: list[tuple[str, str]] = []

    def asked(field: str) -> tuple[str, ...]:
        """The chosen variants that a figure shows."""
        names = study.figures[field]
        return tuple(n for n in ((names,) if isinstance(names, str) else names) if n in study.variants)

    def add(file: str, caption: str, save: Any, *arguments: Any) -> None:
        save(folder / file, *arguments)
        drawn.append((f"figures/{file}", caption))

    for name in asked("forcing"):
        add(
            "1_teacher_forcing.png",
            f"Figure 1. Teacher-forcing ratio and training loss of `{name}`.",
            figures.save_forcing,
            name,
            course([name])[name],
        )
    for suffix, names in (("", asked("schedules")), ("_scaled", asked("schedules_scaled"))):
        if not names:
            continue
        which = " with the KL per latent element and a small weight" if suffix else ""
        add(
            f"2_schedules{suffix}.png",
            f"Figure 2. The schedules of beta{which}, and the training loss.",
            figures.save_schedules,
            course(names),
        )
        add(
            f"3_validation{suffix}.png",
            f"Figure 3. Validation loss and PSNR{which}.",
            figures.save_validation,
            course(names),
        )
        curves = per_frame_curves(names, runs)
        if curves:
            add(
                f"4_per_frame{suffix}.png",
                f"Figure 4. PSNR per frame of the validation sequence{which}.",
                figures.save_per_frame,
                curves,
            )
    if asked("decays"):
        add(
            "5_decays.png",
            "Figure 5. Decays of the teacher-forcing ratio, and draws per step.",
            figures.save_decays,
            course(asked("decays")),
        )
    if any(_validations(run) > 1 for run in runs):  # else the table says all of it
        add(
            "6_latents.png",
            "Figure 6. What the latents carry.",
            figures.save_latents,
            course(study.variants),
            len({r.config.num_epochs for r in runs}) > 1,
        )
    if asked("course"):
        add(
            "7_course.png",
            "Figure 7. Metrics of the validation clips, z from the prior (one draw), against the training "
            "clips seen.",
            figures.save_course,
            course(asked("course")),
        )
    if any(row.get("difference") for row in rows):
        add(
            "8_differences.png",
            f"Figure 8. Each variant minus `{study.compare}`, with z from the prior (one draw): seeds, their "
            "mean and its 95 % interval.",
            figures.save_differences,
            rows,
            study.compare,
        )
    return drawn


def _validations(run: Planned) -> int:
    return sum(row.get("val_kl_nats_per_frame") is not None for row in run.history)


def _located(run: Planned) -> list[dict]:
    """Return the rows of a run's metrics.jsonl with the clips seen and the percentage of epochs done."""
    batch, epochs = run.config.batch_size, run.config.num_epochs
    return [
        row | {"clips_seen": row["step"] * batch, "trained": 100 * (row["epoch"] + 1) / epochs}
        for row in run.history
    ]


def per_frame_curves(
    names: Sequence[str], runs: Sequence[Planned]
) -> dict[tuple[str, int], dict[str, list[list[float]]]]:
    """Return {(variant, epochs trained): {'prior', 'posterior': a curve per seed}} on validation."""
    curves: dict[tuple[str, int], dict[str, list[list[float]]]] = {}
    for run in runs:
        if run.variant not in names or run.stopped:
            continue
        for epoch in run.epochs_shown:
            scores = run.scores("validation", epoch)
            if scores is None:
                continue
            own = curves.setdefault((run.variant, epoch), {"prior": [], "posterior": []})
            for row in scores["rows"]:
                if "scene" not in row and row["name"] in own:
                    own[row["name"]].append(row["per_frame_psnr"])
    return curves


def _seeds(planned: int, rows: list[dict]) -> str:
    """Say how many runs each variant should have, and how many have scores if that is fewer."""
    least, most = (pick(len(row["seeds"]) for row in rows) for pick in (min, max))
    said = f"{planned} seed{'s' if planned > 1 else ''}"
    if least == planned:
        return f"{said} each"
    number = f"{most}" if least == most else f"{least} to {most}"
    return f"{said} planned for each, {number} of them scored so far"


def render(
    study: ConfigDict,
    rows: list[dict],
    baselines: dict[str, dict],
    pictures: list[tuple[str, str]],
    protocol: dict,
) -> str:
    """Return the report as Markdown."""
    base = study.base
    parts = [
        f"# {study.name}",
        f"{len(study.variants)} variants, {_seeds(study.seeds, rows)}. The base, which variants change (see "
        f"the end): {base.num_epochs} epochs, batch {base.batch_size}, clips of {base.clip_length} frames, "
        f"{base.data.clips_per_epoch or 'all'} clips an epoch, learning rate {base.learning_rate.peak:g} to "
        f"{base.learning_rate.end:g}; model `{base.model.kind}` "
        f"({_changes(base.model[base.model.kind].to_dict())}).",
        f"## Results on the {study.split} split",
        tables.results_table(study, rows),
        "Means over seeds with Student t intervals over seeds; differences are taken seed by seed. † sees "
        "the frame it predicts: a reconstruction, not a prediction.",
        "### Predictions from the prior, by metric",
        tables.predictions_table(study, rows),
        _draws(base.eval.best_of) + _compared(study),
        columns.direction(columns.metrics_of(row["metrics"] for row in rows)),
        "### Baselines on the same frames",
        tables.baselines_table(baselines),
        "## Figures",
        *(f"![{caption}]({file})\n\n{caption}" for file, caption in pictures),
        "## Protocol",
        protocol_card({k: v for k, v in protocol.items() if base.eval.best_of or k != "prior_best_of_N"}),
        "## Variants",
        "\n".join(
            f"- `{name}`: {_changes(study.changes[name].to_dict()) or 'the base'}" for name in study.variants
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _draws(best_of: int) -> str:
    if not best_of:
        return "One draw (N = 1)."
    return (
        "One draw (N = 1), and the best of N draws of each clip by each metric, which looks at the target; "
        f"N is {best_of}."
    )


def _compared(study: ConfigDict) -> str:
    return f" Differences are those of N = 1 to `{study.compare}`." if study.compare else ""


def html(text: str, folder: Path) -> str:
    """Return the Markdown as one HTML page with its pictures inside."""

    def inline(match: re.Match) -> str:
        data = base64.b64encode((folder / match.group(1)).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([^":]+\.png)"', inline, markdown.markdown(text, extensions=["tables"]))
    title = text.splitlines()[0].lstrip("# ")
    style = (
        "body{font-family:sans-serif;max-width:75em;margin:2em auto;padding:0 1em}img{max-width:100%}"
        "table{border-collapse:collapse}td,th{padding:.2em .6em;border-bottom:1px solid #ccc}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _changes(tree: dict, prefix: str = "") -> str:
    """Return 'a.b = value, ...' of nested dicts."""
    parts = []
    for key, value in tree.items():
        nested = isinstance(value, dict)
        parts.append(_changes(value, f"{prefix}{key}.") if nested else f"{prefix}{key} = {value}")
    return ", ".join(filter(None, parts))
