"""Values: what each source of the training rows, or each row, adds to a model, by retraining.

Players join coalitions, a model is trained on the rows of each, and its mean output over the
targets is what the coalition is worth. The models are retrainings like all others: known by id,
sealed chunk by chunk, trained once whatever is asked of them next, and an interrupted valuation
goes on where it was. Every coalition has the same training seeds; the empty one is the untrained
model. There is nothing to judge by retraining: values are retrainings.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import ValueSpec
from tasks.bank import CHUNK_MODELS, accuracy_of, observed, outputs_of, read_logits, retrained
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.players import most_retrainings
from tasks.preflight import check_valuation
from tasks.progress import advance
from tasks.sets import IntArray
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from attribution.valuation import Values

STAGE = "values"
VALUES_FILE, ERRORS_FILE = "values.npy", "errors.npy"
# Names of the models that were trained, one a line.
MODELS_FILE = "retrainings.txt"

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@task(name="value", cache_policy=NO_CACHE)
def appraise(job: Job, name: str) -> Manifest:
    """Say what each player of a problem is worth."""
    plan = blueprint(job)
    problem = next(problem for problem in plan.spec.valuations if problem.name == name)
    key = plan.values.key(problem)
    manifest = plan.artifacts.find(STAGE, key) or _appraise(plan, problem, key)
    advance(STAGE, plan.count_done(STAGE, key), len(plan.spec.valuations), "valuations")
    return manifest


def _appraise(plan: Blueprint, problem: ValueSpec, key: str) -> Manifest:
    from attribution.valuation import Game, Sources, value

    check_valuation(plan, problem)
    models = _Models(plan, problem)
    sources = Sources(models.players.labels)
    game = Game(lambda masks: models.worth(masks, sources.rows), len(sources))
    found = value(
        game,
        len(sources),
        method=problem.method,
        shape=problem.shape or (16.0, 1.0),
        draws=problem.draws,
        tolerance=problem.tolerance,
        seed=plan.spec.seed,
    )
    nothing, everything = game(np.array([[False], [True]]).repeat(len(sources), axis=1))[:, 0]
    errors = _errors(found)
    inputs = {"trained_by": plan.training.digest}
    with plan.artifacts.seal(STAGE, key, version=VERSIONS[STAGE], inputs=inputs) as draft:
        np.save(draft.path / VALUES_FILE, found.values[0])
        np.save(draft.path / ERRORS_FILE, errors)
        (draft.path / MODELS_FILE).write_text("\n".join(models.names), encoding="utf-8")
        draft.facts |= {
            "output": models.output,
            "nothing": float(nothing),
            "everything": float(everything),
            "retrainings": len(models.names),
            "converged": found.converged,
            "sentence": f"{found.sentence} {_harm(models, found.values[0], errors)}",
        }
    return draft.manifest


def models_of(plan: Blueprint, manifest: Manifest) -> list[str]:
    """Names of the models that some values were made of."""
    path = plan.artifacts.folder(manifest) / MODELS_FILE
    return path.read_text(encoding="utf-8").splitlines()


def _errors(found: "Values") -> FloatArray:
    """Standard errors of the mean over seeds: of the draws, and of the seeds where several are."""
    seeds = found.values[1:]
    if len(seeds) == 0:
        return found.standard_errors[0]
    noise = seeds.std(axis=0, ddof=1) / math.sqrt(len(seeds))
    return np.hypot(found.standard_errors[0], noise)


def _harm(models: "_Models", values: FloatArray, errors: FloatArray) -> str:
    """Sentences about the noise of training, and the players that make the model worse."""
    who = "sources" if models.players.by else "rows"
    noise = "One training seed: the errors know nothing of its noise."
    if models.repeats > 1:
        noise = f"The errors hold the noise of {models.repeats} training seeds."
    rounding = 1e-6 * np.abs(values).max()  # float32 outputs; a player of no effect blames none
    worse = np.flatnonzero(values < -2 * errors - rounding)
    if len(worse) == 0:
        return f"{noise} None of the {who} clearly makes the model worse."
    first = models.players.names[worse[np.argmin(values[worse])]]
    return (
        f"{noise} {len(worse)} of {len(models.players)} {who} made the model worse, most of all "
        f"'{first}'."
    )


class _Models:
    """The models of coalitions, and what they are worth.

    Attributes:
        players: Who is valued.
        output: Whose mean over the targets is the worth of a model.
        repeats: Training seeds of each coalition.
        names: The retrainings asked for so far, each once.
    """

    def __init__(self, plan: Blueprint, problem: ValueSpec) -> None:
        self.players = plan.values.players(problem)
        self.output = problem.worth_for(plan.dataset.facts.task)
        self.repeats = problem.seeds
        self.names: dict[str, None] = {}
        self._plan = plan
        self._targets = plan.sets.ids(problem.targets)
        self._most = most_retrainings(problem, len(self.players))
        self._seeds: IntArray = np.array(plan.training.seeds(problem.seeds))

    def worth(self, masks: BoolArray, rows_of: Callable[[BoolArray], BoolArray]) -> FloatArray:
        """What models of coalitions are worth: bool [B, n_players] to [B, 1 + seeds].

        The first column is the mean over the seeds; one seed has no column beside it.
        """
        found = np.empty((len(masks), self.repeats))
        sizes = masks @ self.players.sizes
        if (sizes == 0).any():
            found[sizes == 0] = self._of_logits(self._of_nothing())
        # Models of like size take nearly the same steps, so they are trained side by side.
        order = np.argsort(sizes, kind="stable")[np.count_nonzero(sizes == 0) :]
        step = max(1, CHUNK_MODELS // self.repeats)
        for start in range(0, len(order), step):
            some = order[start : start + step]
            found[some] = self._trained(rows_of(masks[some]))
            advance(STAGE, len(self.names), self._most, "models")
        mean = found.mean(axis=1, keepdims=True)
        return mean if self.repeats == 1 else np.hstack([mean, found])

    def _trained(self, rows: BoolArray) -> FloatArray:
        masks, seeds = rows.repeat(self.repeats, axis=0), np.tile(self._seeds, len(rows))
        names = retrained(self._plan, masks, seeds, alike=False)
        self.names |= dict.fromkeys(names)
        values = np.empty(len(names))
        for places, logits in read_logits(self._plan, names):
            values[places] = self._of_logits(logits)
        return values.reshape(-1, self.repeats)

    def _of_nothing(self) -> NDArray[np.float32]:
        from attribution.valuation import untrained

        return observed(self._plan, untrained(self._plan.build_model, self._seeds.tolist()))

    def _of_logits(self, logits: NDArray[np.float32]) -> FloatArray:
        if self.output == "accuracy":
            return accuracy_of(self._plan, logits, self._targets)
        outputs = outputs_of(self._plan, logits, self._targets, self.output)
        means = outputs.mean(axis=1, dtype=np.float64)
        return -means if self.output in FALLING else means
