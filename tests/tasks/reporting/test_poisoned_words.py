"""What is said of an attack: whether it was noticed, and by which screens that ran."""

import pytest

from tasks.reporting.poisoned_words import noticed

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
