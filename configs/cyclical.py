"""The report's run with beta schedule 'cyclical', report-exact.

python train.py --config=configs/cyclical.py --config.data.name=frame_folder --config.data.dir=D
"""

from cvae_jax import defaults


def get_config():
    config = defaults.get_config()
    config.name = "cyclical"
    config.beta.kind = "cyclical"
    return config
