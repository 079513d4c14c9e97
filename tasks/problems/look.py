"""One query seen from all sides: rows, slices, copies, components, clusters, doubtful labels.

Everything is read from sealed artifacts: scores, the bank and the rows. Effects are those of the
calibrated surrogate, in the output's own unit; what is returned is plain data, as JSON has it.
"""

import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.spec import AttributionSpec, DebugSpec
from tasks.bank import logits_of, outputs_of
from tasks.blueprint import Blueprint
from tasks.problems.doubt import Doubt, doubt_of
from tasks.score import load_scores
from tasks.slices import Slice, classes_of, columns_of, slices_of

if TYPE_CHECKING:
    from attribution.explore import Components
    from attribution.slices import SliceTest
    from optimize.averaged import MeanDatamodel

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]

# Rows and slices that a report lists; the groups of a kind.
SHOWN, GROUPS = 10, 3
COMPONENTS, CLUSTERS = 8, 8
# Numbers in all up to which inputs are compared for copies.
MOST_NUMBERS = 1 << 28
# Of a row: by fewer the angle says nothing, and only exact copies count as copies.
FEWEST_NUMBERS = 16


class Look:
    """One query, and all that can be said of it without training a model.

    Args:
        plan: The blueprint.
        problem: The question.
        surrogate: Of the mean output over the query's rows.
        sign: +1 where more of the output is better, else -1.
    """

    def __init__(
        self, plan: Blueprint, problem: DebugSpec, surrogate: "MeanDatamodel", sign: float
    ) -> None:
        self.plan, self.problem, self.surrogate, self.sign = plan, problem, surrogate, sign
        self.attribution: AttributionSpec = plan.spec.attribution_named(problem.uses)
        self.effects: FloatArray = surrogate.weights[0]
        self.columns = columns_of(plan.dataset)
        self.classes = classes_of(plan.dataset)
        self.ids = plan.sets.ids(problem.targets)

    # --- what is tested ---------------------------------------------------------------------------

    @functools.cached_property
    def slices(self) -> list[Slice]:
        """Every slice that may be the cause."""
        from attribution.duplicates import groups_of

        further: dict[str, tuple[str, BoolArray]] = {}
        for rows in groups_of(self.groups, at_least=self.problem.smallest)[:SHOWN]:
            member = np.zeros(self.plan.n_train, dtype=bool)
            member[rows] = True
            first = int(self.plan.dataset.train.example_ids[rows[0]])
            further[f"near-duplicates of row {first}"] = ("copies", member)
        if self.doubt.doubtful.any():
            further["labels in doubt"] = ("labels", self.doubt.doubtful)
        return slices_of(self.columns, self.classes, further, smallest=self.problem.smallest)

    @functools.cached_property
    def tested(self) -> "SliceTest | None":
        """Each slice against random rows of the same classes, in goodness; None without slices."""
        from attribution.slices import slice_test

        if not self.slices:
            return None
        return slice_test(
            self.sign * self.effects,
            np.stack([each.member for each in self.slices]),
            strata=self.plan.dataset.train.targets if self.classes else None,
            permutations=self.problem.permutations,
            seed=self.plan.spec.seed,
        )

    def cause(self) -> int | None:
        """The slice that holds the output down most, if chance seldom has one as low."""
        if self.tested is None:
            return None
        lowest = int(np.argmin(self.tested.standing))
        return lowest if self.tested.p_low[lowest] <= self.problem.level else None

    def hypothesis(self, place: int) -> dict[str, Any]:
        """A slice as the cause, and what leaving it out should do."""
        cause, seeds = self.slices[place], self.problem.seeds
        random = without_matched(self.plan, cause.member, seeds, ())
        without = np.tile(~cause.member, (seeds, 1))
        return {
            "name": cause.name,
            "kind": cause.kind,
            "rows": cause.size,
            "ids": self.plan.dataset.train.example_ids[cause.member].tolist(),
            "chance": float(self.tested.p_low[place]) if self.tested else 1.0,
            "change": self._change(np.ones_like(without), without),
            "random": self._change(np.ones_like(random), random),
            "beyond": self._change(random, without),
        }

    def _change(self, before: BoolArray, after: BoolArray) -> list[float | None]:
        """Mean predicted change with its 95 % interval, over pairs of subsets."""
        mean, sd = self.surrogate.predict_change(before, after, seeds=self.problem.seeds)
        low, high = self.surrogate.interval(mean, sd, confidence=0.95)
        means = (float(np.mean(part)) for part in (mean, low, high))
        return [value if np.isfinite(value) else None for value in means]

    def _without(self, rows: IndexArray | BoolArray) -> list[float | None]:
        left = np.ones((1, self.plan.n_train), dtype=bool)
        left[0, rows] = False
        return self._change(np.ones_like(left), left)

    # --- what is shown ----------------------------------------------------------------------------

    def query(self) -> dict[str, Any]:
        """What models say of the query: the bank's, of the largest share of the rows."""
        plan, bank = self.plan, self.plan.bank
        rows = bank.rows("calibrate")
        sizes = bank.masks[rows].sum(axis=1)
        largest = rows[sizes == sizes.max()]
        logits = logits_of(plan, bank.ids_of(largest))
        names = {"value": plan.output(self.attribution), "loss": "loss"}
        said: dict[str, Any] = {
            "asked": self.problem.targets,
            "ids": self.ids[:SHOWN].tolist(),
            "rows": len(self.ids),
            "models": len(largest),
            "share": float(sizes.max() / plan.n_train),
        }
        for key, output in names.items():
            values = outputs_of(plan, logits, self.ids, output).mean(axis=1, dtype=np.float64)
            said |= {key: float(values.mean()), f"{key}_sd": float(values.std())}
        if len(self.ids) == 1:
            said |= self._described(plan.dataset.positions(self.ids))[0]
        if self.classes:
            said["predictions"] = self._votes(logits)
        return said

    def _votes(self, logits: NDArray[np.float32]) -> list[list[Any]]:
        """The classes that models predict most, with their shares."""
        names = self.plan.dataset.classes
        places = self.plan.dataset.positions(self.ids) - self.plan.n_train
        predicted = logits[:, places].argmax(axis=-1).ravel()
        votes = np.bincount(predicted, minlength=len(names)) / len(predicted)
        order = np.argsort(-votes, kind="stable")[:GROUPS]
        return [[names[place], float(votes[place])] for place in order if votes[place]]

    def rows(self, places: IndexArray) -> list[dict[str, Any]]:
        """Training rows with what each does to the output."""
        described = self._described(places)
        for entry, place in zip(described, places.tolist(), strict=True):
            entry["effect"] = float(self.effects[place])
            entry["doubtful"] = bool(self.doubt.doubtful[place])
            entry["wrong"] = float(self.doubt.probability[place])
        return described

    def slice_rows(self) -> list[dict[str, Any]]:
        """The slices that hold the output down most, and those that hold it up most."""
        if self.tested is None:
            return []
        order = np.argsort(self.tested.standing, kind="stable").tolist()
        ends = dict.fromkeys([*order[:SHOWN], *order[-GROUPS:]])
        return [
            {
                "name": self.slices[place].name,
                "kind": self.slices[place].kind,
                "rows": self.slices[place].size,
                "effect": self.sign * float(self.tested.effect[place]),
                "random": self.sign * float(self.tested.expected[place]),
                "standing": float(self.tested.standing[place]),
                "chance": float(self.tested.p_low[place]),
                "change": self._without(self.slices[place].member),
            }
            for place in ends
        ]

    def copies(self) -> list[dict[str, Any]]:
        """Near-duplicates and what they do together, the strongest first."""
        from attribution.duplicates import groups_of
        from attribution.sanity import cluster_scores

        joint = cluster_scores(self.effects[None], self.groups)[0]
        known = groups_of(self.groups)
        known.sort(key=lambda rows: -abs(joint[self.groups[rows[0]]]))
        ids = self.plan.dataset.train.example_ids
        return [
            {
                "ids": ids[rows][:SHOWN].tolist(),
                "rows": len(rows),
                "effect": float(joint[self.groups[rows[0]]]),
                "change": self._without(rows),
            }
            for rows in known[:GROUPS]
        ]

    def component(self) -> dict[str, Any] | None:
        """The component of the scores along which the query lies furthest from the others."""
        found = self._components
        if found is None:
            return None
        own = found.loadings[self.plan.sets.places(self.problem.targets)].mean(axis=0)
        place = int(np.argmax(np.abs(own)))
        ends = found.rows(place, SHOWN)
        # The end whose rows lower this query, whichever way the direction points.
        lowering = ends.low if self.sign * own[place] > 0 else ends.high
        spread = float(found.loadings[:, place].std())
        return {
            "number": place + 1,
            "explained": float(found.explained[place]),
            "standing": float(own[place]) / spread if spread else 0.0,
            "traits": self._traits(np.isin(np.arange(self.plan.n_train), lowering) - 1).get(0, []),
            "lowering": self.rows(lowering[:GROUPS]),
        }

    def clusters(self) -> list[dict[str, Any]]:
        """Groups of rows that do alike to all queries; the one that lowers this one most first."""
        from attribution.clusters import cluster

        if self._components is None:
            return []
        points = self._components.of_rows
        if np.count_nonzero(points.any(axis=1)) < CLUSTERS * self.problem.smallest:
            return []
        found = cluster(points, CLUSTERS, seed=self.plan.spec.seed)
        sums = [self.effects[found.labels == place].sum() for place in range(CLUSTERS)]
        order = np.argsort(self.sign * np.array(sums), kind="stable")[:GROUPS]
        named = self._traits(found.labels)
        return [
            {
                "rows": int(found.sizes[place]),
                "effect": float(sums[place]),
                "traits": named.get(place, []),
                "exemplars": self.rows(found.exemplars(place, GROUPS)),
            }
            for place in order.tolist()
        ]

    def doubts(self) -> dict[str, Any]:
        """Labels in doubt, and those of them that hold the output down."""
        order = np.argsort(self.sign * self.effects, kind="stable")
        harmful = order[self.doubt.doubtful[order] & (self.sign * self.effects[order] < 0)]
        return {
            "by": self.doubt.by,
            "labels": int(self.doubt.doubtful.sum()),
            "harmful": len(harmful),
            "rows": self.rows(harmful[:SHOWN]),
        }

    # --- what several of these need ---------------------------------------------------------------

    @functools.cached_property
    def groups(self) -> IndexArray:
        """Near-duplicates: the group of each training row."""
        from attribution.duplicates import near_duplicates

        inputs, tokens = self.plan.dataset.train.inputs, self.plan.dataset.facts.n_tokens
        if inputs.size > MOST_NUMBERS or inputs[0].size < FEWEST_NUMBERS:
            hashes = np.array(self.plan.dataset.hashes[: self.plan.n_train])
            return np.unique(hashes, return_inverse=True)[1]
        rows = _counts(inputs, tokens) if tokens else np.array(inputs)
        return near_duplicates(rows, threshold=self.problem.alike)

    @functools.cached_property
    def doubt(self) -> Doubt:
        """How doubtful each label is."""
        return doubt_of(self.plan, self.attribution, sign=self.sign)

    @functools.cached_property
    def _components(self) -> "Components | None":
        from attribution.explore import principal_components

        scores = load_scores(self.plan, self.attribution)
        if len(scores) <= COMPONENTS:
            return None
        return principal_components(
            scores, min(COMPONENTS, scores.shape[1]), seed=self.plan.spec.seed
        )

    def _described(self, places: NDArray[Any]) -> list[dict[str, Any]]:
        examples = self.plan.dataset.examples[places.tolist()]
        return [
            {
                "id": row["example_id"],
                "label": row["target"],
                "true_label": row["true_target"],
                "metadata": json.loads(row["metadata"]) if row["metadata"] else {},
            }
            for row in examples.iter_rows(named=True)
        ]

    def _traits(self, labels: NDArray[Any]) -> dict[int, list[str]]:
        """What groups of training rows have in common, in words."""
        from attribution.clusters import traits

        columns = dict(self.columns) | ({"class": self.classes} if self.classes else {})
        return {
            group: [
                f"{each.inside} of {each.members} have {each.column} = '{each.value}', "
                f"{each.lift:.1f} times the usual share"
                for each in some[:GROUPS]
            ]
            for group, some in traits(labels, columns).items()
        }


def without_matched(
    plan: Blueprint, member: BoolArray, repeats: int, suffix: tuple[int, ...]
) -> BoolArray:
    """All rows but as many random ones of each class as a slice has: bool [repeats, n_train]."""
    from attribution.slices import matched_rows
    from attribution.streams import Purpose, stream

    strata = plan.dataset.train.targets if plan.dataset.classes else None
    draws = (stream(plan.spec.seed, Purpose.ARMS, 2, repeat, *suffix) for repeat in range(repeats))
    return np.stack([~matched_rows(member, strata, draw) for draw in draws])


def _counts(tokens: NDArray[np.int64], vocabulary: int) -> NDArray[np.float32]:
    """Square roots of how often each token is in a text [n, vocabulary], padding left out."""
    counts = np.zeros((len(tokens), vocabulary), dtype=np.float32)
    np.add.at(counts, (np.arange(len(tokens))[:, None], tokens), 1.0)
    counts[:, 0] = 0
    return np.sqrt(counts)
