"""Which models the bank holds: subsets, seeds, what each is for, and what is trained together."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.spec import CurationSpec
from store.artifacts import artifact_key

BANK_VERSION = 1
# Models of one chunk: what a killed run can lose.
CHUNK_MODELS = 40

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
        chunks: Row numbers that are trained together.
        checkpoint_rows: Rows whose weights serve as checkpoints; empty where nothing reads them.
        name: What names the model trained on a mask with a seed.
        observed: Digest of the rows on which the models are observed.
    """

    masks: BoolArray
    seeds: IntArray
    alpha: NDArray[np.float64]
    kinds: NDArray[np.str_]
    chunks: tuple[IntArray, ...]
    checkpoint_rows: IntArray
    name: Callable[[BoolArray, int], str]
    observed: str

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """What names each retraining: its rows, the model, the recipe and the seed."""
        pairs = zip(self.masks, self.seeds, strict=True)
        return tuple(self.name(mask, int(seed)) for mask, seed in pairs)

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each chunk."""
        return tuple(
            artifact_key(
                "bank",
                BANK_VERSION,
                self.ids_of(chunk),
                self.observed,
                self.kept(chunk).tolist(),
            )
            for chunk in self.chunks
        )

    def ids_of(self, rows: IntArray) -> list[str]:
        """Names of some retrainings."""
        return [self.ids[row] for row in rows]

    def rows(self, kind: str) -> IntArray:
        """Row numbers of one kind, in the order in which the chunks hold them."""
        order = np.concatenate(self.chunks)
        return order[self.kinds[order] == kind]

    def kept(self, chunk: IntArray) -> IntArray:
        """Rows of a chunk whose weights are kept."""
        return chunk[np.isin(chunk, self.checkpoint_rows)]


def draw_bank(
    spec: CurationSpec, n_train: int, *, name: Callable[[BoolArray, int], str], observed: str
) -> BankPlan:
    """The bank that a spec asks for."""
    from attribution.bank import draw_masks

    wanted = spec.bank
    masks, seeds, alpha = draw_masks(
        n_train, wanted.models, list(wanted.alpha), seeds_per_mask=wanted.seeds, seed=spec.seed
    )
    kinds = np.full(len(masks), "evaluate", dtype="<U9")
    for size in wanted.alpha:
        rows = np.flatnonzero(alpha == size)
        kinds[rows[: round(wanted.subsets * wanted.calibrate) * wanted.seeds]] = "calibrate"
    order = np.argsort(alpha, kind="stable")
    starts = range(0, len(order), CHUNK_MODELS)
    # A model that never saw a row has not memorised it, so models of the smallest subsets tell
    # harmful rows from helpful ones better than models of all rows do. Only the calibration half
    # serves: a model of the other would carry what evaluates into what is evaluated.
    small = np.flatnonzero((alpha == min(wanted.alpha)) & (kinds == "calibrate"))
    serve = small[:: wanted.seeds][: spec.train.seeds]
    read = any(attribution.checkpoints == "bank" for attribution in spec.attribution)
    return BankPlan(
        masks=masks,
        seeds=seeds,
        alpha=alpha,
        kinds=kinds,
        chunks=tuple(order[start : start + CHUNK_MODELS] for start in starts),
        checkpoint_rows=serve if read else serve[:0],
        name=name,
        observed=observed,
    )
