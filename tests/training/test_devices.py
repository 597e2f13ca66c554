"""One global batch on one device and on several: the same losses, gradients, statistics and parameters."""

import jax
import numpy as np
import pytest
from helpers import flat, pad_to_devices, random_batch, step_controls, tiny_config

from cvae_jax.config import Components
from cvae_jax.models.interface import init_variables
from cvae_jax.runtime.devices import Devices
from cvae_jax.training.state import TrainState
from cvae_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("small_model")

SIZE = (16, 16)  # of the smallest frames that every model takes
FORCED = ([1, 1, 1], [0, 0, 0], [1, 0, 1])
UNCUT = {"rollout.cut_feedback": False}
CVAE_UNCUT = UNCUT | {"model.cvae.cut_previous_features": False}
BFLOAT16 = {"precision": "bfloat16"}
CALIBRATED = {
    "loss.reconstruction": "calibrated",
    "loss.divide_recon_by_batch": False,
    "loss.kl": "sum",
    "loss.kl_balance": 0.8,
}
MULTISCALE = {"model.kind": "multiscale"}
FEEDBACK = MULTISCALE | {"model.multiscale.feedback": 1}
CRITIC = {"adversarial.weight": 0.1, "adversarial.widths": (4, 8)}
CHANGED = {"augment.shift": 2, "augment.mirror": True, "augment.zoom": 0.1, "augment.brightness": 0.1}
SVG = {"model.kind": "svg"}
VGG = SVG | {"model.svg.backbone": "vgg", "model.svg.width": 1, "model.svg.skip": "running_mean"}
FEW, ALL = (1, 4), (1, 2, 4, 8)


def slow(*values, name):
    return pytest.param(*values, marks=pytest.mark.slow, id=name)


@pytest.mark.parametrize(
    ("draw", "changes", "counts"),
    [
        pytest.param("epoch", {}, FEW, id="cvae"),
        slow("epoch", {}, ALL, name="cvae-all"),
        pytest.param("epoch", {"rollout.fold_time": True}, FEW, id="cvae-folding"),
        # One device's clips are all forced.
        pytest.param("example_step", {"rollout.fold_time": True}, FEW, id="cvae-by-clip"),
        pytest.param("epoch", CVAE_UNCUT, FEW, id="cvae-uncut"),
        pytest.param("epoch", BFLOAT16, FEW, id="cvae-bfloat16"),
        pytest.param("epoch", {"n_past": 3, "model.cvae.history": 2}, FEW, id="cvae-history"),
        pytest.param(
            "epoch",
            CALIBRATED | {"model.cvae.prior": "learned", "loss.free_bits": 1.0},
            FEW,
            id="cvae-calibrated",
        ),
        pytest.param("epoch", FEEDBACK | CRITIC, FEW, id="multiscale-critic"),
        slow("example_step", SVG, FEW, name="svg-by-clip"),
        slow("epoch", {}, ALL, name="cvae-whole-model"),
        slow("example_step", {}, ALL, name="cvae-whole-model-by-clip"),
        slow("epoch", CVAE_UNCUT, ALL, name="cvae-whole-model-uncut"),
        slow("epoch", BFLOAT16, ALL, name="cvae-whole-model-bfloat16"),
        slow("epoch", {"n_past": 3, "model.cvae.history": 2}, ALL, name="cvae-whole-model-history"),
        slow("epoch", MULTISCALE | CHANGED, ALL, name="multiscale-augmented"),
        slow("epoch", MULTISCALE | CALIBRATED, ALL, name="multiscale-calibrated"),
        slow("epoch", MULTISCALE | BFLOAT16, ALL, name="multiscale-bfloat16"),
        slow("epoch", MULTISCALE | {"optimizer.kind": "muon"}, ALL, name="multiscale-muon"),
        slow("epoch", FEEDBACK | UNCUT, ALL, name="multiscale-uncut"),
        slow("example_step", FEEDBACK | {"n_past": 2}, ALL, name="multiscale-by-clip"),
        slow("epoch", FEEDBACK | CRITIC, ALL, name="multiscale-critic-all"),
        slow("epoch", SVG, ALL, name="svg"),
        slow("example_step", SVG | UNCUT | {"n_past": 2}, ALL, name="svg-uncut-by-clip"),
        slow("epoch", SVG | BFLOAT16, ALL, name="svg-bfloat16"),
        slow("epoch", SVG | {"model.svg.prior": "fixed"}, ALL, name="svg-fixed-prior"),
        slow("epoch", VGG, ALL, name="svg-vgg"),
    ],
)
def test_the_number_of_devices_does_not_matter(draw, changes, counts):
    """Six clips on one device and, filled up, on several; of eight devices, two have no clip at all.

    Tolerances: summing in another order changes losses and the gradient's norm by less than 1e-4 relative.
    Adam amplifies what rounding changes in the smallest gradients, so all parameters together are held to 2 %
    of the distance that they moved in three steps; with the large eps set here, parameters whose gradient is
    only rounding noise hardly move. bfloat16 has 8 bits, and compiled programs of different batch sizes round
    in different places: 0.5 % of the first step's losses and gradients, where parameters are equal. After it,
    the parameters are held to 10 % of the distance; losses may differ by 1 %, and the norms of each module's
    gradient by 3 %, because they change much more than the loss when parameters move. A module with less than
    a hundredth of the whole gradient is held to the same share of a hundredth.
    """
    config = tiny_config()
    config.teacher_forcing.draw = draw
    config.optimizer.eps = 1e-5
    config.update_from_flattened_dict(changes)
    parts = Components.build(config)
    variables = init_variables(parts.model, 0, SIZE)
    batch = random_batch(6, 4, SIZE)
    if draw == "example_step":
        batch["forced"] = np.random.default_rng(1).random((6, 3)) < 0.5
        batch["forced"][:2] = True  # all that the first of four devices has
    is_narrow = config.precision == "bfloat16"
    of_first, of_losses, of_gradients, of_distance = (
        (5e-3, 1e-2, 3e-2, 0.1) if is_narrow else (1e-4, 1e-4, 1e-4, 0.02)
    )
    histories, statistics, ends = {}, {}, {}
    for count in counts:
        devices = Devices(jax.local_devices()[:count])
        step = devices.map_update(make_train_step(*parts.compiled, augmentation=parts.augmentation))
        state = TrainState.create(variables, parts.optimizer)
        histories[count] = []
        for forced in FORCED:
            controls = step_controls(None if draw == "example_step" else forced)
            state, metrics = step(state, devices.split(pad_to_devices(batch, count)), controls)
            histories[count].append({name: float(value) for name, value in metrics.items()})
            if len(histories[count]) == 1:  # before rounding has moved the parameters apart
                statistics[count] = jax.device_get(state.batch_stats)
        ends[count] = jax.device_get(state.params)
    moved = np.linalg.norm(flat(ends[1]) - flat(variables["params"]))
    for count in counts[1:]:
        for number, (one, several) in enumerate(zip(histories[1], histories[count], strict=True)):
            assert several.keys() == one.keys()
            for name, value in one.items():
                is_gradient = name.startswith("grad_norm/")
                bound = (of_gradients if is_gradient else of_losses) if number else of_first
                least = bound * one["grad_norm"] / 100 if is_narrow and is_gradient else 1e-7
                assert several[name] == pytest.approx(value, rel=bound, abs=least), (count, number, name)
        assert np.linalg.norm(flat(ends[count]) - flat(ends[1])) <= of_distance * moved
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=of_losses, atol=of_losses / 100),
            statistics[1],
            statistics[count],
        )
