"""The retrain bank: many models on subsets of the training rows, trained as one, chunk by chunk.

A retraining is known by its id; only what no sealed chunk of the workspace holds is trained. A
chunk seals the logits of its models on every test row, so that every output follows without
training, and their weights: all of them where they are small, else those that an attribution reads
as checkpoints. `outputs_of` and `open_bank` are how everything else sees retrained models.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import CorruptArtifact
from schemas.manifest import Manifest
from store.artifacts import artifact_key
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.progress import advance
from tasks.retrainings import LOGITS_FILE, OBSERVED_FILE, STAGE, STATES_FILE, Place
from tasks.sets import IntArray
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from torch import Tensor

    from attribution.bank import RetrainBank
    from attribution.training import TrainedModels

# Models of one chunk: what a killed run can lose.
CHUNK_MODELS = 40
# Bytes of weights that a chunk keeps unasked: 100,000 parameters a model. New test rows then cost
# a forward pass and no training.
KEPT_BYTES = 16 * 2**20

BoolArray = NDArray[np.bool_]


class TrainingRows(NamedTuple):
    """The rows that masks are over, where they are others than the plan's training rows.

    Attributes:
        inputs: [n, ...].
        targets: [n].
        digests: Of each row as the model sees it.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    digests: Sequence[str]


@task(name="extend bank", cache_policy=NO_CACHE)
def extend_bank(job: Job, rows: list[int]) -> Manifest:
    """Make some rows of the bank as one chunk, unless it is sealed."""
    plan = blueprint(job)
    manifest = _chunk(plan, plan.bank.masks[rows], plan.bank.seeds[rows])
    done = max(plan.count_done(STAGE, plan.bank.ids[row]) for row in rows)
    advance(STAGE, done, len(plan.bank), "models")
    return manifest


def pending_chunks(job: Job) -> list[list[int]]:
    """The rows of the bank that are not sealed yet, as chunks."""
    plan = blueprint(job)
    bank, missing = plan.bank, plan.retraining.missing()
    for row in np.setdiff1d(np.arange(len(bank)), missing):
        plan.count_done(STAGE, bank.ids[row])
    cut = cut_in_chunks(plan, bank.masks[missing], bank.ids_of(missing))
    return [missing[chunk].tolist() for chunk in cut]


def retrained(
    plan: Blueprint,
    masks: BoolArray,
    seeds: IntArray,
    *,
    alike: bool = True,
    weights: bool = False,
    rows: TrainingRows | None = None,
) -> list[str]:
    """Names of the models trained on some masks; those that are not sealed are trained first.

    Args:
        plan: The blueprint.
        masks: Bool [m, n_train].
        seeds: Training seed of each [m].
        alike: As `cut_in_chunks` takes it.
        weights: Keep their weights however large they are, for `states_of`.
        rows: What the masks are over; by default the training rows.
    """
    names = plan.retraining.ids_of(masks, seeds, rows and rows.digests)
    known, places = plan.retraining.sealed.look(), {name: place for place, name in enumerate(names)}
    missing = {
        name: place
        for name, place in places.items()
        if known.logits(name) is None or (weights and known.weights(name) is None)
    }
    new = np.array(list(missing.values()), dtype=np.intp)
    for chunk in cut_in_chunks(plan, masks[new], list(missing), alike=alike):
        _chunk(plan, masks[new[chunk]], seeds[new[chunk]], weights=weights, rows=rows)
    return names


def states_of(plan: Blueprint, names: Sequence[str]) -> "dict[str, Tensor]":
    """Weights of retrainings that were asked for with them, [m, ...] by name.

    Raises:
        CorruptArtifact: Those of one are not sealed any more.
    """
    known = plan.retraining.sealed.look()
    places = [place for name in names if (place := known.weights(name))]
    if len(places) < len(names):
        lost = next(name for name in names if known.weights(name) is None)
        raise CorruptArtifact(f"the weights of retraining {lost} disappeared; run again")
    return _stacked(plan, places)


def cut_in_chunks(
    plan: Blueprint, masks: BoolArray, names: Sequence[str], *, alike: bool = True
) -> list[list[int]]:
    """Places of retrainings that are made together, at most `CHUNK_MODELS`.

    Subsets of one size only, which take the same steps: none is padded to the steps of another.
    Where nearly every size differs, as of coalitions of sources, ``alike=False`` lets them share
    chunks by rising size; 63 coalitions of six sources then make two chunks and not 63.
    Those whose weights are known need no training and are apart.
    """

    def company(place: int) -> tuple[bool, int]:
        return known.weights(names[place]) is not None, sizes[place] if alike else 0

    known, sizes = plan.retraining.sealed, masks.sum(axis=1).tolist()
    ordered = sorted(range(len(names)), key=lambda place: (*company(place), sizes[place]))
    groups = itertools.groupby(ordered, key=company)
    return [list(part) for _, group in groups for part in _parts(list(group))]


def _parts(places: list[int]) -> list[list[int]]:
    starts = range(0, len(places), CHUNK_MODELS)
    return [places[start : start + CHUNK_MODELS] for start in starts]


def _chunk(
    plan: Blueprint,
    masks: BoolArray,
    seeds: IntArray,
    *,
    weights: bool = False,
    rows: TrainingRows | None = None,
) -> Manifest:
    """Seal the retrainings of some masks: from their weights where those are known, else anew."""
    from safetensors.torch import save_file

    names = plan.retraining.ids_of(masks, seeds, rows and rows.digests)
    places = [place for name in names if (place := plan.retraining.sealed.look().weights(name))]
    read = len(places) == len(names)
    keep = [] if read else names if weights else _kept(plan, names)
    key = artifact_key(STAGE, VERSIONS[STAGE], names, plan.data.test_digest, keep)
    if sealed := plan.artifacts.find(STAGE, key):
        return sealed
    started = time.monotonic()
    if read:
        path, states = "weights", _stacked(plan, places)
        logits = observed(plan, states)
    else:
        trained, logits = _trained(plan, masks, seeds, rows)
        path, states = trained.path, trained.states
    inputs = {"model": plan.training.model_digest, "recipe": plan.training.recipe_digest}
    with plan.artifacts.seal(STAGE, key, version=VERSIONS[STAGE], inputs=inputs) as draft:
        draft.facts |= {
            "retrainings": names,
            "weights": keep,
            "observed": plan.data.test_digest,
            "path": path,
            "seconds": time.monotonic() - started,
        }
        np.save(draft.path / LOGITS_FILE, logits)
        seen = np.array(plan.data.digests[plan.n_train :], dtype="S64")
        np.save(draft.path / OBSERVED_FILE, seen)
        if keep:
            own = [names.index(name) for name in keep]
            kept = {name: values[own].contiguous() for name, values in states.items()}
            save_file(kept, draft.path / STATES_FILE)
    return draft.manifest


def _kept(plan: Blueprint, names: list[str]) -> list[str]:
    """The retrainings of a chunk whose weights are kept."""
    from attribution.models import fresh

    # Under its lock: a model that is built draws from the generator that other threads seed.
    template = fresh(plan.build_model, 0)
    each = sum(value.nbytes for value in template.state_dict().values())
    if each * len(names) <= KEPT_BYTES:
        return names
    return [name for name in names if name in plan.bank.checkpoint_ids]


def _trained(
    plan: Blueprint, masks: BoolArray, seeds: IntArray, rows: TrainingRows | None
) -> "tuple[TrainedModels, NDArray[np.float32]]":
    """A model trained on each mask, and their logits on every test row [m, n_test, n_outputs]."""
    from attribution.bank import train_bank_models

    train, test = rows or plan.dataset.train, plan.dataset.test
    return train_bank_models(
        plan.build_model,
        (np.array(train.inputs), train.targets),
        eval_inputs=np.array(test.inputs),
        masks=masks,
        seeds=seeds,
        training=plan.training.recipe(),
        task=plan.dataset.facts.task,
        device=plan.spec.compute.device,
        memory=plan.spec.compute.memory_bytes,
    )


def _stacked(plan: Blueprint, places: list[Place]) -> "dict[str, Tensor]":
    """The kept weights of some retrainings, [m, ...] by name."""
    import torch
    from safetensors import safe_open

    states = []
    for chunk, row in places:
        path = plan.artifacts.folder(chunk) / STATES_FILE
        with safe_open(path, framework="pt") as file:
            states.append({name: file.get_slice(name)[row] for name in file.keys()})  # noqa: SIM118
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def observed(plan: Blueprint, states: "dict[str, Tensor]") -> NDArray[np.float32]:
    """Logits of models on every test row [m, n_test, n_outputs]."""
    from attribution.training import predict

    test = np.array(plan.dataset.test.inputs)
    logits = predict(plan.build_model, states, test, device=plan.spec.compute.device)
    return logits.float().numpy()


# --- reading --------------------------------------------------------------------------------------


def read_logits(
    plan: Blueprint, names: Sequence[str]
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Logits of sealed retrainings on every test row, chunk by chunk.

    Yields:
        Places among the names, and the logits float32 [places, n_test, n_outputs] of those.

    Raises:
        CorruptArtifact: One is not sealed any more.
    """
    known = plan.retraining.sealed.look()
    if lost := [name for name in names if known.logits(name) is None]:
        raise CorruptArtifact(f"retraining {lost[0]} disappeared; run again to rebuild it")
    return known.read(names)


def logits_of(plan: Blueprint, names: Sequence[str]) -> NDArray[np.float32]:
    """Logits of sealed retrainings on every test row: float32 [m, n_test, n_outputs]."""
    parts = list(read_logits(plan, names))
    back = np.argsort(np.concatenate([places for places, _ in parts]))
    return np.concatenate([logits for _, logits in parts])[back]


def outputs_of(
    plan: Blueprint, logits: NDArray[np.float32], ids: IntArray, output: str
) -> NDArray[np.float32]:
    """An output of retrained models on some test rows: float32 [m, len(ids)]."""
    from attribution.outputs import of_models

    places = plan.dataset.positions(ids) - plan.n_train
    targets, task = plan.dataset.test.targets[places], plan.dataset.facts.task
    return of_models(output, logits[:, places], targets, task=task)


def accuracy_of(plan: Blueprint, logits: NDArray[np.float32], ids: IntArray) -> NDArray[np.float64]:
    """Share of some test rows that models classify rightly, [m]."""
    places = plan.dataset.positions(ids) - plan.n_train
    hits = logits[:, places].argmax(axis=-1) == plan.dataset.test.targets[places]
    return hits.mean(axis=1)


def read_outputs(
    plan: Blueprint, names: Sequence[str], ids: IntArray, output: str
) -> NDArray[np.float32]:
    """An output of sealed retrainings on some test rows: float32 [m, len(ids)]."""
    values = np.empty((len(names), len(ids)), dtype=np.float32)
    for places, logits in read_logits(plan, names):
        values[places] = outputs_of(plan, logits, ids, output)
    return values


def open_bank(plan: Blueprint, kind: str, ids: IntArray, output: str) -> "RetrainBank":
    """The rows of one kind, observed on some test rows."""
    from attribution.bank import RetrainBank

    bank, rows = plan.bank, plan.bank.rows(kind)
    return RetrainBank(
        masks=bank.masks[rows],
        outputs=read_outputs(plan, bank.ids_of(rows), ids, output),
        seeds=bank.seeds[rows],
        alpha=bank.alpha[rows],
        kinds=bank.kinds[rows],
        output=output,
    )
