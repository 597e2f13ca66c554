"""The first and the last two rows of the ablation on the embedded real clips.

    python study.py --config=configs/ablation_real_clips.py --workdir=S

As many steps and as wide as configs/ablation.py, in frames of 64 x 32, scored on the validation clips.
"""

from ml_collections import ConfigDict

from configs import ablation

ROWS = ("report_exact", "positions", "residual")
FRAME_STEP = 4  # the clips have 40 to 80 training frames, of which a clip of six then spans 21


def get_config() -> ConfigDict:
    config = ablation.get_config()
    config.name = "ablation_real_clips"
    config.split = "validation"
    config.base.data.name = "real_clips"
    config.base.data.frame_size = (64, 32)
    changes = {name: config.changes[name].to_dict() for name in ROWS}
    for name in ROWS[1:]:
        changes[name]["data"]["frame_step"] = FRAME_STEP
    config.variants, config.changes = ROWS, ConfigDict(changes)
    return config
