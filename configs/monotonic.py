"""The report's run with beta schedule 'monotonic', report-exact.

python train.py --config=configs/monotonic.py --config.data.name=frame_folder --config.data.dir=D
"""

from cvae_jax import defaults


def get_config():
    config = defaults.get_config()
    config.name = "monotonic"
    config.beta.kind = "monotonic"
    return config
