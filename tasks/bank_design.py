"""Which subsets the bank retrains on next, and what their models bought.

They are chosen by `optimize.design` for the surrogate of the first problem over its targets, or,
where a spec has no problem, of the first attribution over the queries that tune. Only what
calibrates is read, and what is chosen calibrates: subsets that evaluate are never offered. The
choice is sealed as an act of extension, with what was foreseen; once its models are trained, a
receipt says what they did to the surrogate of the same scores.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.errors import NotFound, RequestError
from schemas.manifest import Manifest
from schemas.spec import AttributionSpec, attributions_of, target_sets
from store.artifacts import artifact_key
from tasks.bank import read_outputs
from tasks.bank_extension import (
    NEXT,
    STAGE,
    VERSION,
    BoolArray,
    IntArray,
    Rows,
    load_rows,
    read_records,
    record_adoption,
)
from tasks.blueprint import Blueprint
from tasks.score import calibrating_bank
from tasks.surrogate import calibrated

if TYPE_CHECKING:
    from attribution.bank import RetrainBank

# Random subsets whose predictions are to become surer, and those to choose from: so many, or so
# many for each one wanted, since the best of few are hardly better than random ones.
TARGETS, CANDIDATES, CANDIDATES_EACH = 64, 256, 4
# Numbers that planning holds twice, 256 MiB each; where all queries would take more, some stand
# for all.
PLANNING_NUMBERS = 2**25
# What a record of a choice says beside its rows.
FORESEEN = "foreseen"


def is_to_choose(plan: Blueprint, count: int) -> bool:
    """Whether to choose subsets; False where the same act was killed, and only goes on.

    Raises:
        RequestError: The number is not positive, or no attribution leaves a bank to calibrate on.
        NotFound: The scores are not made, or not for the bank as it is.
    """
    if count < 1:
        raise RequestError(f"--next {count}: give the number of subsets to train, 1 or more")
    attribution, _ = _aim(plan)
    if _has_scores(plan, attribution):
        return True
    if _awaits_receipt(plan, count):
        return False
    raise NotFound(
        f"--next chooses by scores, and '{attribution.name}' has none for the bank as it is; "
        "`winnow run SPEC --only scores` makes them"
    )


def chosen_next(plan: Blueprint, count: int) -> Manifest:
    """Choose subsets by what they are expected to tell, and seal that the bank holds them."""
    from optimize.design import next_masks

    surrogate, number = calibrated(plan, *_aim(plan)), plan.retraining.extension.acts
    targets, offered = _targets(plan, number), _offered(plan, number, count)
    if len(offered) < count:
        raise RequestError(
            f"--next {count}: only {len(offered)} other subsets of {plan.n_train} rows were found; "
            "ask for fewer"
        )
    queries = _some_queries(len(surrogate.tau), len(targets) + len(offered))
    best = next_masks(surrogate, count, targets=targets, queries=queries, candidates=offered.masks)
    places = [(offered.masks == mask).all(axis=1).argmax() for mask in best.masks]
    left = {"chosen": best.after[-1], "random": best.random[-1]}
    shares = {name: float(np.sqrt(variance / best.before)) for name, variance in left.items()}
    return record_adoption(plan, offered.take(np.array(places)), facts={FORESEEN: shares})


def appraised(plan: Blueprint) -> Manifest:
    """The receipt of the last act, a choice whose models are trained: what they bought.

    The sd is the posterior's, of the expected output after training on random subsets, in the
    output's unit, averaged over subsets and queries. What was foreseen of it is the sd before,
    shrunk as the root of the variance that was foreseen to be left: with prior and noise as they
    were estimated before, while the sd after has them estimated anew and may even be larger.
    """
    from optimize.design import bought
    from optimize.surrogate import calibrate

    number = plan.retraining.extension.acts - 1
    *_, record = read_records(plan.artifacts, plan.retraining.base)
    key = _receipt_key(record)
    if sealed := plan.artifacts.find(STAGE, key):
        return sealed
    earlier, rows = plan.at(number), load_rows(plan.artifacts, record)
    attribution, aimed = _aim(plan)
    before = calibrated(earlier, attribution, aimed)
    after = calibrate(before.tau, _enlarged(earlier, attribution, aimed, rows))
    found = bought(before, after, _targets(plan, number))
    shares: Any = record.facts[FORESEEN]
    with plan.artifacts.seal(STAGE, key, version=VERSION, inputs={"record": record.key}) as draft:
        draft.facts |= {
            "models": len(rows),
            "output": plan.output(attribution),
            "set": aimed,
            "sd": {
                "before": found.sd[0],
                "foreseen": found.sd[0] * shares["chosen"],
                "random": found.sd[0] * shares["random"],
                "after": found.sd[1],
            },
            "error": {"before": found.error[0], "after": found.error[1]},
        }
    return draft.manifest


def receipts(plan: Blueprint) -> Iterator[Manifest]:
    """What each choice whose models are trained bought, in the order of the acts."""
    for record in read_records(plan.artifacts, plan.retraining.base):
        if receipt := plan.artifacts.find(STAGE, _receipt_key(record)):
            yield receipt


def _receipt_key(record: Manifest) -> str:
    return artifact_key(STAGE, VERSION, record.key, "receipt")


def _aim(plan: Blueprint) -> tuple[AttributionSpec, str]:
    """Whose predictions are to become surer: those of an attribution, for a set of test rows."""
    for problem in plan.problems.decisions:
        uses = attributions_of(problem)[0]
        return plan.spec.attribution_named(uses), target_sets(problem)[0]
    for attribution in plan.spec.attribution:
        if not plan.scores.fitted_share(attribution):
            return attribution, plan.sets.tuning
    raise RequestError(
        "--next needs scores that the bank corrects, and here all are fitted to all of it; add a "
        "[[problem]], or an [[attribution]] that reads checkpoints"
    )


def _has_scores(plan: Blueprint, attribution: AttributionSpec) -> bool:
    key = plan.scores.key(attribution)
    return key is not None and plan.artifacts.find("scores", key) is not None


def _awaits_receipt(plan: Blueprint, count: int) -> bool:
    """Whether the last act chose so many subsets and ended before it could say what they bought."""
    records = list(read_records(plan.artifacts, plan.retraining.base))
    if not records or FORESEEN not in records[-1].facts:
        return False
    earlier, (attribution, _) = plan.at(len(records) - 1), _aim(plan)
    return (
        len(load_rows(plan.artifacts, records[-1])) == count
        and plan.artifacts.find(STAGE, _receipt_key(records[-1])) is None
        and _has_scores(earlier, attribution)
    )


def _drawn(plan: Blueprint, number: int, subsets: int) -> tuple[BoolArray, IntArray]:
    """Random subsets of the spec's sizes in turn and their seeds, for one act of choice."""
    from attribution.streams import SEED_LIMIT, Purpose, stream
    from attribution.subsets import draw_masks

    key = int(stream(plan.spec.seed, Purpose.DESIGN, number).integers(SEED_LIMIT))
    sizes = sorted(plan.spec.bank.alpha)
    masks, seeds, _ = draw_masks(plan.n_train, subsets, sizes, seeds_per_mask=1, seed=key)
    return masks, seeds


def _targets(plan: Blueprint, number: int) -> BoolArray:
    """The subsets whose predictions an act is to make surer: bool [targets, n_train]."""
    return _drawn(plan, number, TARGETS)[0]


def _offered(plan: Blueprint, number: int, count: int) -> Rows:
    """Subsets that the bank does not hold, each once, to choose from."""
    wanted = max(CANDIDATES, CANDIDATES_EACH * count)
    masks, seeds = _drawn(plan, number, TARGETS + wanted)
    rows = Rows(masks=masks, seeds=seeds, origins=np.full(len(masks), NEXT))
    _, first = np.unique(np.packbits(masks, axis=1), axis=0, return_index=True)
    return rows.take(np.sort(first[first >= TARGETS])).without(plan.bank.masks)


def _some_queries(n_queries: int, points: int) -> IntArray:
    """Places of as many queries as planning has room for, evenly spaced."""
    most = max(1, PLANNING_NUMBERS // points**2)
    return np.linspace(0, n_queries - 1, min(n_queries, most)).astype(np.int64)


def _enlarged(
    plan: Blueprint, attribution: AttributionSpec, aimed: str, rows: Rows
) -> "RetrainBank":
    """What an attribution's surrogate is calibrated on, and further retrainings."""
    from attribution.bank import RetrainBank

    ids, output = plan.sets.ids(aimed), plan.output(attribution)
    bank = calibrating_bank(plan, attribution, ids)
    names = plan.retraining.ids_of(rows.masks, rows.seeds)
    return RetrainBank(
        masks=np.concatenate([bank.masks, rows.masks]),
        outputs=np.concatenate([bank.outputs, read_outputs(plan, names, ids, output)]),
        seeds=np.concatenate([bank.seeds, rows.seeds]),
        output=output,
    )
