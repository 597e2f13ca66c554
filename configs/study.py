"""The report's comparisons, each over several seeds: its three schedules, two decays, and draws per step.

    python study.py --config=configs/study.py --workdir=S

and, beside them, the three schedules with the KL per latent element and a small weight. Full size: meant
for accelerators, where runs of one shape train together. `base` is the config of a run; a variant is what it
changes of it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cvae_jax import defaults

# For studies of other questions than the report's: `config.figures.update(study.NO_REPORT_FIGURES)`.
NO_REPORT_FIGURES = {"forcing": "", "schedules": (), "schedules_scaled": (), "decays": ()}


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "study"
    config.seeds = 3  # runs of a variant; run k has seed base.seed + k
    config.split = "test"  # of the data set: what the table is measured on
    # How many runs of one shape (all but schedules, seeds and draws alike) train together on a device, as one
    # program. None: all of them on accelerators, one on a CPU.
    config.together = placeholder(int)
    config.base = defaults.get_config()
    config.base.data.name = "dancer"
    config.base.eval.best_of = 0
    config.base.checkpoint.save_every = 50  # figure 4 looks at epochs 50 and 100
    config.base.log.images = False

    # In the table's order; a subset can be chosen with --config.variants="('none','cyclical')".
    config.variants = (
        "none",
        "monotonic",
        "cyclical",
        "linear_decay",
        "step_draws",
        "none_scaled",
        "monotonic_scaled",
        "cyclical_scaled",
    )
    # About what a Gaussian likelihood with the variance of the prediction's error would give.
    per_element, weight = {"kl": "per_element"}, {"scale": 0.01}
    config.changes = ConfigDict(  # what each changes of the base
        {
            "none": {"beta": {"kind": "none"}},
            "monotonic": {"beta": {"kind": "monotonic"}},
            "cyclical": {"beta": {"kind": "cyclical"}},
            "linear_decay": {
                "beta": {"kind": "monotonic"},
                "teacher_forcing": {"kind": "linear", "step": 0.05},
            },
            "step_draws": {"beta": {"kind": "monotonic"}, "teacher_forcing": {"draw": "step"}},
            "none_scaled": {"beta": {"kind": "none"} | weight, "loss": per_element},
            "monotonic_scaled": {"beta": {"kind": "monotonic"} | weight, "loss": per_element},
            "cyclical_scaled": {"beta": {"kind": "cyclical"} | weight, "loss": per_element},
        }
    )
    config.compare = "none"  # the table gives each variant's difference to this one, seed by seed
    config.steps = False  # the table also gives the difference to the row above (an ablation)
    config.figures = ConfigDict()  # which variants each figure shows; () = no such figure
    config.figures.forcing = "monotonic"  # 1: teacher-forcing ratio and loss of this variant; '' = none
    config.figures.schedules = ("none", "monotonic", "cyclical")  # 2, 3, 4
    config.figures.schedules_scaled = ("none_scaled", "monotonic_scaled", "cyclical_scaled")  # once more
    config.figures.decays = ("monotonic", "linear_decay", "step_draws")  # 5
    config.figures.course = ()  # 7: the validation's metrics against the training clips seen
    return config
