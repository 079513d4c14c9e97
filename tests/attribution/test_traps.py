"""Mistakes that were really made in this field's libraries; each is a test of ours.

The number is the trap's place in the list that this project keeps.
"""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from attribution import attribute
from attribution.bank import draw_masks
from attribution.estimators.factors import fit_factors
from attribution.estimators.features import featurize
from attribution.estimators.resampling import fit_datamodel
from attribution.estimators.trak import trak_scores
from attribution.gradients import PerExampleGradients
from attribution.outputs import evaluate, tangent
from attribution.projection import Projection, fingerprint, sketch
from attribution.rows import Rows
from schemas.errors import ShapeError, WinnowError

N, M, D, K = 40, 6, 5, 3


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K))


def rows(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    return draw.standard_normal((n, D)).astype(np.float32), draw.integers(0, K, n)


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
EXACT = {"projection": {"kind": "none"}}


def scores(method: str = "trak", **options: object) -> NDArray[np.float32]:
    given = {"train": TRAIN, "queries": QUERIES, "device": "cpu", **options}
    states = given.pop("states", [net().state_dict()])
    if method == "trak":
        given = EXACT | {"damping": 1.0} | given
    return np.asarray(attribute(method, net(), states, **given))


def test_trap_1_a_query_in_the_training_set_raises_its_margin_and_lowers_its_loss() -> None:
    both = {"train": QUERIES, "queries": QUERIES}
    damped = {"damping": 1.0}
    for method, damping in (
        ("trak", {}),
        ("graddot", {}),
        ("gradcos", {}),
        ("gas", {}),
        ("ekfac", damped),
        ("datainf", damped),
        ("logra", damped),
        ("representer", {"weight_decay": 0.1}),
        ("source", {"weights": [0.1]}),
        ("similarity", {}),
    ):
        assert (np.diag(scores(method, output="margin", **both, **damping)) > 0).all()
        assert (np.diag(scores(method, output="loss", **both, **damping)) < 0).all()


def test_trap_2_the_margin_is_the_log_odds_and_no_difference_to_the_best_other() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64)
    p = logits.softmax(-1)[0, 0]
    margin = evaluate("margin", logits, torch.tensor([0]))
    torch.testing.assert_close(margin, torch.log(p / (1 - p))[None])
    assert margin.item() != pytest.approx(1.0)


def test_trap_3_the_weight_is_one_minus_p_and_the_curvature_p_times_it() -> None:
    logits = torch.randn(7, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    p = logits.softmax(-1)[torch.arange(7), targets]
    weight, curvature = tangent("classification", logits, targets)
    torch.testing.assert_close(weight, 1 - p)
    torch.testing.assert_close(curvature, p * (1 - p))


def test_trap_4_no_checkpoint_is_rescaled() -> None:
    states = [net(seed).state_dict() for seed in range(3)]
    features = [
        [
            featurize(
                net(),
                state,
                part,
                output="margin",
                task="classification",
                projection=Projection(dim=256),
                checkpoint=place,
            )
            for place, state in enumerate(states)
        ]
        for part in (TRAIN, QUERIES)
    ]
    together = trak_scores(features[0], features[1], damping=1.0)
    alone = [
        trak_scores([train], [query], damping=1.0) for train, query in zip(*features, strict=True)
    ]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-4, atol=1e-6)


def test_trap_5_a_product_of_means_is_not_called_a_mean_of_products() -> None:
    states = [net(seed).state_dict() for seed in range(3)]
    ours = scores(states=states, average="scores")
    published = scores(states=states, average="features")
    assert np.abs(ours - published).max() > 1e-3 * np.abs(ours).max()


@pytest.mark.parametrize("penalty", ["lasso", "ridge"])
@pytest.mark.parametrize("alpha", [(0.5,), (0.8,), (0.4, 0.7)])
def test_trap_6_datamodel_weights_are_in_mask_units(penalty: str, alpha: tuple[float, ...]) -> None:
    masks, _, _ = draw_masks(12, 120, list(alpha), 1, seed=0)
    weights = np.random.default_rng(4).standard_normal((3, 12))
    outputs = 5.0 + masks @ weights.T
    fitted = fit_datamodel(masks, outputs, penalty=penalty, strength=1e-3)
    effects = fitted.weights + fitted.size_effect[:, None]
    if len(alpha) == 1:  # masks of one size leave the level of the weights open
        effects -= (effects - weights).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(effects, weights, atol=0.02)
    np.testing.assert_allclose(fitted.predict(masks), outputs, atol=0.05)
    # In standardised coordinates they would be smaller by sigma, 0.5 at alpha = 0.5.
    assert np.abs(effects - 0.5 * weights).max() > 0.5


@pytest.mark.parametrize("method", ["trak", "graddot", "gradcos"])
def test_trap_7_losses_are_summed_so_the_batch_size_changes_nothing(method: str) -> None:
    want = scores(method, batch_size=N)
    np.testing.assert_allclose(scores(method, batch_size=7), want, rtol=1e-4, atol=1e-6)


def test_trap_8_damping_is_relative_and_never_zero() -> None:
    with pytest.raises(ShapeError, match="positive"):
        scores(damping=0.0)
    features = [
        featurize(net(), None, part, output="margin", task="classification")
        for part in (TRAIN, QUERIES)
    ]
    want = trak_scores(features[:1], features[1:], damping=0.5)
    # Gradients of another scale: the same relative damping gives the same scores.
    larger = [dataclasses.replace(part, sketch=100 * part.sketch) for part in features]
    got = trak_scores(larger[:1], larger[1:], damping=0.5)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", ["cg", "exact", "lanczos"])
def test_trap_9_the_curvature_is_that_of_all_rows_and_not_a_mean_over_batches(
    solver: str,
) -> None:
    options = {"solver": solver, "damping": 1.0}
    want = scores("influence", batch_size=N, **options)
    np.testing.assert_allclose(
        scores("influence", batch_size=3, **options), want, rtol=2e-3, atol=1e-5
    )


@pytest.mark.parametrize("method", ["trak", "influence", "ekfac", "datainf", "logra"])
def test_trap_10_damping_is_added_and_shrinks_every_score(method: str) -> None:
    norms = [np.linalg.norm(scores(method, damping=rho)) for rho in (0.1, 1.0, 10.0, 100.0)]
    assert norms == sorted(norms, reverse=True)


def test_trap_11_a_diverging_series_is_an_error() -> None:
    with pytest.raises(WinnowError, match="scale"):
        scores("influence", solver="lissa", damping=1.0, scale=1e-3)


def test_trap_12_the_corrected_eigenvalues_are_fitted_at_the_labels_asked_for() -> None:
    # Of one linear layer their sum is the trace of the Fisher matrix at those labels: the
    # observed ones give the empirical matrix, which is another than the true one.
    inputs, targets = torch.from_numpy(TRAIN[0]).double(), torch.from_numpy(TRAIN[1])
    model = nn.Sequential(nn.Linear(D, K)).double()
    p = model(inputs).softmax(1).detach()
    length = 1 + inputs.square().sum(1)
    observed = (p - nn.functional.one_hot(targets, K)).square().sum(1) * length
    expected = (1 - p.square().sum(1)) * length
    for labels, traces in (("observed", observed), ("all", expected)):
        found = fit_factors(
            model,
            None,
            Rows((inputs, targets), "train"),
            task="classification",
            labels=labels,
            samples=1,
            seed=0,
            checkpoint=0,
            device="cpu",
            batch_size=7,
            dtype=torch.float64,
        )
        torch.testing.assert_close(found.corrected.sum(), traces.mean())


def test_trap_13_layers_of_any_shape_weigh_the_same_in_the_factored_sketch() -> None:
    model = nn.Sequential(nn.Linear(40, 2), nn.Tanh(), nn.Linear(2, 40))
    inputs, targets = torch.randn(4, 40), torch.tensor([0, 1, 2, 3])
    run = PerExampleGradients(model, None, output="margin").run(inputs, targets)
    exact = torch.cat([block for _, block in run.blocks()], dim=1)
    norms = torch.zeros(4)
    for seed in range(200):
        projected = featurize(
            model,
            None,
            (inputs, targets),
            output="margin",
            task="classification",
            projection=Projection(kind="factored", dim=64),
            seed=seed,
        ).sketch
        norms += projected.square().sum(1) / 200
    torch.testing.assert_close(norms, exact.square().sum(1), rtol=0.15, atol=0.0)


def test_trap_14_the_projection_is_a_function_of_its_key_alone() -> None:
    block = torch.eye(6)
    options = {"seed": 3, "checkpoint": 1, "p": 6}
    whole = sketch([(0, block)], Projection(dim=8), **options)
    cut = sketch([(0, block[:, :2]), (2, block[:, 2:])], Projection(dim=8), **options)
    assert whole.equal(cut)
    one_row = sketch([(0, block[4:5])], Projection(dim=8), **options)
    assert one_row.equal(whole[4:5])
    assert fingerprint(Projection(dim=8), **options) != fingerprint(
        Projection(dim=8), seed=3, checkpoint=2, p=6
    )


def test_trap_15_no_two_pieces_of_the_projection_are_the_same() -> None:
    n, piece = 4_096, 64
    entries = sketch([(0, torch.eye(n))], Projection(dim=256), seed=0, checkpoint=0, p=n)
    pieces = {entries[start : start + piece].numpy().tobytes() for start in range(0, n, piece)}
    assert len(pieces) == n // piece


def test_trap_16_gradients_too_small_for_half_precision_are_kept() -> None:
    tiny = torch.full((2, 100), 1e-12)
    got = sketch([(0, tiny)], Projection(dim=16), seed=0, checkpoint=0, p=100)
    assert torch.count_nonzero(got) > 0
    assert got.dtype == torch.float32


def test_trap_17_gradients_are_taken_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, K))
    with torch.no_grad():
        model(torch.randn(64, D))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    both = [
        np.asarray(
            attribute(
                "trak",
                model,
                [model.state_dict()],
                train=TRAIN,
                queries=QUERIES,
                damping=1.0,
                batch_size=size,
                **EXACT,
            )
        )
        for size in (5, N)
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-4, atol=1e-6)
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_trap_18_columns_are_positions_in_the_data_set() -> None:
    class Reversed(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
            return torch.from_numpy(TRAIN[0][N - 1 - place]), int(TRAIN[1][N - 1 - place])

    want = scores()[:, ::-1]
    np.testing.assert_allclose(scores(train=Reversed()), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["trak", "influence", "ekfac", "graddot"])
def test_trap_19_the_same_call_gives_the_same_bits(method: str) -> None:
    options = {} if method == "graddot" else {"damping": 1.0}
    assert (scores(method, **options) == scores(method, **options)).all()


def test_trap_29_a_model_trained_by_adam_is_not_ranked_by_raw_gradients() -> None:
    """LESS keeps eps inside the root of its second moment and corrects no bias."""
    model, scale = net(), torch.tensor([30.0, 1.0, 1.0, 0.03, 0.03])
    train, queries = (
        (torch.from_numpy(part[0]) * scale, torch.from_numpy(part[1])) for part in (TRAIN, QUERIES)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[0]), train[1]).backward()
        optimizer.step()
    kept = optimizer.state_dict()
    options = {"train": train, "queries": queries, "device": "cpu", "dtype": torch.float64}
    raw = attribute("graddot", model, [model.state_dict()], **options)
    less = attribute("graddot", model, [model.state_dict()], optimizer_states=[kept], **options)

    def flat(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([value.double().flatten() for value in values])

    m, v = (
        flat([kept["state"][place][moment] for place in range(4)])
        for moment in ("exp_avg", "exp_avg_sq")
    )
    gradients = {}
    wide = net().double()
    wide.load_state_dict(model.state_dict())
    for name, (inputs, targets), output in (
        ("train", train, "loss"),
        ("queries", queries, "margin"),
    ):
        found = []
        for x, y in zip(inputs.double(), targets, strict=True):
            value = evaluate(output, wide(x[None]), y[None]).sum()
            found.append(flat(list(torch.autograd.grad(value, list(wide.parameters())))))
        gradients[name] = torch.stack(found)
    g = gradients["train"]
    gamma = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g**2 + 1e-4).sqrt()
    want = -(gradients["queries"] @ gamma.T).numpy()
    np.testing.assert_allclose(less, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    ranks = [np.argsort(np.argsort(part, axis=1), axis=1) for part in (raw, less)]
    agreement = [np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]
    assert np.mean(agreement) < 0.9
