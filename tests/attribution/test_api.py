import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import attribution
from attribution import RetrainBank, Scores, attribute, estimators
from attribution.estimators.features import featurize
from attribution.estimators.trak import trak_scores
from attribution.projection import Projection
from attribution.streams import stream
from schemas.errors import DataError, NotFound, RecipeError, ShapeError

N, M, D, K = 30, 5, 6, 3


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, K))


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = stream(seed)
    return rng.standard_normal((n, D)).astype(np.float32), rng.integers(0, K, n)


def checkpoints(count: int = 2) -> list[dict[str, torch.Tensor]]:
    states = []
    for seed in range(count):
        torch.manual_seed(seed)
        states.append(model().state_dict())
    return states


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
OPTIONS = {"train": TRAIN, "queries": QUERIES, "projection": {"dim": 64}, "device": "cpu"}


def test_attribute_is_featurize_and_score() -> None:
    scores = attribute("trak", model(), checkpoints(), seed=4, output="loss", **OPTIONS)
    features = [
        [
            featurize(
                model(),
                state,
                data,
                output=output,
                task="classification",
                projection=Projection(dim=64),
                seed=4,
                checkpoint=number,
            )
            for number, state in enumerate(checkpoints())
        ]
        for data, output in ((TRAIN, "margin"), (QUERIES, "loss"))
    ]
    np.testing.assert_array_equal(scores, trak_scores(*features))
    assert scores.shape == (M, N)
    assert scores.dtype == np.float32


def test_scores_say_how_they_were_made() -> None:
    scores = attribute("trak", model(), checkpoints(), **OPTIONS)
    record = scores.record
    assert record["method"] == "trak"
    assert (record["output"], record["task"]) == ("margin", "classification")
    assert (record["damping"], record["device"]) == (1.0, "cpu")
    assert "no bank" in record["chosen_from"]
    assert len(record["fingerprint"]) == 2
    assert set(record["seconds"]) == {"featurize", "tune", "score", "total"}
    assert scores[1:, ::2].record is record
    assert isinstance(scores, Scores)
    assert attribute("trak", model(), checkpoints(), damping=2, **OPTIONS).record["damping"] == 2.0


def test_a_dataset_and_tensors_give_the_same_scores() -> None:
    class Pairs(Dataset):
        def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
            self.inputs, self.targets = torch.from_numpy(inputs), targets

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return self.inputs[row], int(self.targets[row])

    want = attribute("trak", model(), checkpoints(), **OPTIONS)
    changed = {"train": Pairs(*TRAIN), "queries": tuple(map(torch.from_numpy, QUERIES))}
    got = attribute("trak", model(), checkpoints(), **(OPTIONS | changed))
    np.testing.assert_array_equal(got, want)


def test_batches_do_not_change_the_scores() -> None:
    want = attribute("trak", model(), checkpoints(), **OPTIONS)
    for size in (1, 7):
        got = attribute("trak", model(), checkpoints(), batch_size=size, **OPTIONS)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


def test_mappings_of_inputs_reach_the_model_as_keywords() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, *, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.net(torch.cat([left, right], dim=1))

    def split(data: tuple[np.ndarray, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return {"left": data[0][:, :2], "right": data[0][:, 2:]}, data[1]

    states = [{f"net.{name}": value for name, value in s.items()} for s in checkpoints()]
    changed = {"train": split(TRAIN), "queries": split(QUERIES)}
    got = attribute("trak", Named(), states, **(OPTIONS | changed))
    want = attribute("trak", model(), checkpoints(), **OPTIONS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_regressions_are_recognised() -> None:
    net = nn.Linear(D, 1)
    targets = stream(3).standard_normal(N).astype(np.float32)
    scores = attribute(
        "trak",
        net,
        [net.state_dict()],
        train=(TRAIN[0], targets),
        queries=(QUERIES[0], targets[:M, None]),
        projection={"kind": "none"},
    )
    assert (scores.record["task"], scores.record["output"]) == ("regression", "prediction")
    with pytest.raises(ShapeError, match="class targets"):
        attribute(
            "trak",
            net,
            [net.state_dict()],
            train=(TRAIN[0], targets),
            queries=(QUERIES[0], targets[:M]),
            output="margin",
        )


def test_a_bank_tunes_the_damping() -> None:
    tau = np.asarray(attribute("trak", model(), checkpoints(), damping=6.5, **OPTIONS))
    masks = stream(6).permuted(np.tile(np.arange(N) < N // 2, (24, 1)), axis=1)
    bank = RetrainBank(masks=masks, outputs=masks @ tau.T, seeds=np.arange(24))
    scores = attribute("trak", model(), checkpoints(), bank=bank, **OPTIONS)
    assert scores.record["damping"] == 6.5
    assert "24 masks" in scores.record["chosen_from"]
    np.testing.assert_array_equal(scores, tau)


def test_scores_may_be_streamed() -> None:
    want = attribute("trak", model(), checkpoints(), **OPTIONS)
    array = np.empty((M, N), dtype=np.float32)
    got = attribute("trak", model(), checkpoints(), out=array, **OPTIONS)
    np.testing.assert_array_equal(array, want)
    assert got.base is array
    blocks: list[np.ndarray] = []
    empty = attribute(
        "trak", model(), checkpoints(), out=lambda _, block: blocks.append(block), **OPTIONS
    )
    np.testing.assert_array_equal(np.concatenate(blocks), want)
    assert empty.shape == (0, N)
    assert empty.record["damping"] == 1.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": (TRAIN[0][:-1], TRAIN[1])}, ShapeError, "29 inputs and 30 targets"),
        ({"train": (TRAIN[0][:0], TRAIN[1][:0])}, ShapeError, "no rows"),
        ({"train": 5}, ShapeError, "Dataset"),
        ({"train": (TRAIN[0], TRAIN[1] + 1)}, ShapeError, r"0\.\.2"),
        ({"train": (TRAIN[0], np.stack([TRAIN[1]] * 2, 1))}, ShapeError, "do not fit targets"),
        ({"train": (TRAIN[0], np.zeros((N, 2, 2)))}, ShapeError, "one class index"),
        ({"queries": (np.array([["a"]]), QUERIES[1])}, ShapeError, "give numbers"),
        ({"queries": (QUERIES[0] * np.inf, QUERIES[1])}, DataError, "queries row 0"),
        ({"damping": "best"}, ShapeError, "damping"),
        ({"batch_size": 0}, ShapeError, "batch_size"),
        ({"projection": {"dim": 0}}, ShapeError, "dim"),
        ({"output": "prediction"}, ShapeError, "floating targets"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(error, match=message),
    ):
        attribute("trak", model(), checkpoints(), **(OPTIONS | change))


def test_unknown_methods_and_odd_models_are_refused() -> None:
    with pytest.raises(NotFound, match="did you mean 'trak'"):
        attribute("track", model(), checkpoints(), **OPTIONS)
    with pytest.raises(ShapeError, match="no checkpoint"):
        attribute("trak", model(), [], **OPTIONS)
    flat = nn.Sequential(nn.Linear(D, 1), nn.Flatten(0))
    with pytest.raises(RecipeError, match=r"\[n, outputs\]"):
        attribute("trak", flat, [flat.state_dict()], **OPTIONS)


def test_every_estimator_is_described() -> None:
    for known in estimators():
        assert known.name
        assert known.needs
        assert known.cost
        assert "20" in known.source


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, attribution; dir(attribution); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert {"attribute", "lds", "train_bank"} <= set(dir(attribution))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = attribution.nothing
