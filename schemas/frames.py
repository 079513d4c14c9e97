"""The frames that enter the ledger: one schema for each table, checked by the commit task.

A schema knows columns, types, what may be null and what holds within a row. Order is never
implied: rows carry their ids. Floats are finite unless they are null. Ids of runs, data sets,
attributions and so on are text; ids of examples are 32-bit integers; counts are what Polars makes
of Python integers, though the ledger keeps them in 32 bits.
"""

import dataframely as dy
import polars as pl

from schemas.answers import (
    ClosenessFrame,
    PlayerValueFrame,
    QueryChangeFrame,
    SizeCurveFrame,
    SolutionFrame,
    SolutionPriceFrame,
    SolutionRowFrame,
    TracingArmFrame,
    TracingEffectFrame,
    TracingFrame,
    TracingRowFrame,
    UnlearnedFrame,
    UnlearningFrame,
    ValuationFrame,
    VerdictFrame,
)
from schemas.poison_frames import (
    PoisonBudgetFrame,
    PoisonCurveFrame,
    PoisonDrawFrame,
    PoisonedRowFrame,
    PoisoningFrame,
    PoisonScreenFrame,
    WeakSpotFrame,
)

KIND_OF_RETRAINING = r"^(calibrate|evaluate|(aimed|verdict):[A-Za-z0-9_.-]+)$"


class RunFrame(dy.Schema):
    """One row: one execution of a spec."""

    run_id = dy.String(primary_key=True, min_length=1)
    dataset_id = dy.String(min_length=1)
    spec_name = dy.String(min_length=1)
    spec_digest = dy.String(min_length=1)
    spec_toml = dy.String()
    status = dy.String(regex="^(committed|failed)$")
    seed = dy.Int64(min=0)
    device = dy.String(regex="^(cpu|cuda)$")
    code_version = dy.String()
    started_at = dy.Datetime(time_zone="UTC")
    committed_at = dy.Datetime(time_zone="UTC", nullable=True)
    seconds = dy.Float64(min=0)


class RunPartFrame(dy.Schema):
    """One row: something that a run consists of; what specs have in common is of several runs."""

    run_id = dy.String(primary_key=True, min_length=1)
    kind = dy.String(
        primary_key=True,
        regex="^(attributions|solutions|verdicts|valuations|tracings|poisonings)$",
    )
    part_id = dy.String(primary_key=True, min_length=1)


class ExampleFrame(dy.Schema):
    """One row: one example as it is used; targets are text, a class name or a number.

    `true_target` differs from `target` where a label is known to be wrong; null is unknown.
    """

    dataset_id = dy.String(primary_key=True, min_length=1)
    example_id = dy.Int32(primary_key=True, min=0)
    split = dy.String(regex="^(train|test)$")
    target = dy.String()
    true_target = dy.String(nullable=True)
    content_hash = dy.String(regex="^[0-9a-f]+$")
    source_id = dy.String(nullable=True)
    metadata = dy.String(nullable=True)


class AttributionFrame(dy.Schema):
    """One row: one attribution of one run; `kept` counts its rows in `scores`."""

    attribution_id = dy.String(primary_key=True, min_length=1)
    run_id = dy.String(min_length=1)
    dataset_id = dy.String(min_length=1)
    name = dy.String(min_length=1)
    method = dy.String(min_length=1)
    output = dy.String(min_length=1)
    options = dy.String()
    n_train = dy.Int64(min=1)
    n_query = dy.Int64(min=1)
    fingerprint = dy.String(nullable=True)
    damping = dy.Float64(nullable=True, min_exclusive=0)
    damping_from = dy.String(nullable=True)
    device = dy.String(regex="^(cpu|cuda)$")
    seconds = dy.Float64(min=0)
    kept = dy.Int64(min=0)

    @dy.rule()
    def kept_is_no_more_than_all(cls) -> pl.Expr:  # noqa: N805  dataframely's rules take the class
        """At most one score for each pair."""
        return pl.col("kept") <= pl.col("n_train") * pl.col("n_query")


class ScoreFrame(dy.Schema):
    """One row: the influence of one training example on one query, in query order.

    No primary key: uniqueness of 50 million pairs costs more than the load itself, and holds
    because a commit replaces the whole partition of an attribution.
    """

    attribution_id = dy.String(min_length=1)
    query_id = dy.Int32(min=0)
    train_id = dy.Int32(min=0)
    score = dy.Float32()


class ExampleEffectFrame(dy.Schema):
    """One row: one training example, its mean score over the targets and on itself."""

    attribution_id = dy.String(primary_key=True, min_length=1)
    example_id = dy.Int32(primary_key=True, min=0)
    mean_score = dy.Float32()
    self_influence = dy.Float32(nullable=True)


class BankFrame(dy.Schema):
    """One row: one retrained model; `mask` has a '1' for each training row that it saw.

    `alpha` is null where the rows were chosen and not drawn.
    """

    retrain_id = dy.String(primary_key=True, min_length=1)
    dataset_id = dy.String(min_length=1)
    kind = dy.String(regex=KIND_OF_RETRAINING)
    alpha = dy.Float64(nullable=True, min_exclusive=0, max=1)
    seed = dy.Int64(min=0)
    n_rows = dy.Int64(min=1)
    mask = dy.String(regex="^[01]+$")

    @dy.rule()
    def mask_has_n_rows_ones(cls) -> pl.Expr:  # noqa: N805
        """The mask and the count say the same."""
        return pl.col("mask").str.count_matches("1") == pl.col("n_rows")


class BankOutputFrame(dy.Schema):
    """One row: one output of one retrained model on one query."""

    retrain_id = dy.String(min_length=1)
    query_id = dy.Int32(min=0)
    output = dy.String(min_length=1)
    value = dy.Float32()


class LdsFrame(dy.Schema):
    """One row: how well an attribution ranks held-out subsets; null `alpha` is the mean of all.

    `ceiling` and `relative` are null where each subset was trained once only.
    """

    attribution_id = dy.String(min_length=1)
    alpha = dy.Float64(nullable=True, min_exclusive=0, max_exclusive=1)
    mean = dy.Float64(min=-1, max=1)
    low = dy.Float64(nullable=True, min=-1, max=1)
    high = dy.Float64(nullable=True, min=-1, max=1)
    ceiling = dy.Float64(nullable=True, min=0, max=1)
    relative = dy.Float64(nullable=True)
    null_sd = dy.Float64(nullable=True, min=0)
    n_masks = dy.Int64(min=2)
    n_seeds = dy.Int64(min=1)
    n_queries = dy.Int64(min=1)

    @dy.rule()
    def one_row_for_each_size(cls) -> pl.Expr:  # noqa: N805
        """A primary key would refuse the null that stands for all sizes."""
        return pl.len().over("attribution_id", "alpha") == 1


FRAMES: dict[str, type[dy.Schema]] = {
    "runs": RunFrame,
    "run_parts": RunPartFrame,
    "examples": ExampleFrame,
    "attributions": AttributionFrame,
    "scores": ScoreFrame,
    "example_effects": ExampleEffectFrame,
    "bank": BankFrame,
    "bank_outputs": BankOutputFrame,
    "lds": LdsFrame,
    "solutions": SolutionFrame,
    "solution_rows": SolutionRowFrame,
    "solution_prices": SolutionPriceFrame,
    "size_curves": SizeCurveFrame,
    "verdicts": VerdictFrame,
    "unlearnings": UnlearningFrame,
    "unlearned": UnlearnedFrame,
    "closeness": ClosenessFrame,
    "query_changes": QueryChangeFrame,
    "valuations": ValuationFrame,
    "player_values": PlayerValueFrame,
    "tracings": TracingFrame,
    "tracing_arms": TracingArmFrame,
    "tracing_effects": TracingEffectFrame,
    "tracing_rows": TracingRowFrame,
    "poisonings": PoisoningFrame,
    "poison_budgets": PoisonBudgetFrame,
    "poison_curve": PoisonCurveFrame,
    "poison_draws": PoisonDrawFrame,
    "poisoned_rows": PoisonedRowFrame,
    "poison_screens": PoisonScreenFrame,
    "weak_spots": WeakSpotFrame,
}
"""The schema of each table of the ledger, in the order in which they are filled."""
