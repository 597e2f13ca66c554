"""The ablation's first and last rows on the embedded real clips, and the residual output on top of them.

    python study.py --config=configs/ablation_real_clips.py --workdir=S

As many steps and as wide as configs/ablation.py, in frames of 64 x 32, scored on the validation clips.
"""

from ml_collections import ConfigDict

from configs import ablation

ROWS = ("report_exact", "positions")
FRAME_STEP = 4  # the clips have 31 to 84 training frames, of which a clip of six then spans 21


def get_config() -> ConfigDict:
    config = ablation.get_config()
    config.name = "ablation_real_clips"
    config.split = "validation"
    config.base.data.name = "real_clips"
    config.base.data.frame_size = (64, 32)
    changes = {name: config.changes[name].to_dict() for name in ROWS}
    changes["positions"]["data"]["frame_step"] = FRAME_STEP
    changes["residual"] = changes["positions"] | {
        "model": changes["positions"]["model"] | {"output": "residual"}
    }
    config.variants, config.changes = tuple(changes), ConfigDict(changes)
    return config
