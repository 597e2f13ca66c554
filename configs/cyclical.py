"""The report's run with beta schedule 'cyclical', report-exact.

python train.py --config=configs/cyclical.py --config.data.name=frame_folder --config.data.dir=D
"""

from configs import default


def get_config():
    config = default.get_config()
    config.name = "cyclical"
    config.beta.kind = "cyclical"
    return config
