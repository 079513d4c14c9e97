"""What the arms of a verdict say in words: did the choice beat its controls, as was predicted?"""

import math
from collections.abc import Sequence

from tasks.reporting.findings import ORACLES, Answer, Arm
from tasks.reporting.forgetting import is_forgotten
from tasks.reporting.intervals import Interval
from tasks.reporting.tracing import RANDOM, TracedArm
from tasks.reporting.wording import advantage, plain_interval, signed_interval

# Outputs that are the log-probability of the labels, or its negative.
LIKELIHOODS = ("logprob", "loss")


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
    """Say in a few sentences whether retraining bore the answer out; empty without arms."""
    chosen = next((arm for arm in arms if arm.name == "chosen"), None)
    if chosen is None:
        return ""
    return (
        _against_controls(arms)
        + _likelihood(arms, chosen)
        + _against_oracles(arms)
        + _against_prediction(chosen)
    )


def arms_title(arms: Sequence[Arm]) -> str:
    """What `verdict_sentence` says, as the title of a picture."""
    said = is_confirmed(arms)
    if said is None or not any(arm.name == "chosen" for arm in arms):
        return "What each arm comes to"
    if said and is_less_likely(arms):
        return "The chosen rows beat every control,\nbut trail all rows in log-probability"
    if said:
        return "The chosen rows train a better model\nthan every control"
    beaten = [each.name for each in _controls(arms) if each.advantage and each.advantage.low > 0]
    if beaten:
        return f"The chosen rows beat {' and '.join(beaten)},\nbut not every control"
    return "The chosen rows are not clearly better"


def is_less_likely(arms: Sequence[Arm]) -> bool:
    """Whether models of the chosen rows surely find labels less likely than those of all rows.

    Accuracy and margins cannot tell: they rise where models become surer, also where that is of a
    wrong answer. Where log-probability itself is what is compared nothing needs to be added.
    """
    every = _every_row(arms)
    if every is None or (every.accuracy is None and every.output in LIKELIHOODS):
        return False
    ahead = every.logprob_advantage
    return ahead is not None and ahead.is_known and ahead.high < 0


def _every_row(arms: Sequence[Arm]) -> Arm | None:
    return next((arm for arm in arms if arm.name == "all"), None)


def _likelihood(arms: Sequence[Arm], chosen: Arm) -> str:
    """The sentence that accuracy and margins need where log-probability contradicts them."""
    every = _every_row(arms)
    if every is None or every.logprob_advantage is None or not is_less_likely(arms):
        return ""
    ahead = every.logprob_advantage
    lower = plain_interval(Interval(mean=-ahead.mean, low=-ahead.high, high=-ahead.low))
    whose = " But their mean log-probability"
    if not is_confirmed(arms):
        whose = " The mean log-probability of models trained on them"
    said = f"{whose} is lower than with all rows by {lower}"
    # Margins that rise while labels get less likely: of some rows models are surer, and of others
    # they believe more in another label.
    if chosen.output == "margin" and chosen.observed is not None and chosen.observed.low > 0:
        said += ": they are surer, also where they are wrong"
    return f"{said}."


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
