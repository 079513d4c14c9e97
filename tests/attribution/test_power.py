import math

import numpy as np
import pytest

from attribution.bank import RetrainBank
from attribution.power import cheapest_bank, expected_lds, lds_pilot, lds_power
from schemas.errors import InfeasibleProblem, ShapeError

PLAIN = {"lds": 0.0, "query_correlation": 0.0, "query_sd": 0.0}


def bank_of(tau: np.ndarray, masks: int, seeds: int, *, noise: float, key: int = 0) -> RetrainBank:
    rng = np.random.default_rng(key)
    n = tau.shape[1]
    chosen = np.repeat(np.argsort(rng.random((masks, n)), axis=1) < n // 2, seeds, axis=0)
    outputs = chosen @ tau.T + noise * rng.standard_normal((len(chosen), len(tau)))
    return RetrainBank(masks=chosen, outputs=outputs, seeds=np.arange(len(chosen)))


def test_independent_queries_of_no_effect_have_the_null_spread() -> None:
    """One Spearman of nothing has variance 1/(M - 1); 50 independent ones a fiftieth of it."""
    half = lds_power(400, 1, 50, **PLAIN)
    assert half == pytest.approx(1.96 * math.sqrt(1 / 399 / 50), rel=0.02)


def test_more_queries_do_not_help_where_queries_are_alike() -> None:
    alike = PLAIN | {"query_correlation": 1.0}
    one, many = lds_power(60, 2, 1, **alike), lds_power(60, 2, 1_000, **alike)
    assert one == pytest.approx(many, rel=0.01)


@pytest.mark.parametrize("better", [{"n_masks": 90}, {"n_seeds": 4}, {"n_query": 150}])
def test_more_of_anything_narrows_the_interval(better: dict[str, int]) -> None:
    asked = {"n_masks": 60, "n_seeds": 2, "n_query": 100}
    assert lds_power(**(asked | better)) < lds_power(**asked)


@pytest.mark.parametrize("half_width", [0.06, 0.04, 0.03])
def test_the_cheapest_bank_reaches_the_width_and_no_cheaper_one_does(half_width: float) -> None:
    given = {"query_correlation": 0.05, "query_sd": 0.1}
    masks, seeds = cheapest_bank(half_width, 200, **given)
    assert lds_power(masks, seeds, 200, **given) <= half_width
    for repeats in (2, 3, 4, 5):
        fewer = (masks * seeds - 1) // repeats
        assert fewer < 4 or lds_power(fewer, repeats, 200, **given) > half_width


def test_a_width_that_the_queries_themselves_forbid_is_refused() -> None:
    with pytest.raises(InfeasibleProblem, match="more queries"):
        cheapest_bank(0.01, 20, query_sd=0.2)


def test_a_perfect_attributor_is_expected_at_the_ceiling() -> None:
    assert expected_lds(1.0, 0.5, 1) == pytest.approx(6 / np.pi * np.arcsin(np.sqrt(0.5) / 2))
    assert expected_lds(1.0, 1.0, 3) == pytest.approx(1.0)


def test_a_pilot_finds_the_reliability_and_the_score_that_were_planted() -> None:
    rng = np.random.default_rng(0)
    tau = rng.standard_normal((40, 100))
    # Sums over half-subsets have variance 25 a unit: noise of the same size halves reliability.
    bank = bank_of(tau, 150, 2, noise=5.0)
    pilot = lds_pilot(bank, tau + rng.standard_normal(tau.shape))
    assert pilot.reliability == pytest.approx(0.5, abs=0.05)
    # Scores correlate 1/sqrt(2) with the effects: Spearman's is 0.69.
    assert pilot.lds == pytest.approx(6 / np.pi * np.arcsin(np.sqrt(0.5) / 2), abs=0.03)
    assert pilot.query_correlation < 0.03
    assert pilot.query_sd < 0.06


def test_the_errors_of_queries_correlate_by_the_square_of_what_their_outputs_do() -> None:
    rng = np.random.default_rng(1)
    common, own = rng.standard_normal((1, 200)), rng.standard_normal((30, 200))
    tau = math.sqrt(0.7) * common + math.sqrt(0.3) * own
    bank = bank_of(tau, 150, 2, noise=0.5)
    assert lds_pilot(bank).query_correlation == pytest.approx(0.49, abs=0.08)


def test_outputs_that_never_vary_make_no_pilot_fail() -> None:
    tau = np.random.default_rng(3).standard_normal((5, 40))
    bank = bank_of(tau, 30, 2, noise=1.0)
    bank.outputs[:, 2] = 1.5
    for pilot in (lds_pilot(bank), lds_pilot(bank, tau)):
        assert math.isfinite(lds_power(60, 2, 5, query_correlation=pilot.query_correlation))


def test_a_pilot_without_a_second_seed_is_refused() -> None:
    tau = np.random.default_rng(2).standard_normal((3, 20))
    with pytest.raises(ShapeError, match="some of them twice"):
        lds_pilot(bank_of(tau, 20, 1, noise=1.0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_masks": 3}, "four masks"),
        ({"reliability": 1.5}, "reliability is 1.5"),
        ({"lds": -2.0}, "lds is -2.0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        lds_power(**({"n_masks": 60, "n_seeds": 2, "n_query": 50} | wrong))
