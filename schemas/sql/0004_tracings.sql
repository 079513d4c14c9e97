-- Which rows made the model say something: problems of kind trace. Several attributions answer side
-- by side, so an answer is no solution, and an arm is a method and not a choice of rows.

CREATE TABLE tracings (
    tracing_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    problem VARCHAR NOT NULL,
    targets VARCHAR NOT NULL,
    text_column VARCHAR,
    truth VARCHAR,
    top INTEGER NOT NULL,
    n_queries INTEGER NOT NULL,
    with_truth INTEGER NOT NULL,
    judged INTEGER NOT NULL,
    removed INTEGER NOT NULL,
    output VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    sentence VARCHAR NOT NULL
);
COMMENT ON TABLE tracings IS 'One row is one problem that asked which rows made the model say something.';
COMMENT ON COLUMN tracings.tracing_id IS 'Digest of the problem and of the scores that it compared.';
COMMENT ON COLUMN tracings.run_id IS 'The run that committed it last.';
COMMENT ON COLUMN tracings.dataset_id IS 'The data set whose examples the ids refer to.';
COMMENT ON COLUMN tracings.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN tracings.targets IS 'The set of queries that were traced.';
COMMENT ON COLUMN tracings.text_column IS 'The metadata column that holds the texts; NULL where rows are none.';
COMMENT ON COLUMN tracings.truth IS 'The metadata column that a query shares with the rows that state what it asks for; NULL where nothing is known.';
COMMENT ON COLUMN tracings.top IS 'Rows that each method names for each query.';
COMMENT ON COLUMN tracings.n_queries IS 'Queries traced.';
COMMENT ON COLUMN tracings.with_truth IS 'Of which some training row is known to state what they ask for.';
COMMENT ON COLUMN tracings.judged IS 'Queries that retraining judged.';
COMMENT ON COLUMN tracings.removed IS 'Training rows that every retrained model lacked, those of several queries together.';
COMMENT ON COLUMN tracings.output IS 'The output that value and changes are in units of.';
COMMENT ON COLUMN tracings.value IS 'Mean output on the judged queries of models of all rows.';
COMMENT ON COLUMN tracings.sentence IS 'What retraining said, in words.';

CREATE TABLE tracing_arms (
    tracing_id VARCHAR NOT NULL,
    place INTEGER NOT NULL,
    arm VARCHAR NOT NULL,
    attribution_id VARCHAR,
    mrr DOUBLE,
    mrr_low DOUBLE,
    mrr_high DOUBLE,
    recall DOUBLE,
    recall_low DOUBLE,
    recall_high DOUBLE,
    models INTEGER NOT NULL,
    value DOUBLE NOT NULL,
    change DOUBLE NOT NULL,
    change_low DOUBLE,
    change_high DOUBLE,
    against_random DOUBLE,
    against_random_low DOUBLE,
    against_random_high DOUBLE
);
COMMENT ON TABLE tracing_arms IS 'One row is one method of a tracing, or random rows.';
COMMENT ON COLUMN tracing_arms.tracing_id IS 'The tracing; see tracings.';
COMMENT ON COLUMN tracing_arms.place IS 'Its place in the spec''s list, from 0.';
COMMENT ON COLUMN tracing_arms.arm IS 'The attribution''s name in the spec, or random.';
COMMENT ON COLUMN tracing_arms.attribution_id IS 'The attribution whose rows were taken; NULL of random rows.';
COMMENT ON COLUMN tracing_arms.mrr IS 'Mean over queries of 1 / rank of the first row that states what is asked; ties in random order.';
COMMENT ON COLUMN tracing_arms.mrr_low IS 'Lower end of its 95 % interval over queries.';
COMMENT ON COLUMN tracing_arms.mrr_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN tracing_arms.recall IS 'Mean share of the rows that state it among the rows named.';
COMMENT ON COLUMN tracing_arms.recall_low IS 'Lower end of its 95 % interval over queries.';
COMMENT ON COLUMN tracing_arms.recall_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN tracing_arms.models IS 'Models that were retrained without its rows.';
COMMENT ON COLUMN tracing_arms.value IS 'Mean output on the judged queries of models without their rows.';
COMMENT ON COLUMN tracing_arms.change IS 'Mean change for the better against models of all rows; negative: the rows had helped.';
COMMENT ON COLUMN tracing_arms.change_low IS 'Lower end of its 95 % interval over queries and models.';
COMMENT ON COLUMN tracing_arms.change_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN tracing_arms.against_random IS 'Its change minus that without as many random rows, paired by query.';
COMMENT ON COLUMN tracing_arms.against_random_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN tracing_arms.against_random_high IS 'Upper end of its 95 % interval.';

CREATE TABLE tracing_effects (
    tracing_id VARCHAR NOT NULL,
    arm VARCHAR NOT NULL,
    query_id INTEGER NOT NULL,
    change DOUBLE NOT NULL
);
COMMENT ON TABLE tracing_effects IS 'One row is what one query lost without the rows that one arm names for it.';
COMMENT ON COLUMN tracing_effects.tracing_id IS 'The tracing; see tracings.';
COMMENT ON COLUMN tracing_effects.arm IS 'The method, or random.';
COMMENT ON COLUMN tracing_effects.query_id IS 'example_id of the query.';
COMMENT ON COLUMN tracing_effects.change IS 'Change for the better against models of all rows, retrainings averaged.';

CREATE TABLE tracing_rows (
    tracing_id VARCHAR NOT NULL,
    arm VARCHAR NOT NULL,
    query_id INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    train_id INTEGER NOT NULL,
    score FLOAT NOT NULL
);
COMMENT ON TABLE tracing_rows IS 'One row is one training example that a method names for a query.';
COMMENT ON COLUMN tracing_rows.tracing_id IS 'The tracing; see tracings.';
COMMENT ON COLUMN tracing_rows.arm IS 'The method.';
COMMENT ON COLUMN tracing_rows.query_id IS 'example_id of the query.';
COMMENT ON COLUMN tracing_rows.rank IS 'Its place, from 1; rows of one score are in random order.';
COMMENT ON COLUMN tracing_rows.train_id IS 'example_id of the training example.';
COMMENT ON COLUMN tracing_rows.score IS 'The method''s score, in its own unit.';
