"""``kind = "screen"`` in a spec: what is declared, and what is refused with its place."""

import tomllib

import pytest

from schemas.errors import SpecError
from schemas.screening import SCREENS, SCREENS_OF_TASK
from schemas.spec import CurationSpec, parse_spec
from tests.tasks.arriving import SPEC


def parsed(*changes: tuple[str, str]) -> CurationSpec:
    text = SPEC
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return parse_spec(tomllib.loads(text))


def test_a_screen_is_no_decision_and_its_rates_are_in_the_order_of_the_screens() -> None:
    spec = parsed()
    (screen,) = spec.screens
    assert spec.decisions == ()
    assert list(screen.quarantine.rates) == list(SCREENS)
    assert screen.copies == "quarantine"


def test_where_batches_come_from_and_what_is_checked_later_decide_nothing() -> None:
    own = parsed().screens[0].decides
    assert parsed(("inbox/*.csv", "elsewhere/*.csv")).screens[0].decides == own
    assert parsed(("loss = 0.02", "loss = 0.03")).screens[0].decides != own


@pytest.mark.parametrize("task", SCREENS_OF_TASK)
def test_only_classes_have_neighbours_that_disagree(task: str) -> None:
    assert ("neighbours" in SCREENS_OF_TASK[task]) == (task == "classification")  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("harm = 0.02", "harm = 0.51"), r"problem\[0\].quarantine.harm: found 0.51; write"),
        (("harm = 0.02", "hurt = 0.02"), r"problem\[0\].quarantine.hurt: unknown key"),
        (("{ loss = 0.02, neighbours = 0.02, harm = 0.02, self_influence = 0.02, group = 0.02 }",
          "{}"), r"problem\[0\].quarantine: no screen; write some as in"),
        (('uses = "trak"', 'uses = "track"'), r"problem\[0\].uses: there is no attribution"),
        (('checkpoints = "bank"\n', ""), r"problem\[0\].uses: 'harm' and 'self_influence' and "),
        (('method = "trak"\ncheckpoints = "bank"\nprojection = { dim = 64 }\ndamping = 1.0',
          'method = "graddot"\nname = "trak"'), r"'trak' keeps none; name one of method 'trak'"),
        (('uses = "trak"\ninbox', 'uses = "trak"\ntargets = "holdout"\ninbox'), "never saw"),
        (('source = "csv:stones.csv"\ntarget = "kind"\nsplit = "side"\nmetadata = ["finder"]',
          'source = "sklearn:wine"'), r"problem\[0\].kind: batches are tables"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_its_place(change: tuple[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parsed(change)


def test_a_regression_says_so_before_any_row_is_read() -> None:
    with pytest.raises(SpecError, match=r"quarantine.neighbours: a regression has no classes"):
        parsed(('split = "side"', 'split = "side"\ntask = "regression"'))


def test_loss_and_neighbours_ask_for_no_sketches() -> None:
    rates = "{ loss = 0.02, neighbours = 0.02, harm = 0.02, self_influence = 0.02, group = 0.02 }"
    spec = parsed((rates, "{ loss = 0.01 }"), ('checkpoints = "bank"\n', ""))
    assert spec.screens[0].quarantine.rates == {"loss": 0.01}
