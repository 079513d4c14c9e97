"""Batch norm while models train: lone rows, frozen layers, and what cannot be differentiated."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.models import fresh
from attribution.outputs import training_loss
from attribution.training import Recipe, train_models
from attribution.training.batchnorm import batch_norms, refuse_tied_rows, refuse_unkept_statistics
from attribution.training.recipe import epoch_order
from schemas.errors import RecipeError

N, D, K = 17, 5, 3
INPUTS = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
TARGETS = np.arange(N) % K
PLAIN = Recipe(epochs=3, batch_size=8, lr=0.1, momentum=0.0, weight_decay=0.0)


def normed(**options: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.Linear(6, K))


class Frozen(nn.Module):
    """Batch norm that stays in eval mode, as after pretraining."""

    def __init__(self) -> None:
        super().__init__()
        self.net = normed()

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.net[1].eval()
        return self

    def forward(self, rows: Tensor) -> Tensor:
        return self.net(rows)


def test_a_last_batch_of_one_row_is_normalised_with_the_running_statistics() -> None:
    got = train_models(
        normed(), (INPUTS, TARGETS), masks=np.ones((1, N), bool), seeds=[4], training=PLAIN
    )
    net = fresh(normed(), 4)
    for epoch in range(PLAIN.epochs):
        order = torch.from_numpy(epoch_order(4, epoch, N))
        for rows in order.split(PLAIN.batch_size):
            net.train()
            if len(rows) == 1:
                net[1].eval()
            logits, labels = net(torch.from_numpy(INPUTS)[rows]), torch.from_numpy(TARGETS)[rows]
            net.zero_grad()
            training_loss("classification", logits, labels, "mean").backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= PLAIN.lr * parameter.grad
    for name, value in net.state_dict().items():
        torch.testing.assert_close(got.states[name][0], value, rtol=1e-5, atol=1e-6)
    assert int(got.states["1.num_batches_tracked"][0]) == 2 * PLAIN.epochs


def test_a_layer_that_its_model_keeps_in_eval_mode_stays_there() -> None:
    model = Frozen().train()
    assert not batch_norms(model)
    refuse_tied_rows(model)
    got = train_models(
        model, (INPUTS, TARGETS), masks=np.ones((1, N), bool), seeds=[4], training=PLAIN
    )
    assert not got.states["net.1.running_mean"].any()
    scores = attribute(
        "metagradient",
        model,
        [],
        train=(INPUTS, TARGETS),
        queries=(INPUTS[:2], TARGETS[:2]),
        training={"lr": 0.1, "epochs": 1},
    )
    assert scores.shape == (2, N)
    assert np.isfinite(scores).all()


def test_what_ties_rows_together_is_refused_by_its_name() -> None:
    with pytest.raises(RecipeError, match=r"'1' is a BatchNorm1d: it ties the rows"):
        refuse_tied_rows(normed().train())
    with pytest.raises(RecipeError, match=r"'1' is a BatchNorm1d without running statistics"):
        refuse_unkept_statistics(normed(track_running_stats=False))
    refuse_unkept_statistics(normed())
