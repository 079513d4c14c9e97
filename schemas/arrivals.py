"""The frames of what comes between runs, batches of new rows; see `schemas.frames`."""

import dataframely as dy
import polars as pl


class ScreeningFrame(dy.Schema):
    """One row: one batch of new rows that was answered."""

    screening_id = dy.String(primary_key=True, min_length=1)
    spec_name = dy.String(min_length=1)
    problem = dy.String(min_length=1)
    dataset_id = dy.String(min_length=1)
    batch = dy.String(min_length=1)
    batch_digest = dy.String(min_length=1)
    n_rows = dy.Int64(min=1)
    accepted = dy.Int64(min=0)
    quarantined = dy.Int64(min=0)
    screened_out = dy.Int64(min=0)
    expected = dy.Float64(min=0)
    n_trusted = dy.Int64(min=1)
    output = dy.String(min_length=1)
    targets = dy.String(min_length=1)
    accepted_file = dy.String(min_length=1)
    quarantined_file = dy.String(min_length=1)
    sentence = dy.String()
    verified = dy.String(nullable=True)
    screened_at = dy.Datetime(time_zone="UTC")

    @dy.rule()
    def every_row_is_let_in_or_held_up(cls) -> pl.Expr:  # noqa: N805
        """Accepted and quarantined rows are all rows."""
        return pl.col("accepted") + pl.col("quarantined") == pl.col("n_rows")


class ScreenedRowFrame(dy.Schema):
    """One row: one row of a batch, held up for reasons or let in without."""

    screening_id = dy.String(primary_key=True, min_length=1)
    batch_row = dy.Int64(primary_key=True, min=1)
    label = dy.String(nullable=True)
    accepted = dy.Bool()
    reasons = dy.String()
    codes = dy.String()
    effect = dy.Float64(nullable=True)


class ScreenedValueFrame(dy.Schema):
    """One row: what one screen says of one row of a batch."""

    screening_id = dy.String(primary_key=True, min_length=1)
    batch_row = dy.Int64(primary_key=True, min=1)
    screen = dy.String(primary_key=True, min_length=1)
    value = dy.Float64()
    place = dy.Float64(min_exclusive=0, max=1)
    rate = dy.Float64(min_exclusive=0, max=0.5)


class ScreeningArmFrame(dy.Schema):
    """One row: one side of the retraining that checked a screening."""

    screening_id = dy.String(primary_key=True, min_length=1)
    place = dy.Int64(min=0)
    arm = dy.String(primary_key=True, min_length=1)
    n_rows = dy.Int64(min=1)
    seeds = dy.Int64(min=2)
    accuracy = dy.Float64(nullable=True, min=0, max=1)
    accuracy_low = dy.Float64(nullable=True)
    accuracy_high = dy.Float64(nullable=True)
    value = dy.Float64()
    value_low = dy.Float64()
    value_high = dy.Float64()
    predicted = dy.Float64(nullable=True)
    observed = dy.Float64(nullable=True)
    observed_low = dy.Float64(nullable=True)
    observed_high = dy.Float64(nullable=True)


SCREENING_FRAMES: dict[str, type[dy.Schema]] = {
    "screenings": ScreeningFrame,
    "screened_rows": ScreenedRowFrame,
    "screened_values": ScreenedValueFrame,
    "screening_arms": ScreeningArmFrame,
}
"""The schema of each table that batches fill between runs."""
