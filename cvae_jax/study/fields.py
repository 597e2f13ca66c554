"""The fields of a study's config, which the configs of studies are checked against."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cvae_jax import defaults


def get_config() -> ConfigDict:
    """Return a study without variants; `configs/study.py` explains the fields.

    `changes` is empty here, which leaves its fields open: `cvae_jax.study.run.plan` checks them.
    """
    config = ConfigDict()
    config.name = "study"
    config.seeds = 1
    config.split = "test"
    config.together = placeholder(int)
    config.base = defaults.get_config()
    config.variants = ()
    config.changes = ConfigDict()
    config.compare = ""
    config.steps = False
    config.figures = ConfigDict()
    config.figures.forcing = ""
    config.figures.schedules = ()
    config.figures.schedules_scaled = ()
    config.figures.decays = ()
    config.figures.course = ()
    return config.lock()
