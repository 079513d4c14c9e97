-- Batches of new rows beside the trusted ones: problems of kind screen. A batch comes between runs,
-- so an answer belongs to no run; the data set says which rows were trusted.

CREATE TABLE screenings (
    screening_id VARCHAR NOT NULL,
    spec_name VARCHAR NOT NULL,
    problem VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    batch VARCHAR NOT NULL,
    batch_digest VARCHAR NOT NULL,
    n_rows INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    quarantined INTEGER NOT NULL,
    screened_out INTEGER NOT NULL,
    expected DOUBLE NOT NULL,
    n_trusted INTEGER NOT NULL,
    output VARCHAR NOT NULL,
    targets VARCHAR NOT NULL,
    accepted_file VARCHAR NOT NULL,
    quarantined_file VARCHAR NOT NULL,
    sentence VARCHAR NOT NULL,
    verified VARCHAR,
    screened_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE screenings IS 'One row is one batch of new rows, answered once: by the digest of its file.';
COMMENT ON COLUMN screenings.screening_id IS 'Digest of the problem and of the batch.';
COMMENT ON COLUMN screenings.spec_name IS 'The name of the spec that was asked.';
COMMENT ON COLUMN screenings.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN screenings.dataset_id IS 'The data set whose training rows were trusted.';
COMMENT ON COLUMN screenings.batch IS 'The file''s name.';
COMMENT ON COLUMN screenings.batch_digest IS 'Sha256 of its bytes.';
COMMENT ON COLUMN screenings.n_rows IS 'Its rows.';
COMMENT ON COLUMN screenings.accepted IS 'Rows that may be trained on.';
COMMENT ON COLUMN screenings.quarantined IS 'Rows that were held up.';
COMMENT ON COLUMN screenings.screened_out IS 'Of which a screen held up; the others are copies, or of an unknown label.';
COMMENT ON COLUMN screenings.expected IS 'How many the screens would hold up of good rows, at most: the declared shares, added.';
COMMENT ON COLUMN screenings.n_trusted IS 'Trusted rows.';
COMMENT ON COLUMN screenings.output IS 'The output that effects are in units of.';
COMMENT ON COLUMN screenings.targets IS 'The set of examples that new rows must not hurt.';
COMMENT ON COLUMN screenings.accepted_file IS 'The accepted rows as Parquet, relative to the workspace.';
COMMENT ON COLUMN screenings.quarantined_file IS 'The others, each with its reasons, relative to the workspace.';
COMMENT ON COLUMN screenings.sentence IS 'The answer in words.';
COMMENT ON COLUMN screenings.verified IS 'What retraining said of it, in words; NULL where nobody asked.';
COMMENT ON COLUMN screenings.screened_at IS 'When the batch was answered.';

CREATE TABLE screened_rows (
    screening_id VARCHAR NOT NULL,
    batch_row INTEGER NOT NULL,
    label VARCHAR,
    accepted BOOLEAN NOT NULL,
    reasons VARCHAR NOT NULL,
    codes VARCHAR NOT NULL,
    effect DOUBLE
);
COMMENT ON TABLE screened_rows IS 'One row is one row of a batch, and whether it may be trained on.';
COMMENT ON COLUMN screened_rows.screening_id IS 'The batch; see screenings.';
COMMENT ON COLUMN screened_rows.batch_row IS 'Its place in the file, from 1; of a table, without the header.';
COMMENT ON COLUMN screened_rows.label IS 'Its target as it was written; NULL for texts that predict themselves.';
COMMENT ON COLUMN screened_rows.accepted IS 'Whether it was let in.';
COMMENT ON COLUMN screened_rows.reasons IS 'Why it was held up, in words; empty for accepted rows.';
COMMENT ON COLUMN screened_rows.codes IS 'The same by name: screens, copy, test_copy, unknown_label; comma-separated.';
COMMENT ON COLUMN screened_rows.effect IS 'Predicted change of the mean output over the judging set by having it alone; NULL where nothing predicts it.';

CREATE TABLE screened_values (
    screening_id VARCHAR NOT NULL,
    batch_row INTEGER NOT NULL,
    screen VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    place DOUBLE NOT NULL,
    rate DOUBLE NOT NULL
);
COMMENT ON TABLE screened_values IS 'One row is what one screen says of one row of a batch.';
COMMENT ON COLUMN screened_values.screening_id IS 'The batch; see screenings.';
COMMENT ON COLUMN screened_values.batch_row IS 'The row''s place in its file, from 1.';
COMMENT ON COLUMN screened_values.screen IS 'harm, loss, neighbours, self_influence or group.';
COMMENT ON COLUMN screened_values.value IS 'Suspicion, higher for rows that should be looked at first, mean over models that did not train on the row.';
COMMENT ON COLUMN screened_values.place IS 'Share of trusted rows that are at least as suspicious, each by models that did not train on it.';
COMMENT ON COLUMN screened_values.rate IS 'The declared share: at a place of this or less the row is held up.';

CREATE TABLE screening_arms (
    screening_id VARCHAR NOT NULL,
    place INTEGER NOT NULL,
    arm VARCHAR NOT NULL,
    n_rows INTEGER NOT NULL,
    seeds INTEGER NOT NULL,
    accuracy DOUBLE,
    accuracy_low DOUBLE,
    accuracy_high DOUBLE,
    value DOUBLE NOT NULL,
    value_low DOUBLE NOT NULL,
    value_high DOUBLE NOT NULL,
    predicted DOUBLE,
    observed DOUBLE,
    observed_low DOUBLE,
    observed_high DOUBLE
);
COMMENT ON TABLE screening_arms IS 'One row is one side of the retraining that checked a screening.';
COMMENT ON COLUMN screening_arms.screening_id IS 'The batch; see screenings.';
COMMENT ON COLUMN screening_arms.place IS 'Its place, from 0.';
COMMENT ON COLUMN screening_arms.arm IS 'trusted rows alone, or with the accepted rows, the whole batch, or as many random rows of it as were accepted.';
COMMENT ON COLUMN screening_arms.n_rows IS 'Rows it was trained on.';
COMMENT ON COLUMN screening_arms.seeds IS 'Retrainings.';
COMMENT ON COLUMN screening_arms.accuracy IS 'Mean accuracy on the judging set; NULL where there are no classes.';
COMMENT ON COLUMN screening_arms.accuracy_low IS 'Lower end of its 95 % interval over retrainings.';
COMMENT ON COLUMN screening_arms.accuracy_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN screening_arms.value IS 'Mean output on the judging set.';
COMMENT ON COLUMN screening_arms.value_low IS 'Lower end of its 95 % interval over retrainings.';
COMMENT ON COLUMN screening_arms.value_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN screening_arms.predicted IS 'Predicted change of that mean against the trusted rows alone, by what the added rows do together; NULL where nothing predicts it.';
COMMENT ON COLUMN screening_arms.observed IS 'The change that retraining made; NULL for the trusted rows.';
COMMENT ON COLUMN screening_arms.observed_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN screening_arms.observed_high IS 'Upper end of its 95 % interval.';
