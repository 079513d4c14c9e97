"""Designs by their invariants, effects against refits, intervals by simulation."""

import numpy as np
import pytest

from attribution.fact_removal import (
    RANDOM,
    RemovalDesign,
    design_removal,
    removal_effects,
    remove_facts,
)
from attribution.streams import stream
from attribution.tracing import top_rows_of
from schemas.errors import ShapeError
from tests.attribution.linear_problem import M, N, leave_one_out, refit, retraining


def sets(seed: int, n_query: int, k: int, n_train: int) -> np.ndarray:
    return np.stack([stream(seed, q).permutation(n_train)[:k] for q in range(n_query)])


def a_design(**options: int) -> tuple[dict[str, np.ndarray], RemovalDesign]:
    own = {"one": sets(0, 30, 4, 200), "other": np.tile(np.arange(4), (30, 1))}
    return own, design_removal(own, 200, **options)


def test_every_query_loses_its_own_rows_in_every_repeat() -> None:
    own, design = a_design(repeats=3)
    for arm, name in enumerate(own):
        for repeat in range(3):
            for query, rows in enumerate(own[name]):
                assert not design.masks[design.model_of[arm, repeat, query], rows].any()


def test_every_model_lacks_as_many_rows_and_queries_of_one_model_share_none() -> None:
    own, design = a_design(repeats=2)
    assert (design.masks.sum(axis=1) == 200 - design.removed).all()
    assert design.removed == 20  # five queries of four rows: a tenth
    for model in np.unique(design.model_of[0]):
        for repeat in range(2):
            queries = np.flatnonzero(design.model_of[0, repeat] == model)
            rows = own["one"][queries]
            assert len(np.unique(rows)) == rows.size


def test_sets_that_all_overlap_get_a_model_each_and_random_ones_share() -> None:
    _, design = a_design(repeats=1)
    assert len(np.unique(design.model_of[1])) == 30
    assert len(np.unique(design.model_of[2])) == 6
    assert design.arms[2] == RANDOM
    np.testing.assert_array_equal(np.bincount(design.arm_of)[1:], [30, 6])


def test_groups_are_drawn_anew_for_each_repeat_and_the_same_for_a_seed() -> None:
    _, design = a_design(repeats=2)
    _, again = a_design(repeats=2)
    np.testing.assert_array_equal(design.masks, again.masks)
    first, second = design.model_of[0]
    together = [(model == model[0]).nonzero()[0].tolist() for model in (first, second)]
    assert together[0] != together[1]


def test_changes_are_those_of_refits_on_the_same_masks() -> None:
    """At the minimum of a convex loss seeds do not matter, so refits are the truth."""
    tau, problem = leave_one_out(), retraining(seeds=2)
    effects = remove_facts({"tau": tau}, problem, k=3, per_model=2)
    whole = refit(np.ones(N, dtype=bool))
    for query, model in np.ndenumerate(effects.design.model_of[0, 0]):
        want = refit(effects.design.masks[model])[query[0]] - whole[query[0]]
        assert effects.change[0, 0, query[0]] == pytest.approx(want, abs=5e-3)
    assert effects.mean("tau")[2] < 0
    assert effects.difference("tau")[2] < 0
    assert effects.per_query("tau").shape == (M,)


def test_a_loss_that_rises_is_a_change_for_the_worse() -> None:
    effects = remove_facts({"tau": -leave_one_out()}, retraining(output="loss", seeds=2), k=3)
    assert effects.mean("tau")[0] < 0


def simulated(seed: int, *, shock: float) -> tuple[bool, bool]:
    """Whether intervals hold the truth; all queries of a model share a shock."""
    n_query, k, n_train, repeats, effect = 24, 3, 300, 3, -1.0
    own = {"a": sets(seed, n_query, k, n_train)}
    design = design_removal(own, n_train, repeats=repeats, per_model=8, seed=seed)
    rng = stream(seed, 1)
    facts = effect + rng.standard_normal(n_query)
    outputs = shock * rng.standard_normal((len(design.masks), 1)) + 0.3 * rng.standard_normal(
        (len(design.masks), n_query)
    )
    for repeat in range(repeats):
        outputs[design.model_of[0, repeat], np.arange(n_query)] += facts
    base = shock * rng.standard_normal((4, 1)) + 0.3 * rng.standard_normal((4, n_query))
    found = removal_effects(design, outputs, base)
    (_, low, high), (_, lower, higher) = found.mean("a"), found.difference("a")
    return low <= effect <= high, lower <= effect <= higher


@pytest.mark.parametrize("shock", [0.0, 0.3, 1.0])
def test_intervals_hold_the_mean_effect_of_all_facts(shock: float) -> None:
    held = np.array([simulated(seed, shock=shock) for seed in range(300)]).mean(axis=0)
    assert (held > 0.92).all()
    assert (held < 0.985).all()


def test_ties_do_not_name_the_first_rows_of_the_file() -> None:
    problem = retraining(seeds=1)
    effects = remove_facts({"nothing": np.zeros((M, N))}, problem, k=3)
    missing = ~effects.design.masks[effects.design.model_of[0, 0]]
    assert len(np.unique(top_rows_of(np.zeros((M, N)), 3))) > 3
    assert missing.any(axis=0).sum() > 3


@pytest.mark.parametrize(
    ("own", "options", "match"),
    [
        ({"a": np.zeros((2, 3), int)}, {}, "hold one row twice"),
        ({"a": np.arange(3)[None], "b": np.arange(2)[None]}, {}, "give \\[n_query, k\\]"),
        ({RANDOM: np.arange(3)[None]}, {}, "call none 'random'"),
        ({"a": np.arange(3)[None]}, {"repeats": 0}, "at least once"),
        ({"a": np.arange(10)[None]}, {}, "remove fewer"),
    ],
)
def test_designs_that_make_no_sense_are_refused(
    own: dict[str, np.ndarray], options: dict[str, int], match: str
) -> None:
    with pytest.raises(ShapeError, match=match):
        design_removal(own, 10, **options)


def test_outputs_must_fit_the_design_and_arms_must_be_known() -> None:
    _, design = a_design(repeats=1)
    outputs = np.zeros((len(design.masks), 30))
    with pytest.raises(ShapeError, match="one row or more"):
        removal_effects(design, outputs[1:], outputs[:1])
    with pytest.raises(ShapeError, match="there is no arm 'three'"):
        removal_effects(design, outputs, outputs[:1]).mean("three")
