import math
import random

import pytest

from engine.loss_watch import WINDOW, ExplodedError, LossWatch, NotANumberError


def noisy(mean: float, count: int, seed: int) -> list[float]:
    """Losses as skewed as those of a diffusion model."""
    chance = random.Random(seed)
    return [mean * chance.lognormvariate(0.0, 0.8) for _ in range(count)]


def watched(losses: list[float], watch: LossWatch | None = None) -> int:
    """The number of losses that passed before the watch spoke."""
    watch = watch or LossWatch()
    for number, loss in enumerate(losses):
        try:
            watch.check(loss, 1.0)
        except ExplodedError:
            return number
        watch.take_in(loss)
    return len(losses)


def test_an_exploding_loss_is_noticed_within_a_window():
    assert 200 <= watched(noisy(0.1, 200, 5) + noisy(1.5, 200, 6)) <= 200 + WINDOW


def test_losses_that_only_jump_by_chance_pass():
    assert all(watched(noisy(0.1, 1000, seed)) == 1000 for seed in range(20))


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.1, math.nan)])
def test_what_is_not_a_number_is_noticed_at_once(loss: float, norm: float):
    with pytest.raises(NotANumberError):
        LossWatch().check(loss, norm)


def test_a_gradient_may_overflow_under_fp16_and_a_loss_may_not():
    LossWatch().check(0.1, math.inf, norm_may_overflow=True)
    with pytest.raises(NotANumberError):
        LossWatch().check(math.inf, 1.0, norm_may_overflow=True)


def test_a_watch_that_was_put_away_notices_the_same():
    losses = noisy(0.1, 200, 5) + noisy(1.5, 200, 6)
    first = LossWatch()
    assert watched(losses[:150], first) == 150
    resumed = LossWatch()
    resumed.load_state_dict(first.state_dict())
    assert 150 + watched(losses[150:], resumed) == watched(losses)


def test_an_update_that_was_not_made_is_not_remembered():
    watch = LossWatch()
    assert watched(noisy(0.1, 100, 5), watch) == 100
    before = watch.state_dict()
    watch.check(0.2, 1.0)
    assert watch.state_dict() == before
    watch.take_in(0.2)
    assert watch.state_dict()["recent"][-1] == 0.2
