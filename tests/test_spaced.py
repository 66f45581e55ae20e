"""Architectures at even steps of MACs, drawn where there are too many to list."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sumnas.benchmark import pool
from sumnas.benchmark.settings import PoolSettings
from sumnas.errors import UserError
from sumnas.recipe import Recipe
from sumnas.sampling import CannotSample
from sumnas.spaced import _probabilities, _tilt, draw_spaced
from sumnas.spaces import mobilenet
from sumnas.spaces.mobilenet import MobileNet
from tests.chains import space

RECIPE = Recipe.model_validate(
    {
        "epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0,
        "schedule": "cosine", "label_smoothing": 0, "augmentation": {"flip": False},
    }
)  # fmt: skip


def paper() -> MobileNet:
    return mobilenet.build(mobilenet.Settings(name="mobilenet", image_size=224, image_channels=3, classes=1000))


def settings(count: int, seed: int = 0, strategy: str = "macs") -> PoolSettings:
    return PoolSettings.model_validate(
        {"architectures": count, "strategy": strategy, "seeds": [0], "seed": seed, "recipe": RECIPE.model_dump()}
    )


def test_twenty_of_the_papers_space_lie_at_even_steps() -> None:
    of = paper()
    drawn = pool.draw(of, settings(20))
    macs = np.array([of.macs(a) for a in drawn])
    assert len(set(drawn)) == 20 and drawn[0] == (0,) * 19 and drawn[-1] == (5,) * 19
    steps = np.linspace(247.785728, 558.71744, 20)  # the smallest and the largest there are (method sec. 9)
    assert np.abs(macs - steps).max() < 0.01 * (steps[1] - steps[0])
    assert pool.draw(of, settings(20)) == drawn != pool.draw(of, settings(20, seed=1))
    # A uniform draw is nowhere near that: it crowds around the middle.
    uniform = np.array([of.macs(a) for a in pool.draw(of, settings(20, strategy="uniform"))])
    assert np.ptp(uniform) < 0.7 * np.ptp(macs)


@pytest.mark.parametrize("target", [0.01, 0.3, 0.5, 0.77, 0.999])
def test_the_mean_of_the_draws_is_the_target_and_the_entropy_the_largest(target: float) -> None:
    costs = np.random.default_rng(0).uniform(0, 9, (3, 4))
    low, high = costs.min(1).sum(), costs.max(1).sum()
    wanted = low + target * (high - low)
    p = _probabilities(costs, _tilt(costs, wanted))
    assert (p * costs).sum() == pytest.approx(wanted, rel=1e-6)
    # Largest entropy: along no direction that keeps sums and mean does it rise to first order.
    constraints = np.vstack([np.kron(np.eye(3), np.ones(4)), costs.ravel()])
    free = np.linalg.svd(constraints)[2][4:]
    assert np.abs(free @ np.log(p).ravel()).max() < 1e-6 * max(1.0, float(np.abs(np.log(p)).max()))


def test_a_small_space_gives_what_it_has_and_says_when_that_is_too_little() -> None:
    costs = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]])
    rng = np.random.default_rng(0)
    every = draw_spaced(costs, 5.0, 8, rng, lambda a: True)
    assert sorted(every) == list(itertools.product(range(2), repeat=3))
    assert [float(costs[range(3), a].sum()) for a in every] == list(range(8))
    with pytest.raises(CannotSample, match="9 architectures asked for; near .* ask for fewer"):
        draw_spaced(costs, 5.0, 9, rng, lambda a: True)
    assert (1, 1, 1) not in draw_spaced(np.zeros((3, 2)), 5.0, 4, rng, lambda a: a != (1, 1, 1))


def test_a_pool_takes_the_strategy_from_its_settings() -> None:
    of = space()
    with pytest.raises(UserError, match=r"benchmark.pool.architectures = 2000: 2000 architectures asked for"):
        pool.draw(of, settings(2000))
    with pytest.raises(ValueError, match="strategy macs is for a number of architectures"):
        PoolSettings.model_validate(
            {"architectures": ["e3k3", "e3k5"], "strategy": "macs", "seeds": [0], "recipe": RECIPE.model_dump()}
        )
    assert len(pool.share(pool.draw(of, settings(20)), 1, 3)) == 7
