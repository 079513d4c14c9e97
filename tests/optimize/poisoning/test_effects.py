import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression
from torch import nn

from attribution.estimators.features import featurize
from attribution.estimators.kernel import Gram
from attribution.estimators.trak import trak_scores
from attribution.models import build, fresh
from attribution.projection import Projection
from attribution.training import train_models
from optimize.poisoning.effects import label_effects, target_vectors
from optimize.poisoning.moves import Moves
from optimize.poisoning.search import Lens, worst_flips
from schemas.errors import ShapeError
from tests.attribution.linear_problem import DECAY, D, K, M, N, refit, retraining, rows


@pytest.fixture(scope="module")
def network() -> dict:
    """A small perceptron at two checkpoints, and features of its rows and queries."""
    model, train, queries = build("mlp", (D,), K, hidden=[8]), rows(N, 1), rows(M, 2)
    states = [dict(fresh(model, seed).state_dict()) for seed in (0, 1)]
    projection = Projection(dim=64)

    def features(source: tuple, output: str) -> list:
        return [
            featurize(
                model,
                state,
                source,
                output=output,
                task="classification",
                projection=projection,
                checkpoint=number,
            )
            for number, state in enumerate(states)
        ]

    return {
        "model": model,
        "states": states,
        "projection": projection,
        "train": train,
        "features": features,
        "own": features(train, "margin"),
        "asked": features(queries, "loss"),
    }


def test_effects_of_every_label_are_the_scores_of_rows_so_labelled(network: dict) -> None:
    """The slow way: features of all rows under each label, and one score for each query."""
    weights = np.random.default_rng(0).standard_normal(M)
    vectors = target_vectors(network["own"], network["asked"], weights)
    found = label_effects(
        network["model"],
        network["states"],
        network["train"][0],
        vectors,
        train=network["own"],
        projection=network["projection"],
    )
    assert found.shape == (N, K)
    for label in range(K):
        relabelled = network["features"]((network["train"][0], np.full(N, label)), "margin")
        inverses = [
            Gram(own, curvature="logistic", dtype=torch.float64).factor(1.0)
            for own in network["own"]
        ]
        slow = np.mean(
            [
                (
                    weights
                    @ inverse.apply(asked.sketch.double()).numpy()
                    @ moved.sketch.double().numpy().T
                )
                * moved.residual.double().numpy()
                for inverse, asked, moved in zip(
                    inverses, network["asked"], relabelled, strict=True
                )
            ],
            axis=0,
        )
        np.testing.assert_allclose(found[:, label], slow, rtol=2e-4, atol=1e-6)
    scores = weights @ trak_scores(network["own"], network["asked"])
    np.testing.assert_allclose(
        found[np.arange(N), network["train"][1]], scores, rtol=2e-4, atol=1e-5
    )


def test_predicted_flips_of_a_logistic_regression_are_those_of_refitting() -> None:
    """Overstated where a flip moves the parameters far, but right in sign and order."""
    fixed = retraining(model=nn.Linear(D, K, bias=False))
    inputs, labels = rows(N, 1)
    trained = train_models(
        fixed.model, fixed.train, masks=np.ones((1, N), bool), seeds=[0], training=fixed.training
    )
    states, exact = [dict(trained.state(0))], Projection(kind="none")

    def features(source: tuple, **options: object) -> list:
        return [
            featurize(
                fixed.model,
                states[0],
                source,
                output="margin",
                task="classification",
                projection=exact,
                **options,
            )
        ]

    train, queries = features(rows(N, 1), ggn=True), features(rows(M, 2))
    unit = Gram(train[0], curvature="ggn", dtype=torch.float64).unit
    vectors = target_vectors(
        train, queries, np.full(M, 1 / M), curvature="ggn", damping=N * DECAY / unit
    )
    effects = label_effects(fixed.model, states, inputs, vectors, train=train, projection=exact)
    base = refit(np.ones(N, bool)).mean()
    predicted, observed = [], []
    for row in range(0, N, 2):
        flipped = labels.copy()
        flipped[row] = (labels[row] + 1) % K
        predicted.append(effects[row, flipped[row]] - effects[row, labels[row]])
        observed.append(_refitted(flipped).mean() - base)
    assert pearsonr(predicted, observed).statistic > 0.97
    slope = np.dot(predicted, observed) / np.dot(predicted, predicted)
    assert 0.6 < slope < 1.1


def _refitted(labels: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
    inputs, (queries, own) = rows(N, 1)[0] if given is None else given, rows(M, 2)
    model = LogisticRegression(
        C=1 / (len(inputs) * DECAY), fit_intercept=False, tol=1e-10, solver="newton-cholesky"
    ).fit(inputs.astype(np.float64), labels)
    logits, mine = queries.astype(np.float64) @ model.coef_.T, np.eye(K, dtype=bool)[own]
    return logits[mine] - np.logaddexp.reduce(np.where(mine, -np.inf, logits), axis=1)


def test_the_worst_flips_do_more_than_their_opposites_after_refitting() -> None:
    lens = Lens(retraining=retraining(), checkpoints=1, projection=Projection(kind="none"))
    targets = np.full(M, 1 / M)
    attacks = worst_flips(lens, targets, budget=6, rounds=1)
    assert [len(one.moves) for one in attacks] == [6, 6]
    again = worst_flips(lens, targets, budget=6, rounds=1)
    np.testing.assert_array_equal(attacks[-1].moves.rows, again[-1].moves.rows)
    labels, losses = rows(N, 1)[1], []
    kindest = worst_flips(lens, -targets, budget=6, rounds=0)[0]
    for moves in (attacks[0].moves, attacks[1].moves, kindest.moves):
        flipped = labels.copy()
        flipped[moves.rows] = moves.labels
        losses.append(np.logaddexp(0, -_refitted(flipped)).mean())
    clean = np.logaddexp(0, -_refitted(labels)).mean()
    assert losses[0] > clean + 0.1
    assert losses[1] > clean + 0.1
    assert losses[2] < losses[0] - 0.1


def test_flips_stay_within_the_rows_that_are_allowed() -> None:
    lens = Lens(retraining=retraining(), checkpoints=1, projection=Projection(kind="none"))
    (attack,) = worst_flips(lens, np.full(M, 1 / M), budget=3, rounds=0, rows=[4, 5, 6, 7])
    assert set(attack.moves.rows) <= {4, 5, 6, 7}


def test_the_worst_insertions_do_more_than_their_opposites_after_refitting() -> None:
    pool = rows(20, 3)[0]
    lens = Lens(
        retraining=retraining(), pool=pool, checkpoints=1, projection=Projection(kind="none")
    )
    targets = np.full(M, 1 / M)
    attacks = worst_flips(lens, targets, budget=6, rounds=1)
    (kindest,) = worst_flips(lens, -targets, budget=6, rounds=0)
    inputs, labels = rows(N, 1)
    losses = [np.logaddexp(0, -_refitted(labels)).mean()]
    for moves in (attacks[0].moves, attacks[1].moves, kindest.moves):
        assert len(np.unique(moves.rows)) == len(moves) <= 6
        added = np.concatenate([inputs, pool[moves.rows]])
        margins = _refitted(np.concatenate([labels, moves.labels]), added)
        losses.append(np.logaddexp(0, -margins).mean())
    assert min(losses[1:3]) > losses[0] + 0.1
    assert losses[3] < min(losses[1:3]) - 0.1


def test_rows_of_a_pool_have_the_effects_of_the_same_training_rows() -> None:
    train = rows(N, 1)
    options = {"checkpoints": 2, "projection": Projection(kind="none")}
    flipping = Lens(retraining=retraining(), **options)
    adding = Lens(retraining=retraining(), pool=train[0], **options)
    sums = np.random.default_rng(0).standard_normal((2, M))
    np.testing.assert_allclose(adding.effects(sums), flipping.effects(sums), rtol=1e-6)
    assert flipping.every_move(K).gains(flipping.effects(sums[0]), train[1]).shape == (N * (K - 1),)
    assert len(adding.every_move(K, rows=[0, 5])) == 2 * K


def test_networks_that_others_keep_are_asked_for_each_round_and_looked_through() -> None:
    asked: list[tuple[int | None, int]] = []
    plain = Lens(retraining=retraining(), checkpoints=1, projection=Projection(kind="none"))

    def kept(moves: Moves | None, number: int) -> list[dict]:
        asked.append((None if moves is None else len(moves), number))
        return plain._networks(plain._moved(moves), number)

    lens = Lens(
        retraining=retraining(), networks=kept, checkpoints=1, projection=Projection(kind="none")
    )
    targets = np.full(M, 1 / M)
    found = worst_flips(lens, targets, budget=4, rounds=2)
    assert asked == [(None, 0), (4, 1), (4, 2)]
    same = worst_flips(plain, targets, budget=4, rounds=2)
    for one, other in zip(found, same, strict=True):
        np.testing.assert_array_equal(one.moves.rows, other.moves.rows)
    asked.clear()
    known = worst_flips(
        lens, targets, budget=4, rounds=1, clean=plain.effects(targets, output="loss")
    )
    assert asked == [(4, 1)]
    np.testing.assert_array_equal(known[1].moves.rows, found[1].moves.rows)


def test_what_does_not_fit_is_refused(network: dict) -> None:
    with pytest.raises(ShapeError, match="a finite one for each of 8 queries"):
        target_vectors(network["own"], network["asked"], np.ones(M + 1))
    lens = Lens(retraining=retraining(), checkpoints=1)
    with pytest.raises(ShapeError, match="rounds is -1"):
        worst_flips(lens, np.ones(M), budget=1, rounds=-1)
