"""What is said of an attack: whether it was noticed, and by which screens that ran."""

import pytest

from tasks.reporting.poisoned_words import noticed, poisoned

RECORD = {"moves": 20}


def screens(*recalls: float) -> list[dict[str, object]]:
    return [
        {"screen": f"screen {number}", "recall": recall, "chance": 0.02}
        for number, recall in enumerate(recalls)
    ]


@pytest.mark.parametrize(
    ("recalls", "verdict"),
    [
        ((0.05, 0.02, 0.0), "No screen points at the attack."),
        ((0.8, 0.02, 0.0), "Who does not know which screen to trust may well miss it."),
        ((0.8, 0.5, 0.4), "Who looks at what the screens suspect meets it."),
    ],
)
def test_whether_one_would_notice_goes_by_the_best_and_the_median_screen(
    recalls: tuple[float, ...], verdict: str
) -> None:
    said = noticed(RECORD, screens(*recalls), {})
    assert said.endswith(verdict)
    assert f"'screen 0', has {round(20 * recalls[0])} of the 20" in said


def test_screens_that_did_not_run_are_named_with_their_reason() -> None:
    said = noticed(RECORD, screens(0.5), {"neighbours": "token numbers have no distances"})
    assert said.endswith("Not run: 'neighbours' (token numbers have no distances).")


def test_added_copies_are_counted_for_those_who_look_copies_up() -> None:
    said = noticed(RECORD, screens(0.5), {}, copied=12)
    assert "12 of the 20 have the very inputs of training rows" in said


@pytest.mark.parametrize(
    ("lost", "sure", "ending"),
    [
        ((0.1, 0.0, 0.2), True, "within the stealth."),
        ((0.1, -0.4, 0.6), False, "its interval reaches further: more seeds would tell."),
        ((-0.1, -0.8, 0.6), False, "its interval reaches further: more seeds would tell."),
        ((-0.1, -0.3, 0.1), True, "gets no worse: the stealth held."),
    ],
)
def test_a_stealth_that_held_by_chance_is_not_said_to_have_held(
    lost: tuple[float, float, float], sure: bool, ending: str
) -> None:
    record = {
        "moves": 20,
        "targets_right": (0.5, 0.4, 0.6),
        "observed": (2.0, 1.5, 2.5),
        "predicted": (2.1, 1.6, 2.6),
        "inside_interval": True,
        "exceeds": True,
        "stealth_held": True,
        "stealth_sure": sure,
        "observed_elsewhere": lost,
    }
    said = poisoned(record, move="flip", n_targets=9, wrong_before=0.1, output="margin")
    assert said.endswith(ending)
