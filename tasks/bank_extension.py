"""What extended a bank after its spec was written: models drawn, adopted, chosen for their gain.

Each act is sealed as one small record. The records of one bank are numbered from 0 and read in
that order; another data set, model, recipe, seed or [bank] section is another bank and starts from
its spec again.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from schemas.complaints import complaints
from schemas.errors import NotFound, RequestError
from schemas.manifest import Manifest
from schemas.spec import BankSpec
from store.artifacts import Artifacts, artifact_key

if TYPE_CHECKING:
    from tasks.blueprint import Blueprint

STAGE = "extension"
VERSION = 1
# Of a record that adopts retrainings, and of a verdict: their subsets and their seeds.
MASKS_FILE, SEEDS_FILE = "masks.npy", "seeds.npy"
# Origin of the retrainings that were chosen for what they tell (`tasks.bank_design`).
NEXT = "next"

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Retrainings of chosen subsets: bool [m, n_train], int64 [m], and where each came from [m]."""

    masks: BoolArray
    seeds: IntArray
    origins: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, chosen: BoolArray | IntArray) -> "Rows":
        """Some of the rows, by number or by a mask over them."""
        return Rows(
            masks=self.masks[chosen], seeds=self.seeds[chosen], origins=self.origins[chosen]
        )

    def without(self, subsets: BoolArray) -> "Rows":
        """The rows whose subset is none of these, bool [k, n_train]."""
        packed = {row.tobytes() for row in np.packbits(subsets, axis=1)}
        own = np.packbits(self.masks, axis=1)
        return self.take(np.array([row.tobytes() not in packed for row in own], dtype=bool))


@dataclass(frozen=True, kw_only=True, eq=False)
class Extension:
    """All that extended one bank.

    Attributes:
        models: Models drawn in all, or 0 where the spec's number still holds.
        adopted: What each act of adoption or choice added, in order.
        acts: How many records there are.
    """

    models: int = 0
    adopted: tuple[Rows, ...] = ()
    acts: int = 0


def joined(parts: Iterable[Rows], n_train: int) -> Rows:
    """Several rows, or none, as one."""
    none = Rows(
        masks=np.empty((0, n_train), dtype=bool),
        seeds=np.empty(0, dtype=np.int64),
        origins=np.empty(0, dtype="<U1"),
    )
    every = (none, *parts)
    return Rows(
        masks=np.concatenate([part.masks for part in every]),
        seeds=np.concatenate([part.seeds for part in every]),
        origins=np.concatenate([part.origins for part in every]),
    )


def read_extension(artifacts: Artifacts, base: str, *, acts: int | None = None) -> Extension:
    """What the sealed records say of the bank that a digest names.

    Args:
        artifacts: The workspace's artifacts.
        base: The digest.
        acts: Read the first so many records; None: all.
    """
    models, adopted = 0, []
    found = list(itertools.islice(read_records(artifacts, base), acts))
    for record in found:
        drawn: Any = record.facts.get("models", 0)
        models = max(models, int(drawn))
        if "origins" in record.facts:
            adopted.append(load_rows(artifacts, record))
    return Extension(models=models, adopted=tuple(adopted), acts=len(found))


def read_records(artifacts: Artifacts, base: str) -> Iterator[Manifest]:
    """The sealed records of the bank that a digest names, in the order of the acts."""
    for number in itertools.count():
        record = artifacts.find(STAGE, _record_key(base, number))
        if record is None:
            return
        yield record


def load_rows(artifacts: Artifacts, sealed: Manifest) -> Rows:
    """The retrainings that an adoption or a verdict lists."""
    folder = artifacts.folder(sealed)
    return Rows(
        masks=np.load(folder / MASKS_FILE),
        seeds=np.load(folder / SEEDS_FILE),
        origins=np.array(sealed.facts["origins"]),
    )


def record_models(plan: "Blueprint", models: int) -> Manifest:
    """Seal that the bank holds so many drawn models from now on."""
    with plan.artifacts.seal(STAGE, _next_key(plan), version=VERSION) as draft:
        draft.facts |= {"models": models}
    return draft.manifest


def record_adoption(
    plan: "Blueprint", rows: Rows, *, facts: dict[str, Any] | None = None
) -> Manifest:
    """Seal that the bank calibrates on some retrainings from now on, and facts about them."""
    with plan.artifacts.seal(STAGE, _next_key(plan), version=VERSION) as draft:
        np.save(draft.path / MASKS_FILE, rows.masks)
        np.save(draft.path / SEEDS_FILE, rows.seeds)
        draft.facts |= {"origins": rows.origins.tolist(), **(facts or {})}
    return draft.manifest


def models_to_draw(plan: "Blueprint", models: int) -> int:
    """The number of models of an extension, checked; one that was killed may be asked for again.

    Raises:
        RequestError: There are as many already, or they cannot be shared out over the subsets.
    """
    there = plan.bank.drawn
    unfinished = models == plan.retraining.extension.models and len(plan.retraining.missing()) > 0
    if models <= there and not unfinished:
        raise RequestError(
            f"--models {models}: the bank has {there} drawn models already; give a larger number"
        )
    try:
        BankSpec.model_validate(plan.spec.bank.model_dump() | {"models": models})
    except ValidationError as error:
        (problem, *_) = complaints(error, BankSpec, {})
        raise RequestError(f"--models: {problem.partition(': ')[2]}") from None
    return models


def rows_to_adopt(plan: "Blueprint") -> Rows:
    """The sealed retrainings of verdicts that the bank does not hold.

    A subset on which the bank evaluates is left out: nothing evaluates what it was fitted to.

    Raises:
        NotFound: There are none.
    """
    known = plan.retraining.sealed.look()
    names, rows = strangers(plan)
    sealed = np.array([known.logits(name) is not None for name in names], dtype=bool)
    found = rows.take(sealed).without(plan.bank.masks[plan.bank.rows("evaluate")])
    if not len(found):
        raise NotFound(
            "there is no verdict's retraining that the bank does not hold; "
            "`winnow run` makes some for each [[problem]]"
        )
    return found


def strangers(plan: "Blueprint") -> tuple[list[str], Rows]:
    """Names and rows of the verdicts' retrainings that the bank does not hold, each once.

    Every verdict of the workspace counts whose models have this recipe and these training rows.
    """
    taken, names, parts = set(plan.bank.ids), list[str](), list[Rows]()
    for verdict in plan.artifacts.manifests("verdict"):
        if verdict.inputs.get("trained_by") == plan.training.digest:
            own: Any = verdict.facts["retrainings"]
            new = {name: place for place, name in enumerate(own) if name not in taken}
            names += new
            taken |= new.keys()
            places = np.array(list(new.values()), dtype=np.int64)
            parts.append(load_rows(plan.artifacts, verdict).take(places))
    return names, joined(parts, plan.n_train)


def _next_key(plan: "Blueprint") -> str:
    # Counted anew: the plan may be older than the last act.
    base = plan.retraining.base
    return _record_key(base, read_extension(plan.artifacts, base).acts)


def _record_key(base: str, number: int) -> str:
    return artifact_key(STAGE, VERSION, base, number)
