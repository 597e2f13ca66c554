"""From the report's run to the best recipe for its model, a change a row, at equal compute.

    python study.py --config=configs/ablation.py --workdir=S

Each variant makes the changes of those above it and one more; the last is `cvae_recipe.py` at this width.
Every run takes as many steps on as many frames.
"""

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from configs import cvae_recipe, study, study_reduced

# Row: the fields of `cvae_recipe.CHANGES` that it takes over.
ROWS = {
    "report_exact": (),
    "loss": ("loss.kl", "loss.clamp", "loss.divide_recon_by_batch"),
    "no_forcing": ("teacher_forcing.kind", "teacher_forcing.initial"),
    "learning_rate": tuple(f"learning_rate.{f}" for f in ("peak", "end", "per", "warmup_epochs")),
    "features_uncut": ("model.cvae.cut_previous_features",),
    "frame_step": ("data.frame_step",),
    "positions": ("model.cvae.position_octaves",),
    "residual": ("model.cvae.output",),
}
NARROW = {"learning_rate.peak": 4e-3}  # at this width and with so few steps


def get_config() -> ConfigDict:
    config = study_reduced.get_config()
    config.name = "ablation"
    config.compare, config.steps = "report_exact", True
    config.figures.update(study.NO_REPORT_FIGURES)
    config.base.beta.kind = "monotonic"
    config.base.checkpoint.save_every = 0
    config.base.eval.every = 50

    values, changes, variants = cvae_recipe.CHANGES | NARROW, {}, {}
    for name, fields in ROWS.items():
        changes |= {field: values[field] for field in fields}
        variants[name] = unflatten_dict(changes, sep=".")
    config.variants, config.changes = tuple(variants), ConfigDict(variants)
    return config
