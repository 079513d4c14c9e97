-- The ledger's tables. No table has a primary key: a commit replaces whole partitions (a run, an
-- attribution, a data set) in one transaction, so rows are unique by construction, and a
-- three-column key made loading scores five times slower (0.7 s -> 3.6 s for 5M rows, duckdb 2.0.0).

CREATE TABLE runs (
    run_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    spec_name VARCHAR NOT NULL,
    spec_digest VARCHAR NOT NULL,
    spec_toml VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    seed BIGINT NOT NULL,
    device VARCHAR,
    code_version VARCHAR,
    started_at TIMESTAMPTZ,
    committed_at TIMESTAMPTZ,
    seconds DOUBLE
);
COMMENT ON TABLE runs IS 'One row is one committed run of a spec.';
COMMENT ON COLUMN runs.run_id IS 'Name of the run; everything it made refers to it.';
COMMENT ON COLUMN runs.dataset_id IS 'Digest of the rows it worked on; see examples.';
COMMENT ON COLUMN runs.spec_name IS 'The name that the spec gives itself.';
COMMENT ON COLUMN runs.spec_digest IS 'Digest of the spec''s values; the same digest asks for the same numbers.';
COMMENT ON COLUMN runs.spec_toml IS 'The text of the spec as it was run.';
COMMENT ON COLUMN runs.status IS 'committed or failed.';
COMMENT ON COLUMN runs.seed IS 'The seed that every random stream was derived from.';
COMMENT ON COLUMN runs.device IS 'Where the numbers were computed: cpu or cuda.';
COMMENT ON COLUMN runs.code_version IS 'Version of winnow that ran.';
COMMENT ON COLUMN runs.started_at IS 'When the run started.';
COMMENT ON COLUMN runs.committed_at IS 'When its rows were committed.';
COMMENT ON COLUMN runs.seconds IS 'Wall-clock seconds of the run.';

CREATE TABLE examples (
    dataset_id VARCHAR NOT NULL,
    example_id INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    target VARCHAR NOT NULL,
    true_target VARCHAR,
    content_hash VARCHAR NOT NULL,
    source_id VARCHAR,
    metadata JSON
);
COMMENT ON TABLE examples IS 'One row is one example of a data set.';
COMMENT ON COLUMN examples.dataset_id IS 'Digest of the data set the example belongs to.';
COMMENT ON COLUMN examples.example_id IS 'The example''s number: the source''s id where it is an integer, else its row.';
COMMENT ON COLUMN examples.split IS 'train or test.';
COMMENT ON COLUMN examples.target IS 'The label or value that models were trained on.';
COMMENT ON COLUMN examples.true_target IS 'The label before it was corrupted on purpose; equal to target otherwise, NULL where unknown.';
COMMENT ON COLUMN examples.content_hash IS 'Digest of the example''s content; duplicates share it.';
COMMENT ON COLUMN examples.source_id IS 'The id in the source where that is a text.';
COMMENT ON COLUMN examples.metadata IS 'The source''s metadata columns as a JSON object.';

CREATE TABLE attributions (
    attribution_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    output VARCHAR NOT NULL,
    options JSON,
    n_train INTEGER NOT NULL,
    n_query INTEGER NOT NULL,
    fingerprint VARCHAR,
    damping DOUBLE,
    damping_from VARCHAR,
    device VARCHAR,
    seconds DOUBLE,
    kept BIGINT NOT NULL
);
COMMENT ON TABLE attributions IS 'One row is one method applied to one data set: it owns scores.';
COMMENT ON COLUMN attributions.attribution_id IS 'Digest of everything the scores depend on.';
COMMENT ON COLUMN attributions.run_id IS 'The run that committed it last.';
COMMENT ON COLUMN attributions.dataset_id IS 'The data set whose examples the ids refer to.';
COMMENT ON COLUMN attributions.name IS 'Its name in the spec.';
COMMENT ON COLUMN attributions.method IS 'The method; `winnow methods` lists them.';
COMMENT ON COLUMN attributions.output IS 'The model output that a score is in units of: margin, loss, ...';
COMMENT ON COLUMN attributions.options IS 'The method''s options as a JSON object.';
COMMENT ON COLUMN attributions.n_train IS 'Training examples scored for each query.';
COMMENT ON COLUMN attributions.n_query IS 'Queries scored.';
COMMENT ON COLUMN attributions.fingerprint IS 'Fingerprint of the random projection, where there is one.';
COMMENT ON COLUMN attributions.damping IS 'Damping relative to the mean eigenvalue of the curvature.';
COMMENT ON COLUMN attributions.damping_from IS 'Where the damping came from: the spec, or what it was tuned on.';
COMMENT ON COLUMN attributions.device IS 'Where it was computed: cpu or cuda.';
COMMENT ON COLUMN attributions.seconds IS 'Seconds it took.';
COMMENT ON COLUMN attributions.kept IS 'Rows of it in scores: n_train * n_query, or fewer where only the strongest of each query were kept.';

CREATE TABLE scores (
    attribution_id VARCHAR NOT NULL,
    query_id INTEGER NOT NULL,
    train_id INTEGER NOT NULL,
    score FLOAT NOT NULL
);
COMMENT ON TABLE scores IS 'One row is the effect of one training example on one query.';
COMMENT ON COLUMN scores.attribution_id IS 'The attribution that estimated it.';
COMMENT ON COLUMN scores.query_id IS 'example_id of the query.';
COMMENT ON COLUMN scores.train_id IS 'example_id of the training example.';
COMMENT ON COLUMN scores.score IS 'Positive: training on it raises the query''s output (see attributions.output).';

CREATE TABLE example_effects (
    attribution_id VARCHAR NOT NULL,
    example_id INTEGER NOT NULL,
    mean_score FLOAT NOT NULL,
    self_influence FLOAT
);
COMMENT ON TABLE example_effects IS 'One row sums up one training example under one attribution, over all queries, kept or not.';
COMMENT ON COLUMN example_effects.attribution_id IS 'The attribution that estimated it.';
COMMENT ON COLUMN example_effects.example_id IS 'The training example.';
COMMENT ON COLUMN example_effects.mean_score IS 'Its mean score over all scored queries.';
COMMENT ON COLUMN example_effects.self_influence IS 'Its effect on itself: large for what the model had to memorise.';

CREATE TABLE bank (
    retrain_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    alpha DOUBLE,
    seed BIGINT NOT NULL,
    n_rows INTEGER NOT NULL,
    mask BIT NOT NULL
);
COMMENT ON TABLE bank IS 'One row is one model that was retrained on a part of the training rows.';
COMMENT ON COLUMN bank.retrain_id IS 'Digest of its rows, its recipe and its seed.';
COMMENT ON COLUMN bank.dataset_id IS 'The data set whose training rows the mask chooses from.';
COMMENT ON COLUMN bank.kind IS 'What it is for: calibrate, evaluate, or verdict:<arm>.';
COMMENT ON COLUMN bank.alpha IS 'Share of the training rows that random masks keep; NULL where the rows were chosen.';
COMMENT ON COLUMN bank.seed IS 'Seed of its training.';
COMMENT ON COLUMN bank.n_rows IS 'Rows it was trained on.';
COMMENT ON COLUMN bank.mask IS 'Bit i from the left: the i-th training example by ascending example_id was in.';

CREATE TABLE bank_outputs (
    retrain_id VARCHAR NOT NULL,
    query_id INTEGER NOT NULL,
    output VARCHAR NOT NULL,
    value FLOAT NOT NULL
);
COMMENT ON TABLE bank_outputs IS 'One row is the output of one retrained model on one query.';
COMMENT ON COLUMN bank_outputs.retrain_id IS 'The retrained model; see bank.';
COMMENT ON COLUMN bank_outputs.query_id IS 'example_id of the query.';
COMMENT ON COLUMN bank_outputs.output IS 'Which output: margin, loss, ...';
COMMENT ON COLUMN bank_outputs.value IS 'Its value.';

CREATE TABLE lds (
    attribution_id VARCHAR NOT NULL,
    alpha DOUBLE,
    mean DOUBLE NOT NULL,
    low DOUBLE,
    high DOUBLE,
    ceiling DOUBLE,
    relative DOUBLE,
    null_sd DOUBLE,
    n_masks INTEGER NOT NULL,
    n_seeds INTEGER NOT NULL,
    n_queries INTEGER NOT NULL
);
COMMENT ON TABLE lds IS 'One row is how well an attribution ranks retrained models: the linear datamodeling score.';
COMMENT ON COLUMN lds.attribution_id IS 'The attribution that was judged.';
COMMENT ON COLUMN lds.alpha IS 'Share of the training rows in the models it was judged on; NULL: the mean over all shares.';
COMMENT ON COLUMN lds.mean IS 'Rank correlation of predicted and observed outputs, mean over queries.';
COMMENT ON COLUMN lds.low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN lds.high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN lds.ceiling IS 'What a perfect attribution would reach against the training noise; NULL where each set was trained once.';
COMMENT ON COLUMN lds.relative IS 'mean / ceiling.';
COMMENT ON COLUMN lds.null_sd IS 'Standard deviation of the score of one query under scores that know nothing.';
COMMENT ON COLUMN lds.n_masks IS 'Different sets of rows that models were retrained on.';
COMMENT ON COLUMN lds.n_seeds IS 'Retrainings of each set.';
COMMENT ON COLUMN lds.n_queries IS 'Queries judged.';

CREATE TABLE solutions (
    solution_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    attribution_id VARCHAR,
    problem VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    size INTEGER NOT NULL,
    n_pool INTEGER NOT NULL,
    value DOUBLE,
    bound DOUBLE,
    gap DOUBLE,
    predicted_change DOUBLE,
    predicted_low DOUBLE,
    predicted_high DOUBLE,
    targets VARCHAR,
    sentence VARCHAR
);
COMMENT ON TABLE solutions IS 'One row is one problem solved over an attribution''s scores.';
COMMENT ON COLUMN solutions.solution_id IS 'Digest of the problem and of the scores it was solved over.';
COMMENT ON COLUMN solutions.run_id IS 'The run that committed it last.';
COMMENT ON COLUMN solutions.attribution_id IS 'The attribution whose scores it used.';
COMMENT ON COLUMN solutions.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN solutions.kind IS 'The kind of problem: select, ...';
COMMENT ON COLUMN solutions.status IS 'What the solver says of its answer: optimal, ...';
COMMENT ON COLUMN solutions.size IS 'Rows chosen.';
COMMENT ON COLUMN solutions.n_pool IS 'Rows it could choose from.';
COMMENT ON COLUMN solutions.value IS 'Value of the objective at the choice.';
COMMENT ON COLUMN solutions.bound IS 'Best value that any feasible choice could reach.';
COMMENT ON COLUMN solutions.gap IS 'Relative distance between value and bound; 0 is proven best.';
COMMENT ON COLUMN solutions.predicted_change IS 'Predicted change of the mean output on the targets, against training on all rows.';
COMMENT ON COLUMN solutions.predicted_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN solutions.predicted_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN solutions.targets IS 'The set of queries it was solved for.';
COMMENT ON COLUMN solutions.sentence IS 'The answer as a sentence.';

CREATE TABLE solution_rows (
    solution_id VARCHAR NOT NULL,
    example_id INTEGER NOT NULL,
    chosen BOOLEAN NOT NULL,
    utility DOUBLE NOT NULL,
    position INTEGER
);
COMMENT ON TABLE solution_rows IS 'One row is what a solution decided about one example of its pool.';
COMMENT ON COLUMN solution_rows.solution_id IS 'The solution; see solutions.';
COMMENT ON COLUMN solution_rows.example_id IS 'The example.';
COMMENT ON COLUMN solution_rows.chosen IS 'Whether to train on it.';
COMMENT ON COLUMN solution_rows.utility IS 'What having it is predicted to add to the objective.';
COMMENT ON COLUMN solution_rows.position IS 'Its place in the pool by utility: 1 is the most useful.';

CREATE TABLE verdicts (
    verdict_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    solution_id VARCHAR NOT NULL,
    arm VARCHAR NOT NULL,
    n_rows INTEGER NOT NULL,
    seeds INTEGER NOT NULL,
    accuracy DOUBLE,
    accuracy_low DOUBLE,
    accuracy_high DOUBLE,
    output VARCHAR,
    value DOUBLE,
    value_low DOUBLE,
    value_high DOUBLE,
    predicted_change DOUBLE,
    predicted_low DOUBLE,
    predicted_high DOUBLE,
    observed_change DOUBLE,
    observed_low DOUBLE,
    observed_high DOUBLE,
    advantage DOUBLE,
    advantage_low DOUBLE,
    advantage_high DOUBLE,
    sentence VARCHAR
);
COMMENT ON TABLE verdicts IS 'One row is one arm of the retraining that checked a solution: chosen, or a control.';
COMMENT ON COLUMN verdicts.verdict_id IS 'Digest of the check and of this arm.';
COMMENT ON COLUMN verdicts.run_id IS 'The run that committed it last.';
COMMENT ON COLUMN verdicts.solution_id IS 'The solution that was checked.';
COMMENT ON COLUMN verdicts.arm IS 'chosen, all, random or balanced: what the models were trained on.';
COMMENT ON COLUMN verdicts.n_rows IS 'Rows they were trained on.';
COMMENT ON COLUMN verdicts.seeds IS 'Models trained, each with its own seed.';
COMMENT ON COLUMN verdicts.accuracy IS 'Mean accuracy on the judging set, 0 to 1; NULL for a regression.';
COMMENT ON COLUMN verdicts.accuracy_low IS 'Lower end of its 95 % interval over seeds.';
COMMENT ON COLUMN verdicts.accuracy_high IS 'Upper end of its 95 % interval over seeds.';
COMMENT ON COLUMN verdicts.output IS 'The output that value and the changes are in units of.';
COMMENT ON COLUMN verdicts.value IS 'Mean output on the judging set.';
COMMENT ON COLUMN verdicts.value_low IS 'Lower end of its 95 % interval over seeds.';
COMMENT ON COLUMN verdicts.value_high IS 'Upper end of its 95 % interval over seeds.';
COMMENT ON COLUMN verdicts.predicted_change IS 'Change of the output against the arm all that the surrogate predicted.';
COMMENT ON COLUMN verdicts.predicted_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN verdicts.predicted_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN verdicts.observed_change IS 'Change of the output against the arm all that retraining showed.';
COMMENT ON COLUMN verdicts.observed_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN verdicts.observed_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN verdicts.advantage IS 'Accuracy of the arm chosen minus the accuracy of this arm.';
COMMENT ON COLUMN verdicts.advantage_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN verdicts.advantage_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN verdicts.sentence IS 'What this arm shows, as a sentence.';
