from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from attribution.estimators.damping import GRID, tune_damping
from attribution.estimators.features import Features, featurize
from attribution.estimators.kernel import Gram
from attribution.estimators.trak import self_influence, trak_scores
from attribution.outputs import evaluate, training_loss
from attribution.projection import Projection
from attribution.streams import stream
from schemas.errors import DataError, ShapeError

DOUBLE = torch.float64
EXACT = {"projection": Projection(kind="none"), "dtype": DOUBLE}
N, D, M = 60, 4, 9


def logistic_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = stream(11)
    inputs = rng.standard_normal((N + M, D))
    labels = (inputs @ [1.5, -1.0, 0.5, 0.0] + rng.logistic(size=N + M) > 0).astype(np.int64)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    return x[:N], y[:N], x[N:], y[N:]


def hessian_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # torch.func.hessian loads forward-mode rules through the deprecated torch.jit.script.
    return torch.func.jacrev(torch.func.jacrev(function))


def fitted(x: Tensor, y: Tensor, ridge: float) -> nn.Linear:
    """The minimum of the sum of losses + ridge/2 |theta|^2, to machine precision.

    At the optimum the two rows of weights are opposite, v/2 and -v/2.
    """
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=DOUBLE)], dim=1)
    signed = rows * (2 * y - 1).unsqueeze(1)
    v = torch.zeros(D + 1, dtype=DOUBLE)
    for _ in range(12):
        p = torch.sigmoid(signed @ v)
        gradient = ridge / 2 * v - signed.T @ (1 - p)
        hessian = signed.T @ (signed * (p * (1 - p)).unsqueeze(1))
        v = v - torch.linalg.solve(hessian + ridge / 2 * torch.eye(D + 1, dtype=DOUBLE), gradient)
    assert gradient.abs().max() < 1e-9
    model = nn.Linear(D, 2, dtype=DOUBLE)
    model.weight.data = torch.stack([-v[:D], v[:D]]) / 2
    model.bias.data = torch.stack([-v[D], v[D]]) / 2
    return model


def both(
    model: nn.Module, x: Tensor, y: Tensor, xq: Tensor, yq: Tensor, output: str = "margin"
) -> tuple[Features, Features]:
    train = featurize(model, None, (x, y), output="margin", task="classification", **EXACT)
    return train, featurize(model, None, (xq, yq), output=output, task="classification", **EXACT)


def rho_for(train: Features, ridge: float) -> float:
    return ridge / Gram(train, curvature="logistic", dtype=DOUBLE).unit


@pytest.mark.parametrize("output", ["margin", "loss", "logprob"])
def test_exact_features_give_the_influence_function_of_logistic_regression(output: str) -> None:
    x, y, xq, yq = logistic_data()
    ridge = 0.7
    model = fitted(x, y, ridge)
    train, queries = both(model, x, y, xq, yq, output)
    got = trak_scores([train], [queries], damping=rho_for(train, ridge))
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def logits(theta: Tensor, rows: Tensor) -> Tensor:
        return rows @ theta[: 2 * D].reshape(2, D).T + theta[2 * D :]

    def losses(theta: Tensor) -> Tensor:
        return training_loss("classification", logits(theta, x), y, "none")

    hessian = hessian_of(lambda t: losses(t).sum())(theta)
    hessian += ridge * torch.eye(len(theta), dtype=DOUBLE)
    each_loss = torch.func.jacrev(losses)(theta)
    each_output = torch.func.jacrev(lambda t: evaluate(output, logits(t, xq), yq))(theta)
    want = -each_output @ torch.linalg.solve(hessian, each_loss.T)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-7)


def test_leverage_predicts_leave_one_out_retraining() -> None:
    x, y, xq, yq = logistic_data()
    ridge = 2.0
    model = fitted(x, y, ridge)
    train, queries = both(model, x, y, xq, yq)
    options = {"damping": rho_for(train, ridge)}
    newton = trak_scores([train], [queries], leverage=True, **options)
    plain = trak_scores([train], [queries], **options)
    before = evaluate("margin", model(xq), yq)
    observed = np.empty((M, N))
    for row in range(N):
        rest = torch.arange(N) != row
        after = evaluate("margin", fitted(x[rest], y[rest], ridge)(xq), yq)
        observed[:, row] = (before - after).detach().numpy()
    # What is left is the second order of one Newton step.
    assert np.corrcoef(newton.ravel(), observed.ravel())[0, 1] > 0.999
    assert np.polyfit(newton.ravel(), observed.ravel(), 1)[0] == pytest.approx(1.0, abs=0.03)
    assert np.abs(newton - observed).mean() < 0.5 * np.abs(plain - observed).mean()


def test_leverage_is_exact_for_ridge_regression() -> None:
    rng = stream(5)
    x = torch.from_numpy(rng.standard_normal((30, 3)))
    y = x @ torch.tensor([1.0, 2.0, -1.0], dtype=DOUBLE) + torch.from_numpy(rng.normal(size=30))
    xq, yq, ridge = x[:4] + 0.5, y[:4], 1.3

    def fit(x: Tensor, y: Tensor) -> Tensor:  # squared error without a half: 2 X'X + ridge
        return torch.linalg.solve(2 * x.T @ x + ridge * torch.eye(3, dtype=DOUBLE), 2 * x.T @ y)

    model = nn.Linear(3, 1, bias=False, dtype=DOUBLE)
    model.weight.data[0] = fit(x, y)
    options = {"output": "prediction", "task": "regression", **EXACT}
    train = featurize(model, None, (x, y), **options)
    queries = featurize(model, None, (xq, yq), **options)
    got = trak_scores([train], [queries], damping=rho_for(train, ridge), leverage=True)
    for row in range(30):
        rest = torch.arange(30) != row
        change = xq @ (fit(x, y) - fit(x[rest], y[rest]))
        np.testing.assert_allclose(got[:, row], change.numpy(), rtol=1e-5)


def random_features(
    n: int, k: int, seed: int, checkpoint: int = 0, dtype: torch.dtype = DOUBLE
) -> Features:
    rng = stream(seed, checkpoint)
    p = torch.from_numpy(rng.uniform(0.05, 1, n))
    p[0] = 1.0  # a saturated row: Q = R = 0
    sketch = torch.from_numpy(rng.standard_normal((n, k)) * np.geomspace(3, 0.1, k))
    return Features(
        sketch=sketch.to(dtype),
        residual=(1 - p).to(dtype),
        curvature=(p * (1 - p)).to(dtype),
        fingerprint=f"test,checkpoint={checkpoint}",
    )


def sets(n: int, q: int, k: int, checkpoints: int = 3) -> tuple[list[Features], list[Features]]:
    train = [random_features(n, k, 1, c) for c in range(checkpoints)]
    return train, [random_features(q, k, 2, c) for c in range(checkpoints)]


def by_hand(train: list[Features], queries: list[Features], rho: float, **options: str) -> Tensor:
    parts, products = [], []
    for own, asked in zip(train, queries, strict=True):
        n, k = own.sketch.shape
        logistic = options["curvature"] == "logistic"
        r = own.curvature if logistic else torch.ones_like(own.curvature)
        matrix = own.sketch.T @ (r[:, None] * own.sketch)
        ridge = rho * matrix.trace() / min(n, k)
        inverse = torch.linalg.inv(matrix + ridge * torch.eye(k, dtype=DOUBLE))
        parts.append(asked.sketch @ inverse @ own.sketch.T)
        products.append(parts[-1] * own.residual)
    if options["average"] == "scores":
        return torch.stack(products).mean(0)
    return torch.stack(parts).mean(0) * torch.stack([own.residual for own in train]).mean(0)


@pytest.mark.parametrize("curvature", ["logistic", "after-kernel"])
@pytest.mark.parametrize("average", ["scores", "features"])
@pytest.mark.parametrize("k", [7, 40], ids=["primal", "dual"])
def test_scores_are_the_formula(curvature: str, average: str, k: int) -> None:
    train, queries = sets(25, 6, k)
    options = {"curvature": curvature, "average": average}
    for rho in (0.004, 0.5, 20.0):
        want = by_hand(train, queries, rho, **options).numpy()
        got = trak_scores(train, queries, damping=rho, **options)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7 * np.abs(want).max())
        singles = [
            Features(
                sketch=part.sketch.float(),
                residual=part.residual.float(),
                curvature=part.curvature.float(),
                fingerprint=part.fingerprint,
            )
            for part in [*train, *queries]
        ]
        single = trak_scores(singles[:3], singles[3:], damping=rho, **options)
        np.testing.assert_allclose(single, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_the_two_averages_are_different_estimators() -> None:
    train, queries = sets(25, 6, 7)
    scores = trak_scores(train, queries)
    features = trak_scores(train, queries, average="features")
    assert np.abs(scores - features).max() > 0.05 * np.abs(scores).max()
    np.testing.assert_allclose(
        trak_scores(train[:1], queries[:1]),
        trak_scores(train[:1], queries[:1], average="features"),
        rtol=1e-6,
    )


@pytest.mark.parametrize("leverage", [False, True])
@pytest.mark.parametrize("average", ["scores", "features"])
@pytest.mark.parametrize("k", [7, 40])
def test_self_influence_is_the_diagonal(leverage: bool, average: str, k: int) -> None:
    train, _ = sets(25, 6, k)
    options = {"leverage": leverage, "average": average, "damping": 0.3}
    whole = trak_scores(train, train, **options)
    np.testing.assert_allclose(
        self_influence(train, **options), np.diag(whole), rtol=1e-5, atol=1e-12
    )


@pytest.mark.parametrize("k", [7, 40])
def test_leverages_sum_to_the_effective_dimension(k: int) -> None:
    train, _ = sets(25, 6, k, 1)
    gram = Gram(train[0], curvature="logistic", dtype=DOUBLE)
    leverage = gram.weights * gram.factor(0.5).quadratic(gram.phi)
    spectrum = torch.linalg.eigvalsh(gram.phi.T @ (gram.weights[:, None] * gram.phi))
    want = (spectrum / (spectrum + 0.5 * gram.unit)).sum()
    torch.testing.assert_close(leverage.sum(), want)
    assert 0 <= leverage.min() < leverage.max() < 1


def test_rows_and_queries_may_come_in_any_order() -> None:
    train, queries = sets(25, 6, 40)
    order = torch.from_numpy(stream(3).permutation(25))
    shuffled = [
        Features(
            sketch=part.sketch[order],
            residual=part.residual[order],
            curvature=part.curvature[order],
            fingerprint=part.fingerprint,
        )
        for part in train
    ]
    got = trak_scores(shuffled, queries)
    np.testing.assert_allclose(got, trak_scores(train, queries)[:, order.numpy()], rtol=1e-5)
    assert not got[:, order.numpy() == 0].any()  # p = 1: nothing left to learn from it


def test_scores_stream_into_arrays_and_functions() -> None:
    train, queries = sets(12, 1100, 5, 2)
    want = trak_scores(train, queries)
    array = np.full(want.shape, np.nan, dtype=np.float32)
    assert trak_scores(train, queries, out=array) is array
    np.testing.assert_array_equal(array, want)
    blocks = []
    empty = trak_scores(train, queries, out=lambda rows, block: blocks.append((rows, block)))
    assert empty.shape == (0, 12)
    assert [rows for rows, _ in blocks] == [slice(0, 512), slice(512, 1024), slice(1024, 1100)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), want)
    with pytest.raises(ShapeError, match="writable array"):
        trak_scores(train, queries, out=array.T)


def bank_of(scores: np.ndarray, noise: float, copies: int = 2) -> SimpleNamespace:
    rng = stream(8)
    masks = np.zeros((30, scores.shape[1]), dtype=bool)
    for mask in masks[:20]:
        mask[rng.permutation(len(mask))[: len(mask) // 2]] = True
    for mask in masks[20:]:
        mask[rng.permutation(len(mask))[: 9 * len(mask) // 10]] = True
    masks = np.repeat(masks, copies, axis=0)
    outputs = masks @ scores.T + 50.0 * masks.sum(1, keepdims=True)
    return SimpleNamespace(
        masks=masks, outputs=outputs + noise * rng.standard_normal(outputs.shape)
    )


@pytest.mark.parametrize("leverage", [False, True])
@pytest.mark.parametrize("average", ["scores", "features"])
@pytest.mark.parametrize("queries_first", [False, True])
def test_damping_is_tuned_by_the_lds_of_the_scores(
    leverage: bool, average: str, queries_first: bool
) -> None:
    train, queries = sets(40, 8 if queries_first else 45, 60, 2)
    options = {"leverage": leverage, "average": average}
    bank = bank_of(trak_scores(train, queries, damping=3.0, **options), noise=0.01)
    damping = tune_damping(train, queries, bank, **options)
    assert damping.rho == 3.0
    assert [rho for rho, _ in damping.table] == list(GRID)
    assert "30 masks (60 models)" in damping.chosen_from
    for rho, score in damping.table[::4]:
        tau = trak_scores(train, queries, damping=rho, dtype=DOUBLE, **options).astype(float)
        masks = bank.masks[::2]
        means = bank.outputs.reshape(30, 2, -1).mean(1)
        values = [
            spearmanr(masks[rows] @ tau[query], means[rows, query])[0]
            for rows in (slice(0, 20), slice(20, 30))
            for query in range(len(tau))
        ]
        assert score == pytest.approx(np.mean(values), abs=3e-3)


def test_damping_may_be_tuned_for_a_weighted_sum() -> None:
    train, queries = sets(40, 8, 60, 2)
    tau = trak_scores(train, queries, damping=6.5)
    bank = bank_of(tau, noise=0.0)
    weights = np.full(8, 1 / 8)
    damping = tune_damping(train, queries, bank, aggregate=weights)
    assert damping.rho == 6.5
    assert dict(damping.table)[6.5] == pytest.approx(1.0)
    assert "weighted sum" in damping.chosen_from


def test_without_a_bank_the_damping_is_one() -> None:
    train, queries = sets(10, 3, 4, 1)
    damping = tune_damping(train, queries, None)
    assert (damping.rho, damping.table) == (1.0, ())
    assert "no bank" in damping.chosen_from


def test_a_bank_of_something_else_is_refused() -> None:
    train, queries = sets(10, 3, 4, 1)
    good = bank_of(np.zeros((3, 10)), 1.0)
    for change, message in (
        ({"masks": good.masks[:, :9]}, "10 training rows"),
        ({"outputs": good.outputs[:, :2]}, "one column for each query"),
        ({"outputs": good.outputs * np.nan}, "NaN"),
    ):
        with pytest.raises(ShapeError, match=message):
            tune_damping(train, queries, SimpleNamespace(**(vars(good) | change)))
    with pytest.raises(ShapeError, match="aggregate"):
        tune_damping(train, queries, good, aggregate=np.ones(4))
    few = SimpleNamespace(masks=good.masks[:4], outputs=good.outputs[:4])
    with pytest.raises(ShapeError, match="three or more"):
        tune_damping(train, queries, few)


def test_features_that_do_not_belong_together_are_refused() -> None:
    train, queries = sets(10, 3, 4, 2)
    with pytest.raises(ShapeError, match="same projection"):
        trak_scores(train, queries[::-1])
    with pytest.raises(ShapeError, match="2 checkpoints"):
        trak_scores(train, queries[:1])
    with pytest.raises(ShapeError, match="share the projection"):
        trak_scores([train[0], train[0]], [queries[0], queries[0]])
    with pytest.raises(ShapeError, match="columns"):
        trak_scores(train[:1], [random_features(3, 5, 2)])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"damping": 0.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"curvature": "ggn"}, "curvature"),
        ({"average": "both"}, "average"),
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, object], message: str) -> None:
    train, queries = sets(10, 3, 4, 1)
    with pytest.raises(ShapeError, match=message):
        trak_scores(train, queries, **option)


def test_features_that_are_not_finite_are_refused() -> None:
    good = random_features(5, 3, 1)
    bad = good.sketch.clone()
    bad[2, 1] = torch.inf
    with pytest.raises(DataError, match="sketch of row 2"):
        Features(sketch=bad, residual=good.residual, curvature=good.curvature, fingerprint="test")
    with pytest.raises(ShapeError, match=r"\[n, k\]"):
        Features(
            sketch=good.sketch, residual=bad[:2, 0], curvature=good.curvature, fingerprint="test"
        )


def test_a_saturated_model_is_named() -> None:
    good = random_features(5, 3, 1)
    zero = Features(
        sketch=good.sketch,
        residual=good.residual * 0,
        curvature=good.curvature * 0,
        fingerprint="test",
    )
    with pytest.raises(ShapeError, match="saturated"):
        trak_scores([zero], [zero])
    assert not trak_scores([zero], [zero], curvature="after-kernel").any()


def test_sketches_approach_the_exact_scores() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    rng = stream(4)
    inputs = rng.standard_normal((50, 8)).astype(np.float32)
    rows = (inputs, rng.integers(0, 3, 50))
    scores = {}
    for projection in (Projection(kind="none"), Projection(dim=1024), Projection(dim=16)):
        features = featurize(
            model, None, rows, output="margin", task="classification", projection=projection
        )
        scores[projection] = trak_scores([features], [features]).ravel()
    exact, wide, narrow = scores.values()
    assert np.corrcoef(exact, wide)[0, 1] > 0.98
    assert np.corrcoef(exact, narrow)[0, 1] < np.corrcoef(exact, wide)[0, 1]
