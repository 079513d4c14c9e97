"""What one run said of rows that had to be forgotten, as frozen records and in sentences."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHOSEN, UNTOUCHED, RETRAINED = "chosen", "all", "retrained"
FORGOTTEN, RETAINED, JUDGING = "forgotten", "retained", "judging"


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far the models of an arm are from retrained ones on one group of rows, in nats."""

    n_rows: int
    models: int
    klom: float
    klom_p95: float
    null_klom: float
    null_p95: float
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """One arm: untouched, retrained, or changed by a method.

    Attributes:
        arm: Its name in the verdict.
        method: How its models were changed; None where they were not.
        options: Of the method, as JSON.
        cost: Examples processed for one model, as a share of a retraining's.
        scoring: Of these examples, those of gradients and curvature.
        examples: All of them.
        reached: Whether it is as close as retrained models are to each other.
        membership: Accuracy of telling its models from retrained ones; 0.5 is ideal.
        membership_sd: Its spread over models.
        distances: By group of rows.
    """

    arm: str
    method: str | None
    options: str
    cost: float
    scoring: float
    examples: float
    reached: bool
    membership: float | None
    membership_sd: float | None
    distances: Mapping[str, Distance]

    @property
    def label(self) -> str:
        """What a reader calls it."""
        untouched = {UNTOUCHED: "untouched", RETRAINED: "retrained"}
        return untouched.get(self.arm) or self.method or self.arm

    @property
    def distance(self) -> Distance:
        """On the forgotten rows."""
        return self.distances[FORGOTTEN]


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """What unlearning came to.

    Attributes:
        method: Of the chosen arm.
        n_forgotten: Rows that had to go.
        requests: Requests among whose rows they are.
        models: Models that were unlearned.
        oracles: Models that were retrained.
        n_queries: Queries on which predicted and retrained changes are compared.
        correlation: Over queries; None where nothing varies.
        ceiling: What noise allows.
        slope: Of retrained on predicted changes.
        slope_low: Lower end of its interval.
        slope_high: Upper end.
        error: Root mean square error of the predictions.
        error_unchanged: The same of predicting no change.
        certificate: Where the certificate is, relative to the workspace.
        arms: Untouched, retrained, chosen, then the others.
    """

    method: str
    n_forgotten: int
    requests: int
    models: int
    oracles: int
    n_queries: int
    correlation: float | None
    ceiling: float | None
    slope: float | None
    slope_low: float | None
    slope_high: float | None
    error: float
    error_unchanged: float
    certificate: str
    arms: tuple[Forgetting, ...]

    def arm(self, name: str) -> Forgetting:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.arm == name)

    @property
    def measured(self) -> tuple[Forgetting, ...]:
        """The arms that are compared with retrained models."""
        return tuple(arm for arm in self.arms if arm.arm != RETRAINED)

    @property
    def floor(self) -> float:
        """KLoM P95 of retrained models on the forgotten rows, half of them against the others."""
        return self.arm(RETRAINED).distance.klom_p95


def unlearning_of(
    row: Mapping[str, Any],
    arms: Iterable[Mapping[str, Any]],
    closeness: Iterable[Mapping[str, Any]],
) -> Unlearning:
    """A record from a row of `unlearnings` and rows of `unlearned` and `closeness`, with arms."""
    distances: dict[str, dict[str, Distance]] = {}
    for entry in closeness:
        fields = {name: entry[name] for name in Distance.__dataclass_fields__}
        distances.setdefault(entry["arm"], {})[entry["rows"]] = Distance(**fields)
    own = [name for name in Forgetting.__dataclass_fields__ if name != "distances"]
    found = [
        Forgetting(**{name: entry[name] for name in own}, distances=distances[entry["arm"]])
        for entry in arms
    ]
    rank = {name: place for place, name in enumerate((UNTOUCHED, RETRAINED, CHOSEN))}
    found.sort(key=lambda arm: rank.get(arm.arm, len(rank)))
    told = [name for name in Unlearning.__dataclass_fields__ if name != "arms"]
    return Unlearning(**{name: row[name] for name in told}, arms=tuple(found))


def closed(unlearning: Unlearning, arm: Forgetting) -> float | None:
    """Of the way from untouched models to the floor, by the 95th percentile; 1 is all of it.

    None where untouched models stand at the floor already, and there is no way to go.
    """
    start = unlearning.arm(UNTOUCHED)
    way = start.distance.klom_p95 - arm.distance.null_p95
    if start.reached or way <= 0:
        return None
    return (start.distance.klom_p95 - arm.distance.klom_p95) / way


def options_text(options: str) -> str:
    """The options of a method, from JSON, as a person reads them: a line for each group."""
    told = json.loads(options)
    groups = {name: value for name, value in told.items() if isinstance(value, dict)}
    own = {name: value for name, value in told.items() if name not in groups}
    lines = [f"{name}: {_listed(group)}" for name, group in groups.items()]
    return "\n".join([_listed(own), *lines] if own else lines)


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in options.items()
    )


def is_forgotten(unlearning: Unlearning) -> bool | None:
    """Whether the chosen models reached the floor; None where untouched models stand there too."""
    if unlearning.arm(UNTOUCHED).reached:
        return None
    return unlearning.arm(CHOSEN).reached


def state_word(unlearning: Unlearning) -> str:
    """`is_forgotten` in a word or two, for a table."""
    words = {True: "as if retrained", False: "not as if retrained", None: "nothing to tell apart"}
    return words[is_forgotten(unlearning)]


def closeness_sentence(unlearning: Unlearning) -> str:
    """Whether the models are as if retrained, in words that claim no more than was measured."""
    own, start = unlearning.arm(CHOSEN), unlearning.arm(UNTOUCHED)
    rows = f"{own.distance.n_rows:,} forgotten rows"
    floor = f"{own.distance.null_p95:.2f} between halves of the retrained models"
    figure = f"the KLoM P95 of '{own.method}' is {own.distance.klom_p95:.2f}, and {floor}"
    state = is_forgotten(unlearning)
    if state is None:
        return (
            f"Nothing to tell apart: on the {rows} even untouched models "
            f"(KLoM P95 {start.distance.klom_p95:.2f}) are as close to retrained ones as those are "
            f"to each other ({own.distance.null_p95:.2f}, {own.distance.models} models a side)."
        )
    if state:
        return (
            f"As if retrained, as far as {own.distance.models} models a side can tell: on the "
            f"{rows} {figure}; of untouched models it is {start.distance.klom_p95:.2f}."
        )
    share = closed(unlearning, own)
    way = "no closer than untouched models"
    if share is not None and share > 0:
        way = f"{share:.0%} of the way from untouched models"
    return (
        f"Not as if retrained: on the {rows} {figure}; that is {way} "
        f"({start.distance.klom_p95:.2f})."
    )


def membership_sentence(unlearning: Unlearning) -> str:
    """What an attack on the forgotten rows can tell."""
    own, start = unlearning.arm(CHOSEN), unlearning.arm(UNTOUCHED)
    if own.membership is None or start.membership is None:
        return ""
    return (
        f"A likelihood-ratio attack tells its models from retrained ones in {own.membership:.0%} "
        f"of cases, untouched models in {start.membership:.0%}; 50% is ideal."
    )


def queries_sentence(unlearning: Unlearning) -> str:
    """How the predicted changes of single queries compare with those of retraining."""
    u = unlearning
    errors = (
        f"the root mean square error of the predictions is {u.error:.3g}; had no change been "
        f"predicted, it would be {u.error_unchanged:.3g}."
    )
    said = ""
    if u.correlation is not None and u.slope is not None:
        most = "noise hides them all" if u.ceiling is None else f"noise allows {u.ceiling:.2f}"
        said = (
            f"Over {u.n_queries:,} single queries predicted and retrained changes correlate at "
            f"{u.correlation:.2f} ({most}), slope {u.slope:.2f}; {errors}"
        )
    if u.error > u.error_unchanged:
        return (
            "Do not use the predictions of single queries: they are further off than predicting "
            f"no change. {said or errors[0].upper() + errors[1:]}"
        )
    return said


def prediction_sentence(output: str, predicted: Sequence[float | None], observed: float) -> str:
    """Whether retraining changed the mean output as was predicted."""
    mean, low, high = predicted
    what = f"Retraining without them changed the mean {output} by {observed:+.3g}"
    if mean is None:
        return f"{what}."
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return f"{what}; {mean:+.3g} was predicted, without an interval."
    fell = "inside" if low <= observed <= high else "above" if observed > high else "below"
    return f"{what}, {fell} its predicted interval [{low:+.3g}, {high:+.3g}]."


def unlearning_sentence(
    unlearning: Unlearning,
    output: str,
    predicted: Sequence[float | None],
    observed: float,
    *,
    limit: str = "",
) -> str:
    """All of it: closeness, attack, what neither can say, prediction, single queries."""
    parts = (
        closeness_sentence(unlearning),
        membership_sentence(unlearning),
        limit,
        prediction_sentence(output, predicted, observed),
        queries_sentence(unlearning),
    )
    return " ".join(part for part in parts if part)


def from_facts(facts: Mapping[str, Any], certificate: str = "") -> Unlearning:
    """A record from the facts of a verdict, as they will be in the tables."""
    own = {name: facts[name] for name in ("method", "n_forgotten", "requests", "models", "oracles")}
    row = {**own, **facts["queries"], "certificate": certificate}
    return unlearning_of(row, facts["unlearned"], facts["closeness"])
