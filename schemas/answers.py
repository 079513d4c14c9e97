"""The frames of what problems answer: solutions, verdicts, unlearnings, valuations and tracings.

What `schemas.frames` says of all frames holds for these.
"""

import dataframely as dy
import polars as pl


class SolutionFrame(dy.Schema):
    """One row: the answer to one problem, with its certificate and prediction."""

    solution_id = dy.String(primary_key=True, min_length=1)
    run_id = dy.String(min_length=1)
    attribution_id = dy.String(min_length=1)
    problem = dy.String(min_length=1)
    kind = dy.String(min_length=1)
    status = dy.String(min_length=1)
    size = dy.Int64(min=0)
    n_pool = dy.Int64(min=1)
    value = dy.Float64()
    bound = dy.Float64()
    gap = dy.Float64(min=0)
    predicted_change = dy.Float64(nullable=True)
    predicted_low = dy.Float64(nullable=True)
    predicted_high = dy.Float64(nullable=True)
    targets = dy.String(min_length=1)
    sentence = dy.String()

    @dy.rule()
    def size_is_within_the_pool(cls) -> pl.Expr:  # noqa: N805
        """No more is chosen than there is."""
        return pl.col("size") <= pl.col("n_pool")


class SolutionRowFrame(dy.Schema):
    """One row: one example of the pool, chosen or not; `position` 1 is the most useful.

    `copy_of` is the chosen row that a dropped one is a copy of, null where it is none.
    """

    solution_id = dy.String(primary_key=True, min_length=1)
    example_id = dy.Int32(primary_key=True, min=0)
    chosen = dy.Bool()
    utility = dy.Float64()
    position = dy.Int32(nullable=True, min=1)
    copy_of = dy.Int32(nullable=True, min=0)


class SolutionPriceFrame(dy.Schema):
    """One row: one constraint of a solution and what one more unit of it would add."""

    solution_id = dy.String(primary_key=True, min_length=1)
    constraint_name = dy.String(primary_key=True, min_length=1)
    price = dy.Float64()


class SizeCurveFrame(dy.Schema):
    """One row: what the best subset of a size is predicted to do; changes are against all rows."""

    solution_id = dy.String(primary_key=True, min_length=1)
    n_rows = dy.Int64(primary_key=True, min=1)
    output = dy.String(min_length=1)
    predicted = dy.Float64()
    change = dy.Float64()
    change_low = dy.Float64()
    change_high = dy.Float64()
    lost = dy.Float64()
    lost_low = dy.Float64()
    lost_high = dy.Float64()
    best = dy.Bool()


class VerdictFrame(dy.Schema):
    """One row: one arm of a check by retraining; changes are against the arm 'all'.

    `accuracy` is null where there are no classes and for a diagnosis, `advantage` (of the choice
    over this arm, in accuracy or else in the output) for the choice itself, predictions for arms
    that were not predicted, log-probabilities for a regression and where nothing was selected.
    """

    verdict_id = dy.String(primary_key=True, min_length=1)
    run_id = dy.String(min_length=1)
    solution_id = dy.String(min_length=1)
    arm = dy.String(min_length=1)
    n_rows = dy.Int64(min=1)
    seeds = dy.Int64(min=2)
    accuracy = dy.Float64(nullable=True, min=0, max=1)
    # A t-interval may reach beyond what an accuracy can be.
    accuracy_low = dy.Float64(nullable=True)
    accuracy_high = dy.Float64(nullable=True)
    output = dy.String(min_length=1)
    value = dy.Float64()
    value_low = dy.Float64(nullable=True)
    value_high = dy.Float64(nullable=True)
    predicted_change = dy.Float64(nullable=True)
    predicted_low = dy.Float64(nullable=True)
    predicted_high = dy.Float64(nullable=True)
    observed_change = dy.Float64(nullable=True)
    observed_low = dy.Float64(nullable=True)
    observed_high = dy.Float64(nullable=True)
    advantage = dy.Float64(nullable=True)
    advantage_low = dy.Float64(nullable=True)
    advantage_high = dy.Float64(nullable=True)
    sentence = dy.String()
    logprob = dy.Float64(nullable=True)
    logprob_low = dy.Float64(nullable=True)
    logprob_high = dy.Float64(nullable=True)
    logprob_advantage = dy.Float64(nullable=True)
    logprob_advantage_low = dy.Float64(nullable=True)
    logprob_advantage_high = dy.Float64(nullable=True)


class UnlearningFrame(dy.Schema):
    """One row: one problem that made models forget rows; null is what nothing can tell."""

    solution_id = dy.String(primary_key=True, min_length=1)
    method = dy.String(min_length=1)
    n_forgotten = dy.Int64(min=1)
    requests = dy.Int64(min=0)
    models = dy.Int64(min=2)
    oracles = dy.Int64(min=4)
    n_queries = dy.Int64(min=1)
    correlation = dy.Float64(nullable=True, min=-1, max=1)
    ceiling = dy.Float64(nullable=True, min=0, max=1)
    slope = dy.Float64(nullable=True)
    slope_low = dy.Float64(nullable=True)
    slope_high = dy.Float64(nullable=True)
    error = dy.Float64(min=0)
    error_unchanged = dy.Float64(min=0)
    certificate = dy.String(min_length=1)


class UnlearnedFrame(dy.Schema):
    """One row: one arm of an unlearning verdict, its cost and whether it gives the rows away."""

    verdict_id = dy.String(primary_key=True, min_length=1)
    solution_id = dy.String(min_length=1)
    method = dy.String(nullable=True, min_length=1)
    options = dy.String()
    examples = dy.Float64(min=0)
    scoring = dy.Float64(min=0)
    cost = dy.Float64(min=0)
    seconds = dy.Float64(min=0)
    reached = dy.Bool()
    membership = dy.Float64(nullable=True, min=0, max=1)
    membership_sd = dy.Float64(nullable=True, min=0)


class ClosenessFrame(dy.Schema):
    """One row: how far the models of one arm are from retrained ones on one group of rows."""

    verdict_id = dy.String(primary_key=True, min_length=1)
    solution_id = dy.String(min_length=1)
    rows = dy.String(primary_key=True, regex="^(forgotten|retained|judging)$")
    n_rows = dy.Int64(min=1)
    models = dy.Int64(min=1)
    klom = dy.Float64(min=0)
    klom_p95 = dy.Float64(min=0)
    null_klom = dy.Float64(min=0)
    null_p95 = dy.Float64(min=0)
    accuracy = dy.Float64(nullable=True, min=0, max=1)


class QueryChangeFrame(dy.Schema):
    """One row: what training without the forgotten rows does to one query."""

    solution_id = dy.String(primary_key=True, min_length=1)
    query_id = dy.Int32(primary_key=True, min=0)
    aim = dy.String(primary_key=True, regex="^(targets|judging)$")
    predicted = dy.Float64()
    predicted_sd = dy.Float64(nullable=True, min=0)
    observed = dy.Float64(nullable=True)


class ValuationFrame(dy.Schema):
    """One row: one problem that asked what sources, or rows, are worth; null `sources` is rows."""

    valuation_id = dy.String(primary_key=True, min_length=1)
    run_id = dy.String(min_length=1)
    problem = dy.String(min_length=1)
    method = dy.String(min_length=1)
    sources = dy.String(nullable=True, min_length=1)
    output = dy.String(min_length=1)
    targets = dy.String(min_length=1)
    n_players = dy.Int64(min=1)
    retrainings = dy.Int64(min=1)
    nothing = dy.Float64()
    everything = dy.Float64()
    converged = dy.Bool()
    sentence = dy.String()


class PlayerValueFrame(dy.Schema):
    """One row: what one source, or one row, is worth; > 0 makes the model better."""

    valuation_id = dy.String(primary_key=True, min_length=1)
    player = dy.String(primary_key=True, min_length=1)
    n_rows = dy.Int64(min=1)
    value = dy.Float64()
    standard_error = dy.Float64(min=0)


class TracingFrame(dy.Schema):
    """One row: one problem that asked which rows made the model say something."""

    tracing_id = dy.String(primary_key=True, min_length=1)
    run_id = dy.String(min_length=1)
    dataset_id = dy.String(min_length=1)
    problem = dy.String(min_length=1)
    targets = dy.String(min_length=1)
    text_column = dy.String(nullable=True, min_length=1)
    truth = dy.String(nullable=True, min_length=1)
    top = dy.Int64(min=1)
    n_queries = dy.Int64(min=1)
    with_truth = dy.Int64(min=0)
    judged = dy.Int64(min=1)
    removed = dy.Int64(min=1)
    output = dy.String(min_length=1)
    value = dy.Float64()
    sentence = dy.String()


class TracingArmFrame(dy.Schema):
    """One row: a method of a tracing, or random rows; ranks are null where no truth is known."""

    tracing_id = dy.String(primary_key=True, min_length=1)
    place = dy.Int64(min=0)
    arm = dy.String(primary_key=True, min_length=1)
    attribution_id = dy.String(nullable=True, min_length=1)
    mrr = dy.Float64(nullable=True, min=0, max=1)
    mrr_low = dy.Float64(nullable=True)
    mrr_high = dy.Float64(nullable=True)
    recall = dy.Float64(nullable=True, min=0, max=1)
    recall_low = dy.Float64(nullable=True)
    recall_high = dy.Float64(nullable=True)
    models = dy.Int64(min=1)
    value = dy.Float64()
    change = dy.Float64()
    change_low = dy.Float64(nullable=True)
    change_high = dy.Float64(nullable=True)
    against_random = dy.Float64(nullable=True)
    against_random_low = dy.Float64(nullable=True)
    against_random_high = dy.Float64(nullable=True)


class TracingEffectFrame(dy.Schema):
    """One row: what one query lost without the rows of one arm."""

    tracing_id = dy.String(primary_key=True, min_length=1)
    arm = dy.String(primary_key=True, min_length=1)
    query_id = dy.Int32(primary_key=True, min=0)
    change = dy.Float64()


class TracingRowFrame(dy.Schema):
    """One row: a training example that a method names for a query."""

    tracing_id = dy.String(primary_key=True, min_length=1)
    arm = dy.String(primary_key=True, min_length=1)
    query_id = dy.Int32(primary_key=True, min=0)
    rank = dy.Int64(primary_key=True, min=1)
    train_id = dy.Int32(min=0)
    score = dy.Float32()
