"""What the arms of a verdict say in words: did the choice beat its controls, as was predicted?"""

import math
from collections.abc import Sequence

from tasks.reporting.findings import ORACLES, Answer, Arm
from tasks.reporting.forgetting import is_forgotten
from tasks.reporting.tracing import RANDOM, TracedArm
from tasks.reporting.wording import advantage, signed_interval


def confirmed(answer: Answer) -> bool | None:
    """Whether retraining bore an answer out, whatever its kind; None if nothing can tell."""
    if answer.unlearning is not None:
        return is_forgotten(answer.unlearning)
    return is_confirmed(answer.arms)


def judgement(answer: Answer) -> str:
    """The verdict on an answer in sentences, whatever its kind; empty without one."""
    if answer.unlearning is not None or answer.kind == "debug":
        return next((arm.sentence for arm in answer.arms if arm.sentence), "")
    return verdict_sentence(answer.arms)


def is_confirmed(arms: Sequence[Arm]) -> bool | None:
    """Whether the chosen rows beat every control beyond the noise; None if that was not measured.

    Confirmed means that each 95 % interval of (chosen - arm) lies above zero. One arm that is not
    clearly beaten is enough for "not confirmed"; an oracle is no control.
    """
    controls = _controls(arms)
    known = [arm.advantage for arm in controls if arm.advantage and arm.advantage.is_known]
    if not known or len(known) < len(controls):
        return None
    return all(advantage.low > 0 for advantage in known)


def verdict_sentence(arms: Sequence[Arm]) -> str:
    """Say in one or two sentences whether retraining bore the answer out; empty without arms."""
    chosen = next((arm for arm in arms if arm.name == "chosen"), None)
    if chosen is None:
        return ""
    return _against_controls(arms) + _against_oracles(arms) + _against_prediction(chosen)


def _controls(arms: Sequence[Arm]) -> list[Arm]:
    return [arm for arm in arms if arm.name not in ("chosen", *ORACLES)]


def _against_oracles(arms: Sequence[Arm]) -> str:
    return "".join(
        f" The oracle {arm.name!r} ({arm.n_rows:,} rows) is a ceiling: chosen - oracle is "
        f"{advantage(arm)}."
        for arm in arms
        if arm.name in ORACLES and arm.advantage is not None
    )


def _against_controls(arms: Sequence[Arm]) -> str:
    confirmed = is_confirmed(arms)
    controls = _controls(arms)
    if confirmed is None:
        return "Not judged: some arm has no interval (it takes two or more seeds for one)."
    if confirmed:
        least = min(controls, key=lambda arm: arm.advantage.mean if arm.advantage else math.inf)
        return (
            f"Confirmed: models trained on the chosen rows beat every control; "
            f"the closest is {least.name!r}, by {advantage(least)}."
        )
    missed = [arm for arm in controls if arm.advantage is None or arm.advantage.low <= 0]
    listed = ", ".join(f"{arm.name!r} ({advantage(arm)})" for arm in missed)
    return f"Not confirmed: the chosen rows do not clearly beat {listed}."


def _against_prediction(chosen: Arm) -> str:
    if chosen.predicted is None or chosen.observed is None:
        return ""
    what = f" The change of mean {chosen.output}"
    if not chosen.predicted.is_known:
        return what + " was predicted without an interval."
    inside = chosen.predicted.low <= chosen.observed.mean <= chosen.predicted.high
    side = "above" if chosen.observed.mean > chosen.predicted.high else "below"
    fell = "inside" if inside else side
    return f"{what} fell {fell} its predicted interval."


def tracing_sentence(arms: Sequence[TracedArm], output: str) -> str:
    """Say whose rows are causes, and whether those who find the facts are the same."""
    methods = [arm for arm in arms if arm.arm != RANDOM and arm.change is not None]
    causes = [arm for arm in methods if arm.is_cause]
    if not causes:
        return "No method's rows clearly matter more than random ones: the cause was not found."
    most = min(causes, key=lambda arm: arm.change.mean if arm.change else 0.0)
    said = (
        f"Without the rows of '{most.arm}' queries lose most: their mean {output} changes by "
        f"{signed_interval(most.against_random)} more than without random rows."
    )
    others = [f"'{arm.arm}'" for arm in methods if not arm.is_cause]
    if others:
        said += f" Not clearly more than random: {', '.join(others)}."
    known = [arm for arm in methods if arm.mrr is not None]
    if known:
        best = max(known, key=lambda arm: arm.mrr.mean if arm.mrr else 0.0)
        if best.arm != most.arm:
            said += (
                f" The rows that state what is asked are found best by '{best.arm}': stating a "
                "fact and teaching it are two things here."
            )
    return said
