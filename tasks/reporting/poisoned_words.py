"""What an attack came to, and whether one would have noticed it, in plain sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.poisoning import MOVED
from tasks.reporting.intervals import Interval
from tasks.reporting.wording import plain_interval

# Times the chance from which a screen's recall is worth a person's time.
WORTH_A_LOOK = 3.0


def poisoned(
    record: Mapping[str, Any],
    *,
    move: str,
    n_targets: int,
    wrong_before: float,
    output: str,
    taken: tuple[str, float] | None = None,
) -> str:
    """Say what the attack of one budget did.

    Args:
        record: What a verdict holds of the budget.
        move: What was moved, as the spec has it.
        n_targets: Target rows.
        wrong_before: Share of them that models of the clean rows misclassify.
        output: The output of which the stealth is.
        taken: The class that targets should be taken for, and the share of them that models of the
            clean rows take for it; None where none was wished for.
    """
    wrong = 1 - record["targets_right"][0]
    did = (
        f"{record['moves']:,} {MOVED[move]} raise the mean loss of {n_targets:,} targets by "
        f"{_interval(record['observed'])}; {wrong:.0%} of them are then misclassified, "
        f"{wrong_before:.0%} before."
    )
    rivals = (
        "At most one in twenty random moves of as many rows does that, anywhere or inside the "
        "classes of the targets."
        if record["exceeds"]
        else "Random moves of as many rows may do as much: it takes no plan, or none was found."
    )
    return " ".join(
        [did, *_taken(record, taken), rivals, _as_predicted(record), *_stealth(record, output)]
    )


def _taken(record: Mapping[str, Any], before: tuple[str, float] | None) -> list[str]:
    if before is None:
        return []
    name, share = before
    return [f"{record['taken'][0]:.0%} are taken for '{name}', {share:.0%} before."]


def _as_predicted(record: Mapping[str, Any]) -> str:
    if record["inside_interval"]:
        return "The damage is inside its predicted interval."
    side = "below" if record["observed"][0] < record["predicted"][1] else "above"
    return f"The damage is {side} its predicted interval."


def _stealth(record: Mapping[str, Any], output: str) -> list[str]:
    held = record["stealth_held"]
    if held is None:
        return []
    lost, low, high = record["observed_elsewhere"]
    if lost <= 0 and record["stealth_sure"]:
        return [f"Elsewhere the mean {output} gets no worse: the stealth held."]
    interval = _interval((lost, low, high))
    if not held:
        verdict = "more than the stealth allows"
    elif record["stealth_sure"]:
        verdict = "within the stealth"
    else:
        verdict = "within the stealth, but its interval reaches further: more seeds would tell"
    return [f"Elsewhere the mean {output} gets worse by {interval}, {verdict}."]


def noticed(
    record: Mapping[str, Any],
    screens: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, str],
    *,
    copied: int = 0,
) -> str:
    """Say what the screens would have shown of the poisoned rows of one budget.

    Args:
        record: What a verdict holds of the budget.
        screens: What each screen found, the best first.
        left_out: Why a screen was not run, by its name.
        copied: Added rows whose inputs training rows have, too.
    """
    why = "; ".join(f"'{name}' ({reason})" for name, reason in left_out.items())
    looked_up = (
        f" {copied:,} of the {record['moves']:,} have the very inputs of training rows: who looks "
        "copies up finds these, as `winnow screen` does."
    )
    return (
        f"{_found(record, screens)}{looked_up if copied else ''}"
        f"{f' Not run: {why}.' if why else ''}"
    )


def _found(record: Mapping[str, Any], screens: Sequence[Mapping[str, Any]]) -> str:
    best, moves = screens[0], record["moves"]
    middle = sorted(one["recall"] for one in screens)[len(screens) // 2]
    said = (
        f"Among the {moves:,} rows that it suspects most, the best of {len(screens)} screens, "
        f"'{best['screen']}', has {round(best['recall'] * moves):,} of the {moves:,} poisoned ones "
        f"({best['chance'] * moves:.1f} by chance), the median screen {round(middle * moves):,}."
    )
    if best["recall"] < WORTH_A_LOOK * best["chance"]:
        return f"{said} No screen points at the attack."
    if middle < WORTH_A_LOOK * best["chance"]:
        return f"{said} Who does not know which screen to trust may well miss it."
    return f"{said} Who looks at what the screens suspect meets it."


def _interval(triple: Sequence[float]) -> str:
    mean, low, high = triple
    return plain_interval(Interval(mean=mean, low=low, high=high))
