from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from attribution import attribute
from attribution.estimators.curvature import LossCurvature
from attribution.estimators.solvers import ConjugateGradients
from attribution.outputs import evaluate, training_loss
from attribution.rows import Rows
from attribution.streams import stream
from schemas.errors import NotFound, RecipeError, ShapeError

DOUBLE = torch.float64
N, M, D, K = 24, 5, 4, 3


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, K)).double()


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    return torch.from_numpy(rng.standard_normal((n, D))), torch.from_numpy(rng.integers(0, K, n))


def states(count: int = 1) -> list[dict[str, Tensor]]:
    return [
        {name: value * (1 + 0.2 * number) for name, value in net().state_dict().items()}
        for number in range(count)
    ]


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
OPTIONS = {
    "train": TRAIN,
    "queries": QUERIES,
    "dtype": DOUBLE,
    "device": "cpu",
    "damping": 0.7,
}


class Truth:
    """Everything by autograd, a row at a time, from a flat parameter vector."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor], task: str) -> None:
        model.load_state_dict(state)
        model.eval()
        self.named = list(model.named_parameters())
        self.theta = torch.cat([value.detach().flatten() for _, value in self.named])
        self.model, self.task = model, task

    def logits(self, theta: Tensor, inputs: Tensor) -> Tensor:
        parts = theta.split([value.numel() for _, value in self.named])
        weights = {
            name: part.reshape(value.shape)
            for part, (name, value) in zip(parts, self.named, strict=True)
        }
        return torch.func.functional_call(self.model, weights, (inputs,))

    def loss(self, theta: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        return training_loss(self.task, self.logits(theta, pair[0]), pair[1], "sum")

    def gradients(self, pair: tuple[Tensor, Tensor], output: str) -> Tensor:
        found = []
        for row in range(len(pair[1])):
            theta = self.theta.clone().requires_grad_()
            logits = self.logits(theta, pair[0][row : row + 1])
            value = evaluate(output, logits, pair[1][row : row + 1]).sum()
            found.append(torch.autograd.grad(value, theta)[0])
        return torch.stack(found)

    def hessian(self, train: tuple[Tensor, Tensor]) -> Tensor:
        return torch.autograd.functional.hessian(lambda t: self.loss(t, train), self.theta)

    def gauss_newton(self, train: tuple[Tensor, Tensor]) -> Tensor:
        total = torch.zeros(len(self.theta), len(self.theta), dtype=DOUBLE)
        for row in range(len(train[1])):
            inputs, targets = train[0][row : row + 1], train[1][row : row + 1]
            jacobian = torch.autograd.functional.jacobian(
                lambda t, inputs=inputs: self.logits(t, inputs)[0], self.theta
            )
            curved = torch.autograd.functional.hessian(
                lambda z, targets=targets: training_loss(self.task, z[None], targets, "sum"),
                self.logits(self.theta, inputs)[0],
            )
            total += jacobian.T @ curved @ jacobian
        return total

    def scores(
        self,
        train: tuple[Tensor, Tensor],
        queries: tuple[Tensor, Tensor],
        rho: float,
        output: str = "margin",
        hessian: str = "gauss-newton",
        ridge: float = 0.0,
    ) -> np.ndarray:
        g = self.gauss_newton(train)
        rank = min(len(train[1]), len(self.theta))
        shift = ridge + rho * float(g.trace()) / rank
        h = g if hessian == "gauss-newton" else self.hessian(train)
        h = h + shift * torch.eye(len(h), dtype=DOUBLE)
        each = self.gradients(train, "loss") + ridge / len(train[1]) * self.theta
        return (-self.gradients(queries, output) @ torch.linalg.solve(h, each.T)).numpy()


def wanted(count: int = 1, **options: object) -> np.ndarray:
    own = {"rho": 0.7} | options
    return np.mean(
        [
            Truth(net(), state, "classification").scores(TRAIN, QUERIES, **own)
            for state in states(count)
        ],
        axis=0,
    )


def close(got: np.ndarray, want: np.ndarray, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("output", ["margin", "loss", "logprob", "logit"])
@pytest.mark.parametrize("hessian", ["gauss-newton", "hessian"])
def test_exact_scores_are_the_formula_with_dense_matrices(output: str, hessian: str) -> None:
    rho = 0.7 if hessian == "gauss-newton" else 6.0  # the net is at no minimum: H is indefinite
    got = attribute(
        "influence", net(), states(2), solver="exact", hessian=hessian, output=output,
        **(OPTIONS | {"damping": rho}),
    )  # fmt: skip
    close(got, wanted(2, rho=rho, output=output, hessian=hessian))
    assert got.record["output"] == output


@pytest.mark.parametrize("hessian", ["gauss-newton", "hessian"])
def test_products_are_those_of_the_summed_loss(hessian: str) -> None:
    truth = Truth(net(), states()[0], "classification")
    dense = truth.gauss_newton(TRAIN) if hessian == "gauss-newton" else truth.hessian(TRAIN)
    curvature = LossCurvature(
        net(), states()[0], Rows(TRAIN, "train"), task="classification", hessian=hessian,
        dtype=DOUBLE,
    )  # fmt: skip
    vectors = torch.from_numpy(stream(4).standard_normal((7, curvature.size)))
    torch.testing.assert_close(curvature.product(vectors), vectors @ dense)
    torch.testing.assert_close(curvature.dense(), dense)
    want = float(truth.gauss_newton(TRAIN).trace()) / min(N, curvature.size)
    assert curvature.mean_eigenvalue() == pytest.approx(want)


def test_with_many_classes_the_trace_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    curvature = LossCurvature(
        net(), states()[0], Rows(TRAIN, "train"), task="classification", dtype=DOUBLE
    )
    exact = curvature.mean_eigenvalue()
    monkeypatch.setattr("attribution.estimators.curvature.TRACE_CLASSES", 2)
    assert curvature.mean_eigenvalue() == pytest.approx(exact, rel=0.15)
    assert curvature.mean_eigenvalue() != exact


def linear_problem() -> tuple[nn.Module, Tensor, Tensor, Tensor, float]:
    rng = stream(5)
    x = torch.from_numpy(rng.standard_normal((30, 3)))
    y = x @ torch.tensor([1.0, 2.0, -1.0], dtype=DOUBLE) + torch.from_numpy(rng.normal(size=30))
    decay = 0.05
    # mean loss + decay/2 |theta|^2, squared error without a half
    system = 2 * x.T @ x + len(x) * decay * torch.eye(3, dtype=DOUBLE)
    model = nn.Linear(3, 1, bias=False, dtype=DOUBLE)
    model.weight.data[0] = torch.linalg.solve(system, 2 * x.T @ y)
    return model, x, y, system, decay


@pytest.mark.parametrize("hessian", ["gauss-newton", "hessian"])
@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_ridge_regression_has_its_closed_form(hessian: str, solver: str) -> None:
    model, x, y, system, decay = linear_problem()
    theta = model.weight.data[0]
    asked = x[:4] + 0.5
    got = attribute(
        "influence", model, [model.state_dict()], train=(x, y), queries=(asked, y[:4]),
        dtype=DOUBLE, device="cpu", damping=0.0, ridge=len(x) * decay, hessian=hessian,
        solver=solver, tolerance=1e-10,
    )  # fmt: skip
    each = -2 * x * (y - x @ theta).unsqueeze(1) + decay * theta
    close(got, (-asked @ torch.linalg.solve(system, each.T)).numpy())
    # At the minimum the rows' gradients cancel, and so do the scores of all rows together.
    np.testing.assert_allclose(got.sum(1), 0.0, atol=1e-5)


def test_scores_approach_leave_one_out_retraining_of_ridge_regression() -> None:
    model, x, y, _, decay = linear_problem()
    big, n = x.repeat(40, 1), 40 * len(x)
    labels = y.repeat(40) + torch.from_numpy(stream(6).normal(size=n))
    theta = torch.linalg.solve(
        2 * big.T @ big + n * decay * torch.eye(3, dtype=DOUBLE), 2 * big.T @ labels
    )
    model.weight.data[0] = theta
    got = attribute(
        "influence", model, [model.state_dict()], train=(big, labels), queries=(x[:4], y[:4]),
        dtype=DOUBLE, device="cpu", damping=0.0, ridge=n * decay,
    )  # fmt: skip
    for row in (0, 17, 400):
        rest = torch.arange(n) != row
        inner = 2 * big[rest].T @ big[rest] + (n - 1) * decay * torch.eye(3, dtype=DOUBLE)
        left = torch.linalg.solve(inner, 2 * big[rest].T @ labels[rest])
        close(got[:, row], (x[:4] @ (theta - left)).numpy(), rtol=0.02)


@pytest.mark.parametrize("output", ["prediction", "squared_error"])
def test_nets_for_regression_follow_the_formula(output: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    train = (TRAIN[0], TRAIN[0].sum(1))
    queries = (QUERIES[0], QUERIES[0].sum(1))
    got = attribute(
        "influence", model, [model.state_dict()], output=output, tolerance=1e-9,
        **(OPTIONS | {"train": train, "queries": queries}),
    )  # fmt: skip
    truth = Truth(model, model.state_dict(), "regression")
    close(got, truth.scores(train, queries, 0.7, output))


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("cg", {"tolerance": 1e-9}),
        ("lissa", {"tolerance": 1e-7}),
        ("lissa", {"tolerance": 1e-7, "scale": 40.0}),
        ("arnoldi", {"rank": 10_000}),
        ("lanczos", {"rank": 10_000}),
        ("nystrom", {"rank": 10_000}),
    ],
)
def test_every_solver_reaches_the_exact_scores(solver: str, options: dict[str, float]) -> None:
    rho = 6.0 if solver == "lissa" else 0.7  # its steps are as many as H + s I is ill-conditioned
    settings = OPTIONS | {"damping": rho} | options
    got = attribute("influence", net(), states(2), solver=solver, **settings)
    close(got, wanted(2, rho=rho))


@pytest.mark.parametrize("solver", ["cg", "arnoldi", "lanczos"])
def test_an_indefinite_hessian_is_solved_once_damping_lifts_it(solver: str) -> None:
    options = OPTIONS | {"damping": 6.0, "hessian": "hessian", "rank": 1000, "tolerance": 1e-9}
    close(
        attribute("influence", net(), states(), solver=solver, **options),
        wanted(rho=6.0, hessian="hessian"),
    )


@pytest.mark.parametrize("solver", ["exact", "cg", "lanczos", "lissa"])
def test_an_indefinite_hessian_is_refused_with_the_remedy(solver: str) -> None:
    options = OPTIONS | {"damping": 0.01, "hessian": "hessian", "solver": solver}
    with pytest.raises(ShapeError, match="gauss-newton"):
        attribute("influence", net(), states(), iterations=2000, **options)


def test_fewer_eigenpairs_keep_or_drop_the_rest() -> None:
    rank = 6
    truth = Truth(net(), states()[0], "classification")
    g = truth.gauss_newton(TRAIN)
    values, vectors = torch.linalg.eigh(g)
    kept, basis = values[-rank:], vectors[:, -rank:]
    shift = 0.7 * float(g.trace()) / min(N, len(g))
    inside = basis @ torch.diag(1 / (kept + shift)) @ basis.T
    outside = (torch.eye(len(g), dtype=DOUBLE) - basis @ basis.T) / shift
    q, each = truth.gradients(QUERIES, "margin"), truth.gradients(TRAIN, "loss")
    for solver, inverse in (("arnoldi", inside), ("lanczos", inside + outside)):
        got = attribute("influence", net(), states(), solver=solver, rank=rank, **OPTIONS)
        # Krylov vectors are close to the eigenvectors, not equal.
        want = (-q @ inverse @ each.T).numpy()
        assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.99
        assert got.record["solver"] == [{"rank": rank}]


@pytest.mark.parametrize("solver", ["exact", "cg", "lanczos"])
def test_batches_do_not_change_the_scores(solver: str) -> None:
    options = {"solver": solver, "rank": 1000, "tolerance": 1e-10}
    whole = attribute("influence", net(), states(), **options, **OPTIONS)
    for size in (1, 7):
        got = attribute("influence", net(), states(), batch_size=size, **options, **OPTIONS)
        close(got, whole, 1e-6)


def test_single_precision_is_close() -> None:
    options = OPTIONS | {"dtype": torch.float32}
    close(attribute("influence", net(), states(), **options), wanted(), 2e-3)


def test_a_sum_of_inverses_of_batches_is_not_what_is_computed() -> None:
    truth = Truth(net(), states()[0], "classification")
    shift = 6.0 * float(truth.gauss_newton(TRAIN).trace()) / min(N, len(truth.theta))
    identity = torch.eye(len(truth.theta), dtype=DOUBLE)
    summed = torch.zeros_like(identity)
    for start in range(0, N, 6):
        batch = (TRAIN[0][start : start + 6], TRAIN[1][start : start + 6])
        summed += torch.linalg.inv(truth.gauss_newton(batch) + shift * identity)
    q, each = truth.gradients(QUERIES, "margin"), truth.gradients(TRAIN, "loss")
    wrong = (-q @ summed @ each.T).numpy()
    for solver in ("cg", "exact", "lissa"):
        options = OPTIONS | {"damping": 6.0, "solver": solver, "batch_size": 6}
        got = attribute("influence", net(), states(), **options)
        close(got, wanted(rho=6.0), 1e-3)
        assert np.abs(got - wrong).max() > 0.5 * np.abs(got).max()


@pytest.mark.parametrize("solver", ["exact", "cg", "lissa", "lanczos", "nystrom"])
def test_damping_is_added_to_the_curvature_never_taken_off(solver: str) -> None:
    options = {"solver": solver, "rank": 1000, "tolerance": 1e-3}
    sizes = [
        np.abs(attribute("influence", net(), states(), **options, **(OPTIONS | {"damping": rho})))
        for rho in (2.0, 20.0, 5e4)
    ]
    assert sizes[0].mean() > sizes[1].mean() > sizes[2].mean()
    truth = Truth(net(), states()[0], "classification")
    shift = 5e4 * float(truth.gauss_newton(TRAIN).trace()) / min(N, len(truth.theta))
    dots = truth.gradients(QUERIES, "margin") @ truth.gradients(TRAIN, "loss").T
    # Far above the curvature only the damping is left: minus the inner product, over the shift.
    got = attribute("influence", net(), states(), **options, **(OPTIONS | {"damping": 5e4}))
    close(got, (-dots / shift).numpy(), 2e-3)


def test_losses_are_summed_not_averaged() -> None:
    # As many rows as parameters (35) or more, so that the unit of damping grows with the rows too.
    twice, four = (tuple(torch.cat([part] * count) for part in TRAIN) for count in (2, 4))
    few = attribute("influence", net(), states(), tolerance=1e-9, **(OPTIONS | {"train": twice}))
    many = attribute("influence", net(), states(), tolerance=1e-9, **(OPTIONS | {"train": four}))
    # Twice the rows, twice the curvature: each copy has half the influence.
    close(many[:, : 2 * N], few / 2, 1e-4)
    close(many[:, 2 * N :], few / 2, 1e-4)


def test_dropout_is_off() -> None:
    model = net(dropout=0.5).train()
    got = attribute("influence", model, states(), tolerance=1e-9, **OPTIONS)
    close(got, wanted())
    assert model.training


def bank_of(scores: np.ndarray, masks: int) -> SimpleNamespace:
    rng = stream(8)
    members = np.zeros((masks, N), dtype=bool)
    for mask in members:
        mask[rng.permutation(N)[: N // 2]] = True
    return SimpleNamespace(masks=members, outputs=members @ np.asarray(scores, dtype=float).T)


@pytest.mark.parametrize("masks", [4, 20], ids=["fewer masks", "fewer queries"])
@pytest.mark.parametrize(
    "options", [{"solver": "exact"}, {"solver": "cg"}, {"solver": "lanczos", "rank": 1000}]
)
def test_damping_is_tuned_by_the_lds_of_the_scores(masks: int, options: dict[str, str]) -> None:
    bank = bank_of(wanted(2, rho=6.5), masks)
    auto = OPTIONS | {"damping": "auto"}
    scores = attribute("influence", net(), states(2), bank=bank, tolerance=1e-8, **options, **auto)
    close(scores, wanted(2, rho=scores.record["damping"]))
    table = dict(scores.record["damping_table"])
    assert table[6.5] == pytest.approx(1.0, abs=1e-3)
    for rho, found in list(table.items())[::4]:
        tau = wanted(2, rho=rho)
        values = [
            spearmanr(bank.masks @ tau[query], bank.outputs[:, query])[0] for query in range(M)
        ]
        assert found == pytest.approx(np.mean(values), abs=0.02)
    assert "LDS" in scores.record["chosen_from"]


def test_tuning_passes_over_dampings_that_leave_the_hessian_indefinite() -> None:
    bank = bank_of(wanted(rho=6.5, hessian="hessian"), 20)
    for solver in ("exact", "cg", "lanczos"):
        scores = attribute(
            "influence", net(), states(), bank=bank, hessian="hessian", solver=solver, rank=1000,
            **(OPTIONS | {"damping": "auto"}),
        )  # fmt: skip
        tried = [rho for rho, _ in scores.record["damping_table"]]
        assert 0 < len(tried) < 10
        assert scores.record["damping"] in tried


def test_all_shifts_of_one_krylov_space_are_solved() -> None:
    rng = stream(9)
    half = torch.from_numpy(rng.standard_normal((30, 30)) * np.geomspace(3, 0.1, 30))
    matrix = half.T @ half
    vectors = torch.from_numpy(rng.standard_normal((4, 30)))
    vectors[1] = 0
    vectors[2] = torch.linalg.eigh(matrix).eigenvectors[:, -1]  # done after one step
    shifts = [30.0, 0.03, 1.0]
    solver = ConjugateGradients(lambda rows: rows @ matrix, tolerance=1e-12)
    got = solver.solve(vectors, shifts)
    for index, shift in enumerate(shifts):
        want = torch.linalg.solve(matrix + shift * torch.eye(30, dtype=DOUBLE), vectors.T).T
        error = (got[index] - want).norm(dim=1) / (vectors.norm(dim=1) / shift).clamp_min(1e-9)
        assert error.max() < 2e-2  # several shifts are solved as far as ranking needs
    alone = solver.solve(vectors, [0.03])[0]
    want = torch.linalg.solve(matrix + 0.03 * torch.eye(30, dtype=DOUBLE), vectors.T).T
    torch.testing.assert_close(alone, want, rtol=1e-8, atol=1e-8)


def test_lissa_that_diverges_says_so_and_what_to_do() -> None:
    with pytest.raises(ShapeError, match=r"diverges after \d+ steps.*raise `scale`"):
        attribute("influence", net(), states(), solver="lissa", scale=0.5, **OPTIONS)


def test_conjugate_gradients_that_stop_early_say_so() -> None:
    with pytest.raises(ShapeError, match="after 2 products"):
        attribute("influence", net(), states(), solver="cg", iterations=2, **OPTIONS)


def test_layers_of_every_kind_have_products() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.norm = nn.BatchNorm2d(2)
            self.head = nn.Linear(8, K)
            self.unused = nn.Parameter(torch.ones(2))
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.relu_(self.norm(self.conv(inputs.reshape(-1, 1, 2, 2)))) * self.frozen
            return self.head(hidden.flatten(1))

    torch.manual_seed(0)
    model = Mixed().double()
    model.norm.running_mean.fill_(0.3)
    free = Mixed().double()
    free.load_state_dict(model.state_dict())
    truth = Truth(free, model.state_dict(), "classification")
    truth.named = [pair for pair in truth.named if pair[1].requires_grad]
    truth.theta = torch.cat([value.detach().flatten() for _, value in truth.named])
    got = attribute("influence", model, [model.state_dict()], tolerance=1e-9, **OPTIONS)
    g = truth.gauss_newton(TRAIN)
    shift = 0.7 * float(g.trace()) / min(N, len(g))
    each = truth.gradients(TRAIN, "loss")
    solved = torch.linalg.solve(g + shift * torch.eye(len(g), dtype=DOUBLE), each.T)
    close(got, (-truth.gradients(QUERIES, "margin") @ solved).numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"solver": "gmres"}, ShapeError, "unknown solver"),
        ({"hessian": "fisher"}, ShapeError, "unknown hessian"),
        ({"solver": "nystrom", "hessian": "hessian"}, ShapeError, "never negative"),
        ({"damping": 0.0}, ShapeError, "damping is 0"),
        ({"damping": "best"}, ShapeError, "'auto'"),
        ({"ridge": -1.0}, ShapeError, "ridge"),
        ({"rank": 0}, ShapeError, "rank"),
        ({"solver": "lissa", "scale": 0.0}, ShapeError, "scale"),
        ({"solvr": "cg"}, NotFound, "did you mean 'solver'"),
    ],
)
def test_options_out_of_range_are_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attribute("influence", net(), states(), **(OPTIONS | change))


def test_a_model_that_is_too_large_for_a_dense_matrix_is_refused() -> None:
    model = nn.Linear(D, 5000)
    with pytest.raises(ShapeError, match="use solver='cg'"):
        attribute("influence", model, [model.state_dict()], solver="exact", **OPTIONS)


def test_a_model_without_second_derivatives_is_refused() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(_: object, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(_: object, gradient: Tensor) -> Tensor:
            return gradient.clone()

    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, K)

        def forward(self, inputs: Tensor) -> Tensor:
            return Once.apply(self.layer(inputs))

    model = Opaque()
    with pytest.raises(RecipeError, match="second derivatives"):
        attribute("influence", model, [model.state_dict()], **OPTIONS)


def test_a_certain_model_is_named() -> None:
    state = {name: value * 1e4 for name, value in states()[0].items()}
    with pytest.raises(ShapeError, match="certain"):
        attribute("influence", net(), [state], **(OPTIONS | {"dtype": torch.float32}))


def test_scores_stream_into_functions() -> None:
    blocks: list[np.ndarray] = []
    options = OPTIONS | {"solver": "cg"}
    want = attribute("influence", net(), states(), **options)
    empty = attribute(
        "influence", net(), states(), out=lambda _, block: blocks.append(block), **options
    )
    np.testing.assert_array_equal(np.concatenate(blocks), want)
    assert empty.shape == (0, N)
    assert empty.record["solver"][0]["residual"] <= 1e-5
