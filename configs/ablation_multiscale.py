"""Ablation of the demo's recipe plus free bits, on the embedded clips: one change per variant.

    make env METRICS=1
    python study.py --config=configs/ablation_multiscale.py --workdir=S

Every run takes a third of the demo's steps.
"""

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from configs import quickstart, study

# For the report's beta schedules. Compare them with `no_free_bits`, where beta is 1 throughout.
ANNEALED = {"loss.free_bits": 0.0, "beta.cycle_length": 4.0}
# Each variant and the fields it changes.
ROWS: dict[str, dict] = {
    "base": {},
    "adam": {"optimizer.kind": "adam"},
    "no_latent": {"model.multiscale.latent_channels": 0},
    "no_free_bits": {"loss.free_bits": 0.0},
    "posterior_alone": {"model.multiscale.prior_share": 0.0},
    "monotonic": {"beta.kind": "monotonic"} | ANNEALED,
    "cyclical": {"beta.kind": "cyclical"} | ANNEALED,
    "no_shift": {"augment.shift": 0},
    "no_mirror": {"augment.mirror": False},
    "lpips": {"loss.lpips": 0.02},
    # A critic needs two successive frames. Compare `critic` and `critic_10` with `two_frames`.
    "two_frames": {"clip_length": 3},
    "critic": {"clip_length": 3, "adversarial.weight": 1.0},
    "critic_10": {"clip_length": 3, "adversarial.weight": 10.0},
}


def get_config() -> ConfigDict:
    config = study.get_config()
    config.name = "ablation_multiscale"
    config.split = "validation"  # the embedded clips have no others
    config.compare = "base"
    config.figures.update(study.NO_REPORT_FIGURES)
    base = config.base = quickstart.get_config()
    base.num_epochs = 8
    base.learning_rate.warmup_epochs = 1  # a twentieth of 8 epochs rounds down to none
    base.loss.free_bits = 24.0  # as in recommended.py
    base.eval.update(every=8, samples=1, best_of=0, lpips=True)
    base.eval.noise_correlation = 0.0  # a mean over the frames of a clip varies less with independent draws
    base.checkpoint.keep = 1
    base.log.images = False
    config.variants = tuple(ROWS)
    config.changes = ConfigDict({name: unflatten_dict(changes, sep=".") for name, changes in ROWS.items()})
    return config
