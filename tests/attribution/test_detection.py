import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from attribution.api import Scores
from attribution.detection import mislabel_detection
from schemas.errors import ShapeError

RNG = np.random.default_rng(0)
WRONG = RNG.random(50) < 0.2
SCORES = RNG.standard_normal((7, 50)) - WRONG
SELF = RNG.random(50) + WRONG


def test_harm_and_self_influence_rank_as_sklearn_says() -> None:
    found = mislabel_detection(WRONG, scores=SCORES, self_influence=SELF)
    harm = -SCORES.mean(axis=0)
    assert found["harm"].auroc == pytest.approx(roc_auc_score(WRONG, harm))
    assert found["harm"].average_precision == pytest.approx(average_precision_score(WRONG, harm))
    assert found["self-influence"].auroc == pytest.approx(roc_auc_score(WRONG, SELF))
    assert found["harm"].share == WRONG.mean()


def test_for_a_loss_both_signs_turn_round() -> None:
    margin = mislabel_detection(WRONG, scores=SCORES, self_influence=SELF)
    loss = mislabel_detection(WRONG, scores=-SCORES, self_influence=-SELF, output="loss")
    assert loss == margin
    recorded = Scores(-SCORES, {"output": "loss"})
    assert mislabel_detection(WRONG, scores=recorded)["harm"] == margin["harm"]


def test_nothing_to_rank_by_is_refused() -> None:
    with pytest.raises(ShapeError, match="nothing to rank by"):
        mislabel_detection(WRONG)
