"""Schedules: boundaries, known values, refusals, and draws that depend on their address only."""

import math
from functools import partial

import numpy as np
import optax
import pytest

from cvae_jax.runtime.errors import UserError
from cvae_jax.schedules import (
    DRAW_KINDS,
    BetaSchedule,
    LearningRate,
    TeacherForcing,
    teacher_forcing_draw,
)


def beta(schedule, epoch, step=0, num_epochs=100, steps_per_epoch=10):
    return schedule.value(epoch=epoch, step=step, num_epochs=num_epochs, steps_per_epoch=steps_per_epoch)


# Report form of beta


@pytest.mark.parametrize("epoch", [0, 1, 9, 10, 99])
def test_beta_none_is_one(epoch):
    assert beta(BetaSchedule(kind="none"), epoch) == 1.0


@pytest.mark.parametrize(
    ("epoch", "monotonic", "cyclical"),
    [
        (0, 0.0, 0.0),
        (1, 0.2, 0.2),
        (4, 0.8, 0.8),
        (5, 1.0, 1.0),  # L R: the top
        (9, 1.0, 1.0),
        (10, 1.0, 0.0),  # L: only the cyclical one restarts
        (11, 1.0, 0.2),
        (15, 1.0, 1.0),
        (20, 1.0, 0.0),
        (99, 1.0, 1.0),
    ],
)
def test_report_beta(epoch, monotonic, cyclical):
    assert beta(BetaSchedule(kind="monotonic"), epoch) == pytest.approx(monotonic)
    assert beta(BetaSchedule(kind="cyclical"), epoch) == pytest.approx(cyclical)


def test_report_beta_with_ratio_one_reaches_the_top_only_after_the_cycle():
    assert beta(BetaSchedule(kind="monotonic", ratio=1.0), 9) == pytest.approx(0.9)
    assert beta(BetaSchedule(kind="monotonic", ratio=1.0), 10) == 1.0
    assert beta(BetaSchedule(kind="cyclical", ratio=1.0), 10) == 0.0


def test_report_beta_ignores_the_step_and_the_length_of_the_run():
    schedule = BetaSchedule(kind="cyclical", cycle_length=4)
    assert beta(schedule, 5, step=7, num_epochs=8) == beta(schedule, 5, step=99) == 0.5


def test_scale_and_floor():
    schedule = BetaSchedule(kind="cyclical", scale=0.1, floor=0.03)
    assert [beta(schedule, e) for e in (0, 1, 2, 5)] == pytest.approx([0.03, 0.03, 0.04, 0.1])
    assert beta(BetaSchedule(kind="none", scale=0.0), 3) == 0.0


# Form of Fu et al.


def fu(index, unit="iteration", **fields):
    schedule = BetaSchedule(kind="fu_cyclical", unit=unit, **fields)
    if unit == "iteration":
        return beta(schedule, 0, step=index, num_epochs=4, steps_per_epoch=10)
    return beta(schedule, index, num_epochs=40)


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_fu_cyclical_known_points(unit):
    # T = 40, M = 4: cycles of 10 units, rising over the first 5.
    assert [fu(i, unit) for i in (0, 1, 4, 5, 9, 10, 11, 39)] == pytest.approx(
        [0.0, 0.2, 0.8, 1.0, 1.0, 0.0, 0.2, 1.0]
    )


def test_fu_monotonic_is_one_cycle_with_a_quarter_of_rise():
    one = partial(fu, num_cycles=1, ratio=0.25)
    assert [one(i) for i in (0, 5, 10, 11, 39)] == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0])


def test_fu_cycles_that_do_not_divide_the_run():
    # T = 10, M = 4: positions restart every ceil(2.5) = 3 units and are measured against 2.5.
    schedule = BetaSchedule(kind="fu_cyclical", unit="epoch")
    values = [beta(schedule, e, num_epochs=10) for e in range(10)]
    assert values == pytest.approx([0.0, 0.8, 1.0] * 3 + [0.0])


def test_fu_ramps():
    sigmoid = partial(fu, ramp="sigmoid")
    assert [sigmoid(i) for i in (0, 5, 6)] == pytest.approx(
        [1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6)), 1.0]
    )
    cosine = partial(fu, ramp="cosine")
    assert [cosine(i) for i in (0, 1, 5, 6)] == pytest.approx(
        [0.0, 0.5 - 0.5 * math.cos(0.2 * math.pi), 1.0, 1.0]
    )
    assert fu(1, num_cycles=10, ramp="sigmoid") == pytest.approx(0.5)  # half-way up the rise
    assert fu(1, num_cycles=10, ramp="cosine") == pytest.approx(0.5)


def test_fu_iteration_and_epoch_differ_within_an_epoch():
    schedule = BetaSchedule(kind="fu_cyclical", unit="iteration", num_cycles=1)
    assert beta(schedule, 0, 3, num_epochs=2) < beta(schedule, 0, 4, num_epochs=2)
    schedule = BetaSchedule(kind="fu_cyclical", unit="epoch", num_cycles=1)
    assert beta(schedule, 0, 3, num_epochs=2) == beta(schedule, 0, 4, num_epochs=2)


def test_fu_refuses_a_run_shorter_than_its_cycles():
    schedule = BetaSchedule(kind="fu_cyclical", unit="epoch", num_cycles=4)
    assert beta(schedule, 3, num_epochs=4) == 0.0
    with pytest.raises(UserError, match="config.beta.num_cycles is 4 but the run has only 3 epoch"):
        beta(schedule, 0, num_epochs=3)


# Teacher forcing


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.95), (10, 0.95), (11, 0.95**2), (12, 0.95**3), (99, 0.95**90)],
)
def test_exponential_forcing_is_the_reports_equation(epoch, expected):
    assert TeacherForcing().ratio(epoch) == pytest.approx(expected)


def test_linear_and_constant_forcing():
    linear = TeacherForcing(kind="linear", initial=1.0, step=0.1, start=10)
    assert [linear.ratio(e) for e in (0, 10, 11, 15, 20, 21, 99)] == pytest.approx(
        [1.0, 1.0, 0.9, 0.5, 0.0, 0.0, 0.0]
    )
    assert linear.ratio(20) >= 0.0
    constant = TeacherForcing(kind="constant", initial=0.3)
    assert constant.ratio(0) == constant.ratio(99) == 0.3


def test_forcing_without_decay_of_zero_to_the_power_of_zero():
    forcing = TeacherForcing(initial=0.5, decay=0.0, start=0)
    assert [forcing.ratio(e) for e in (0, 1)] == [0.5, 0.0]


def draw(kind, epoch=3, batch=5, ratio=0.5, seed=7, num_steps=15, batch_size=8):
    return teacher_forcing_draw(seed, epoch, batch, ratio, kind, num_steps, batch_size)


@pytest.mark.parametrize("kind", DRAW_KINDS)
def test_draw_is_pure_boolean_and_of_the_stated_shape(kind):
    first = draw(kind)
    assert first.dtype == np.bool_
    assert first.shape == ((15, 8) if kind == "example_step" else (15,))
    np.random.seed(0)  # the global state of NumPy does not matter
    draw(kind, epoch=4)
    np.testing.assert_array_equal(first, draw(kind))


@pytest.mark.parametrize("kind", DRAW_KINDS)
def test_draw_at_the_ends_of_the_ratio(kind):
    for epoch in range(50):
        assert draw(kind, epoch=epoch, ratio=1.0).all()
        assert not draw(kind, epoch=epoch, ratio=0.0).any()


def test_a_higher_ratio_only_adds():
    low, high = draw("example_step", ratio=0.3), draw("example_step", ratio=0.7)
    assert (high | ~low).all() and high.sum() > low.sum()


def test_what_each_kind_shares():
    def distinct(kind, axis):
        values = np.stack([draw(kind, num_steps=60, **{axis: i}) for i in range(64)])
        return len(np.unique(values, axis=0))

    # "epoch" and "batch" have one decision for all the steps of a clip: all true, or all false.
    assert distinct("epoch", "epoch") == 2 and distinct("epoch", "batch") == 1
    assert distinct("batch", "epoch") == 2 and distinct("batch", "batch") == 2
    for kind in ("epoch", "batch"):
        assert all(len(set(draw(kind, epoch=epoch).tolist())) == 1 for epoch in range(64))
    for kind in ("step", "example_step"):
        assert distinct(kind, "epoch") == distinct(kind, "batch") == 64


@pytest.mark.parametrize("address", ["seed", "epoch", "batch"])
def test_neighbouring_addresses_are_independent(address):
    values = [draw("step", num_steps=2000, **{address: value}) for value in (0, 1, 2, 2**32, 2**32 + 1)]
    for i, one in enumerate(values):
        for other in values[:i]:
            # Agreement of two independent fair draws: standard deviation 0.011.
            assert abs((one == other).mean() - 0.5) < 0.06


def test_kinds_and_addresses_do_not_alias():
    step = draw("step", num_steps=2000, epoch=1, batch=2)
    swapped = draw("step", num_steps=2000, epoch=2, batch=1)
    example = draw("example_step", num_steps=2000, epoch=1, batch=2, batch_size=1)[:, 0]
    assert abs((step == swapped).mean() - 0.5) < 0.06
    assert abs((step == example).mean() - 0.5) < 0.06


def test_clips_keep_their_draw_in_a_larger_batch():
    np.testing.assert_array_equal(
        draw("example_step", batch_size=3), draw("example_step", batch_size=20)[:, :3]
    )


def test_inverse_sigmoid_falls_with_the_updates():
    forcing = TeacherForcing(kind="inverse_sigmoid", k=900, start=2, draw="step")
    at = lambda step: forcing.ratio(step // 100, step, 100)  # noqa: E731
    assert at(0) == at(200) == 900 / 901
    assert at(200 + 900) == pytest.approx(900 / (900 + math.e))
    assert at(200 + 6122) == pytest.approx(0.5, abs=1e-3)  # 900 log 900 updates
    assert 0 <= at(10**7) < 1e-100
    falling = [at(step) for step in range(200, 12_000, 50)]
    assert all(a > b for a, b in zip(falling, falling[1:]))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.95])
def test_frequency_of_the_draws(ratio):
    by_epoch = np.mean([draw("epoch", epoch=e, ratio=ratio)[0] for e in range(4000)])
    by_batch = np.mean([draw("batch", batch=b, ratio=ratio)[0] for b in range(4000)])
    by_clip = draw("example_step", ratio=ratio, num_steps=20, batch_size=200)
    assert [by_epoch, by_batch, by_clip.mean()] == pytest.approx([ratio] * 3, abs=0.04)
    assert by_clip.mean(axis=1) == pytest.approx(np.full(20, ratio), abs=0.15)  # every step
    assert np.unique(by_clip.T, axis=0).shape[0] > 20  # clips differ from each other


# Learning rate


def test_report_learning_rate_per_epoch():
    schedule = LearningRate()
    values = [
        schedule.value(epoch=e, step=146 * e + 5, num_epochs=100, steps_per_epoch=146) for e in range(100)
    ]
    expected = [1e-6 + 0.5 * (1e-4 - 1e-6) * (1 + math.cos(math.pi * e / 100)) for e in range(100)]
    assert values == pytest.approx(expected, rel=1e-5)  # float32 of optax
    assert values[0] == pytest.approx(1e-4, rel=1e-7) and values[50] == pytest.approx(5.05e-5)
    assert values[99] == pytest.approx(1.02443e-6, rel=1e-5)


def test_learning_rate_per_step_is_optax_cosine():
    schedule = LearningRate(peak=1e-3, end=1e-5, per="step")
    reference = optax.cosine_decay_schedule(1e-3, decay_steps=60, alpha=1e-2)
    for step in range(61):
        value = schedule.value(epoch=step // 20, step=step, num_epochs=3, steps_per_epoch=20)
        assert value == pytest.approx(float(reference(step)), rel=1e-5)


@pytest.mark.parametrize(("per", "units"), [("epoch", 1), ("step", 7)])
def test_warm_up_is_optax_warm_up_from_above_zero(per, units):
    schedule = LearningRate(peak=1e-3, end=1e-5, per=per, warmup_epochs=3)
    warmup, total = 3 * units, 10 * units
    reference = optax.warmup_cosine_decay_schedule(
        1e-3 / (warmup + 1), 1e-3, warmup_steps=warmup, decay_steps=total, end_value=1e-5
    )
    values = []
    for step in range(70):
        value = schedule.value(epoch=step // 7, step=step, num_epochs=10, steps_per_epoch=7)
        assert value == pytest.approx(float(reference(step // (7 // units))), rel=1e-5)
        values.append(value)
    assert min(values) > 0 and max(values) == values[21] == pytest.approx(1e-3, rel=1e-7)


def test_learning_rate_stays_at_the_end_after_the_run():
    value = partial(LearningRate().value, step=0, num_epochs=100, steps_per_epoch=1)
    assert value(epoch=100) == pytest.approx(1e-6, rel=1e-9) == value(epoch=130)


def test_warm_up_must_end_before_the_run():
    at = partial(LearningRate(warmup_epochs=2).value, epoch=0, step=0, steps_per_epoch=1)
    assert at(num_epochs=3) == pytest.approx(1e-4 / 3)
    with pytest.raises(UserError, match="config.learning_rate.warmup_epochs is 2 but the run has"):
        at(num_epochs=2)


# Refusals

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("schedule", "section", "field", "values"),
    [
        (BetaSchedule, "beta", "kind", ["cyclic", None, 1]),
        (BetaSchedule, "beta", "unit", ["step"]),
        (BetaSchedule, "beta", "ramp", ["square"]),
        (BetaSchedule, "beta", "ratio", [0, -0.5, 1.01, NAN, True, "0.5", None]),
        (BetaSchedule, "beta", "cycle_length", [0, -1, NAN, INF, True, "10"]),
        (BetaSchedule, "beta", "num_cycles", [0, -1, 1.5, True, NAN, None]),
        (BetaSchedule, "beta", "scale", [-0.1, NAN, INF, True]),
        (BetaSchedule, "beta", "floor", [-0.1, 1.1, NAN, False]),
        (TeacherForcing, "teacher_forcing", "kind", ["cosine", None]),
        (TeacherForcing, "teacher_forcing", "draw", ["frame", True]),
        (TeacherForcing, "teacher_forcing", "initial", [-0.1, 1.1, NAN, True]),
        (TeacherForcing, "teacher_forcing", "decay", [-0.1, 1.1, NAN, True]),
        (TeacherForcing, "teacher_forcing", "step", [-0.1, NAN, INF, True]),
        (TeacherForcing, "teacher_forcing", "start", [-1, NAN, INF, True]),
        (TeacherForcing, "teacher_forcing", "k", [0, 0.5, NAN, INF, True]),
        (LearningRate, "learning_rate", "per", ["iteration"]),
        (LearningRate, "learning_rate", "peak", [0, -1e-3, NAN, INF, True]),
        (LearningRate, "learning_rate", "end", [-1e-9, 2e-4, NAN, True]),
        (LearningRate, "learning_rate", "warmup_epochs", [-1, 0.5, True, NAN]),
    ],
)
def test_refusals_name_the_field_and_the_value(schedule, section, field, values):
    for value in values:
        with pytest.raises(UserError) as caught:
            schedule(**{field: value})
        message = str(caught.value)
        assert message.startswith(f"config.{section}.{field} is {value!r}; ")
        assert "set it to" in message or "choose one of" in message


def test_values_at_the_edge_of_their_range_are_accepted():
    BetaSchedule(ratio=1, cycle_length=0.5, num_cycles=1, scale=0.0, floor=0)
    BetaSchedule(scale=np.float32(0.5), floor=0.5, num_cycles=np.int64(2))
    TeacherForcing(initial=0, decay=1, step=0, start=0)
    LearningRate(peak=1e-4, end=1e-4)
    LearningRate(peak=1e-4, end=0.0, warmup_epochs=0)


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(UserError, match="choose one of none, monotonic, cyclical, fu_cyclical."):
        BetaSchedule(kind="linear")
