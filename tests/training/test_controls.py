"""What reaches the compiled step: schedules evaluated step by step, and the decisions drawn from them."""

import numpy as np
import pytest

from cvae_jax.schedules import BetaSchedule, LearningRate, TeacherForcing
from cvae_jax.training.controls import Controls

STEPS = 40  # per epoch


def controls(n_past=2, **forcing):
    return Controls(
        BetaSchedule(),
        TeacherForcing(**forcing),
        LearningRate(),
        seed=3,
        num_epochs=2,
        steps_per_epoch=STEPS,
        batch_size=50,
        clip_length=9,
        n_past=n_past,
    )


@pytest.mark.parametrize("draw", ["step", "example_step"])
def test_inverse_sigmoid_falls_within_an_epoch_and_so_does_what_is_drawn(draw):
    schedule = controls(kind="inverse_sigmoid", k=10.0, start=0, draw=draw)
    ratios, shares = [], []
    for epoch in range(2):
        for number in range(STEPS):
            at = schedule.at(epoch, number)
            forced = at.traced["forced"] if at.by_clip is None else at.by_clip.T
            assert forced[:2].all()  # steps from a context frame
            ratios.append(at.logged["ratio"])
            shares.append(forced[2:].mean())
    updates = np.arange(2 * STEPS)
    np.testing.assert_allclose(ratios, 10 / (10 + np.exp(updates / 10)))
    first, last = np.mean(shares[:10]), np.mean(shares[-10:])
    assert first == pytest.approx(np.mean(ratios[:10]), abs=0.15) and last < 0.05


def test_the_other_kinds_change_from_epoch_to_epoch_only():
    schedule = controls(kind="exponential", initial=0.8, decay=0.5, start=0)
    ratios = [schedule.at(epoch, number).logged["ratio"] for epoch in (0, 1) for number in (0, STEPS - 1)]
    np.testing.assert_allclose(ratios, [0.8, 0.8, 0.4, 0.4])


@pytest.mark.parametrize(
    ("forcing", "throughout"),
    [
        (dict(kind="constant", initial=1.0), True),
        (dict(kind="constant", initial=1), True),
        (dict(kind="constant", initial=0.0, draw="example_step"), False),
        (dict(kind="constant", initial=0.5), None),
        (dict(kind="exponential", initial=1.0), None),
        (dict(kind="linear", initial=1.0), None),
        (dict(kind="inverse_sigmoid", draw="step"), None),
    ],
)
def test_forcing_throughout_is_what_is_drawn(forcing, throughout):
    schedule = controls(**forcing)
    assert schedule.throughout is throughout
    if throughout is not None:
        at = schedule.at(1, 3)
        forced = at.traced["forced"] if at.by_clip is None else at.by_clip.T
        assert forced[:2].all() and (forced[2:] == throughout).all()
    assert controls(n_past=8, **forcing).throughout is True  # all 8 steps see context frames
