"""Which models the bank holds: subsets, seeds, what each is for, and where it came from."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.spec import BankSpec, CurationSpec
from tasks.bank_extension import NEXT, Extension, joined

CALIBRATE, EVALUATE = "calibrate", "evaluate"

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class BankPlan:
    """Every retraining that the bank holds.

    Attributes:
        masks: bool [n_models, n_train], by training row.
        seeds: int64 [n_models].
        alpha: float64 [n_models], share of the training rows in each subset.
        kinds: "calibrate" or "evaluate" [n_models]; all rows of a mask are of one kind.
        origins: Where a row came from [n_models]: "" for a drawn one, "next" for one that was
            chosen for what it tells, or what it was adopted from, as in "verdict:all".
        checkpoint_rows: Rows whose weights serve as checkpoints; empty where nothing reads them.
        name: What names the model trained on a mask with a seed.
    """

    masks: BoolArray
    seeds: IntArray
    alpha: NDArray[np.float64]
    kinds: NDArray[np.str_]
    origins: NDArray[np.str_]
    checkpoint_rows: IntArray
    name: Callable[[BoolArray, int], str]

    def __len__(self) -> int:
        return len(self.masks)

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """What names each retraining: its rows, the model, the recipe and the seed."""
        pairs = zip(self.masks, self.seeds, strict=True)
        return tuple(self.name(mask, int(seed)) for mask, seed in pairs)

    def ids_of(self, rows: IntArray) -> list[str]:
        """Names of some retrainings."""
        return [self.ids[row] for row in rows]

    def rows(self, kind: str) -> IntArray:
        """Row numbers of one kind, ascending."""
        return np.flatnonzero(self.kinds == kind)

    @functools.cached_property
    def drawn(self) -> int:
        """Rows that were drawn; those that were adopted or chosen follow them."""
        return int(np.count_nonzero(self.origins == ""))

    @functools.cached_property
    def chosen(self) -> int:
        """Rows that were chosen for what they tell."""
        return int(np.count_nonzero(self.origins == NEXT))

    @property
    def adopted(self) -> int:
        """Rows that verdicts had trained."""
        return len(self) - self.drawn - self.chosen

    @functools.cached_property
    def checkpoint_ids(self) -> frozenset[str]:
        """Names of the retrainings whose weights serve as checkpoints."""
        return frozenset(self.ids_of(self.checkpoint_rows))


def draw_bank(
    spec: CurationSpec,
    n_train: int,
    *,
    name: Callable[[BoolArray, int], str],
    extension: Extension,
) -> BankPlan:
    """The bank that a spec asks for, and what extended it; none where no attribution reads it.

    A drawn row depends on its own number only, its kind too: so a larger bank begins with a
    smaller one, and what evaluates in one never tunes in the other.
    """
    from attribution.subsets import draw_masks

    wanted, models = spec.bank, extension.models or spec.bank.models
    if not spec.attribution:
        return _no_bank(n_train, name)
    sizes = sorted(wanted.alpha)
    masks, seeds, alpha = draw_masks(
        n_train, models, sizes, seeds_per_mask=wanted.seeds, seed=spec.seed
    )
    subset = np.arange(models) // wanted.seeds // len(sizes)
    kinds = np.array([_kind(wanted, number) for number in subset.tolist()])
    # A model that never saw a row has not memorised it, so models of the smallest subsets tell
    # harmful rows from helpful ones better than models of all rows do. Only the calibration half
    # serves: a model of the other would carry what evaluates into what is evaluated.
    small = np.flatnonzero((alpha == sizes[0]) & (kinds == CALIBRATE))
    serve = small[:: wanted.seeds][: spec.train.seeds]
    read = any(attribution.checkpoints == "bank" for attribution in spec.attribution)
    added = joined(extension.adopted, n_train).without(masks[kinds == EVALUATE])
    return BankPlan(
        masks=np.concatenate([masks, added.masks]),
        seeds=np.concatenate([seeds, added.seeds]),
        alpha=np.concatenate([alpha, added.masks.mean(axis=1)]),
        kinds=np.concatenate([kinds, np.full(len(added), CALIBRATE)]),
        origins=np.concatenate([np.full(models, ""), added.origins]),
        checkpoint_rows=serve if read else serve[:0],
        name=name,
    )


def _no_bank(n_train: int, name: Callable[[BoolArray, int], str]) -> BankPlan:
    nothing = np.empty(0)
    return BankPlan(
        masks=np.empty((0, n_train), dtype=bool),
        seeds=nothing.astype(np.int64),
        alpha=nothing,
        kinds=nothing.astype(np.str_),
        origins=nothing.astype(np.str_),
        checkpoint_rows=nothing.astype(np.int64),
        name=name,
    )


def _kind(wanted: BankSpec, number: int) -> str:
    """What a subset is for, by its number among those of its size.

    Of the first k subsets round(k * calibrate) calibrate, for every k.
    """
    before, after = round(number * wanted.calibrate), round((number + 1) * wanted.calibrate)
    return CALIBRATE if after > before else EVALUATE
