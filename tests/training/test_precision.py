"""A whole training run in bfloat16, beside the same run in float32."""

import jax
import pytest
from helpers import read_rows

from configs import recommended
from cvae_jax.train import train

EPOCHS = 6


@pytest.mark.slow
def test_a_run_in_bfloat16_is_as_good_as_one_in_float32(tmp_path):
    """Within 0.1 dB on validation frames of a reduced dancer, both far above what they started from."""
    psnr = {}
    for precision in ("float32", "bfloat16"):
        config = recommended.get_config()
        config.precision, config.num_epochs = precision, EPOCHS
        config.data.name, config.data.clips_per_epoch = "dancer", 800
        config.data.dancer.update(train_frames=1500, validation_frames=100, test_sequences=0)
        config.data.cache = str(tmp_path / "data")
        config.model.multiscale.update(patch=2, widths=(16, 32, 48), latent_channels=4)
        config.eval.update(every=1, lpips=False)
        config.log.images = False
        train(config, tmp_path / precision, jax.local_devices()[:1])
        psnr[precision] = [row["val_psnr_posterior"] for row in read_rows(tmp_path / precision)]
    assert len(psnr["bfloat16"]) == EPOCHS
    assert psnr["float32"][-1] > psnr["float32"][0] + 1
    assert abs(psnr["bfloat16"][-1] - psnr["float32"][-1]) < 0.1, psnr
