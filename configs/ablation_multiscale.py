"""What each part of the demo's recipe is worth on the embedded clips: one change of it a row.

    make env METRICS=1
    python study.py --config=configs/ablation_multiscale.py --workdir=S

Every run takes half as many steps as the demo.
"""

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from configs import quickstart, study

# Row: what it changes.
ROWS: dict[str, dict] = {
    "quickstart": {},
    "no_shift": {"augment.shift": 0},
    "no_mirror": {"augment.mirror": False},
    "zoom_and_brightness": {"augment.zoom": 0.1, "augment.brightness": 0.05},
    "no_latent": {"model.multiscale.latent_channels": 0},
    "posterior_alone": {"model.multiscale.prior_share": 0.0},
    "l1": {"loss.reconstruction": "l1_mse", "loss.l1_weight": 0.02, "beta.scale": 1e-7},
    "lpips": {"loss.lpips": 0.02},
    "pixels": {"model.multiscale.patch": 1, "model.multiscale.widths": (16, 32, 48, 64)},
    "averaged": {"optimizer.ema_decay": 0.999},
}


def get_config() -> ConfigDict:
    config = study.get_config()
    config.name = "ablation_multiscale"
    config.split = "validation"  # the embedded clips have no others
    config.compare = "quickstart"
    config.figures.update(study.NO_REPORT_FIGURES)
    base = config.base = quickstart.get_config()
    base.num_epochs = 15
    base.eval.update(every=15, samples=1, best_of=0, lpips=True)
    base.checkpoint.keep = 1
    base.log.images = False
    config.variants = tuple(ROWS)
    config.changes = ConfigDict({name: unflatten_dict(changes, sep=".") for name, changes in ROWS.items()})
    return config
