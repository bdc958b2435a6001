"""The learning rate: closed forms, a warm-up that is honoured, a last iteration that reaches the final value."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_nas.config import Schedule
from oneshot_nas.train.schedule import learning_rate

EPOCHS, STEPS, PEAK = 10, 20, 0.5
LAST = EPOCHS * STEPS - 1
FORMS = {
    "cosine": lambda share: PEAK * (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: PEAK * (1 - share),
    "poly": lambda share: PEAK * (1 - share) ** 2,
    "constant": lambda share: PEAK,
}


@pytest.mark.parametrize("mode", FORMS)
@pytest.mark.parametrize("warmup", [0, 3])
def test_closed_forms(mode, warmup):
    lr = learning_rate(Schedule(mode=mode, warmup_epochs=warmup), PEAK, EPOCHS, STEPS)
    start = warmup * STEPS
    for iteration in range(start, LAST + 1):
        assert lr(iteration) == pytest.approx(FORMS[mode]((iteration - start) / (LAST - start)), abs=1e-12)


def test_the_warm_up_starts_at_warmup_lr_and_rises_linearly_to_the_peak():
    lr = learning_rate(Schedule(mode="cosine", warmup_epochs=2, warmup_lr=0.1), PEAK, EPOCHS, STEPS)
    assert lr(0) == 0.1
    assert lr(20) == pytest.approx(0.3)
    steps = [lr(iteration + 1) - lr(iteration) for iteration in range(40)]
    assert steps == pytest.approx([0.4 / 40] * 40)
    assert lr(40) == PEAK


def test_step_mode_decays_at_the_epochs_given_whatever_the_warm_up():
    for warmup in (0, 2):
        lr = learning_rate(Schedule(mode="step", warmup_epochs=warmup, decay=0.1, decay_epochs=(4, 7.5)), PEAK, EPOCHS, STEPS)
        values = [lr(iteration) for iteration in (4 * STEPS - 1, 4 * STEPS, 149, 150, LAST)]
        assert values == pytest.approx([0.5, 0.05, 0.05, 0.005, 0.005])


def test_exponential_mode_falls_in_steps_and_ends_constant():
    """BigNAS: times 0.97 every 2.4 epochs, held from 5 % of the start on."""
    schedule = Schedule(mode="exponential", decay=0.97, decay_every=2.4, least_share=0.05)
    lr = learning_rate(schedule, 0.256, 360, 5)
    assert [lr(i) for i in (0, 11, 12, 23, 24)] == pytest.approx([0.256, 0.256, 0.256 * 0.97, 0.256 * 0.97, 0.256 * 0.97**2])
    held = next(i for i in range(360 * 5) if lr(i) == 0.256 * 0.05)
    assert held == 12 * 99 and 0.97**99 < 0.05 < 0.97**98
    assert all(lr(i) == 0.256 * 0.05 for i in range(held, 360 * 5))


def test_cosine_with_a_constant_ending():
    free, held = (learning_rate(Schedule(mode="cosine", least_share=share), PEAK, EPOCHS, STEPS) for share in (0, 0.05))
    for iteration in range(LAST + 1):
        assert held(iteration) == max(free(iteration), 0.05 * PEAK)
    slow = learning_rate(Schedule(mode="cosine", warmup_epochs=2, warmup_lr=1e-4, least_share=0.05), PEAK, EPOCHS, STEPS)
    assert slow(0) == 1e-4  # the warm-up may begin lower


@pytest.mark.parametrize("mode", ["cosine", "linear", "poly"])
@pytest.mark.parametrize("warmup", [0, 0.5, 9.9])
def test_the_last_iteration_reaches_the_final_lr_exactly(mode, warmup):
    lr = learning_rate(Schedule(mode=mode, warmup_epochs=warmup, final_lr=1e-4), PEAK, EPOCHS, STEPS)
    assert lr(LAST) == pytest.approx(1e-4, abs=1e-15)


def test_a_run_of_one_step_trains_at_the_peak():
    assert learning_rate(Schedule(mode="linear"), PEAK, 1, 1)(0) == PEAK


@given(mode=st.sampled_from([*FORMS, "step", "exponential"]),
       epochs=st.integers(1, 20), steps=st.integers(1, 30),
       warmup=st.floats(0, 30), first=st.floats(0, 1), final=st.floats(0, 0.5))
def test_it_never_leaves_the_range_of_its_end_points(mode, epochs, steps, warmup, first, final):
    ends = {} if mode == "constant" else {"final_lr": final}
    ends |= {"warmup_lr": first} if warmup else {}
    ends |= {"decay_epochs": (1, 2)} if mode == "step" else {}
    schedule = Schedule(mode=mode, warmup_epochs=warmup, least_share=0.05, **ends)
    lr = learning_rate(schedule, PEAK, epochs, steps)
    values = [lr(iteration) for iteration in range(epochs * steps)]
    assert all(min(first, max(final, 0.05 * PEAK), PEAK) - 1e-12 <= value <= max(first, PEAK) + 1e-12 for value in values)
    assert values == [lr(iteration) for iteration in range(epochs * steps)]
