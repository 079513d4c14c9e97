-- What models forgot: problems of kind unlearn. Their solutions and verdicts are in the tables of
-- those names; here is how far the unlearned models are from retrained ones, and what it cost.

CREATE TABLE unlearnings (
    solution_id VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    n_forgotten INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    models INTEGER NOT NULL,
    oracles INTEGER NOT NULL,
    n_queries INTEGER NOT NULL,
    correlation DOUBLE,
    ceiling DOUBLE,
    slope DOUBLE,
    slope_low DOUBLE,
    slope_high DOUBLE,
    error DOUBLE NOT NULL,
    error_unchanged DOUBLE NOT NULL,
    certificate VARCHAR NOT NULL
);
COMMENT ON TABLE unlearnings IS 'One row is one problem that made models forget rows, and whether they did.';
COMMENT ON COLUMN unlearnings.solution_id IS 'The solution; see solutions.';
COMMENT ON COLUMN unlearnings.method IS 'How the models of the arm chosen were changed.';
COMMENT ON COLUMN unlearnings.n_forgotten IS 'Training rows that had to go.';
COMMENT ON COLUMN unlearnings.requests IS 'Requests whose rows are among them; 0 where the spec alone named them.';
COMMENT ON COLUMN unlearnings.models IS 'Models of all rows, each unlearned by every method.';
COMMENT ON COLUMN unlearnings.oracles IS 'Models retrained without the rows, half of which judge the other half.';
COMMENT ON COLUMN unlearnings.n_queries IS 'Queries on which predicted and retrained changes are compared.';
COMMENT ON COLUMN unlearnings.correlation IS 'Pearson''s, over queries, of the predicted change with that of retraining; NULL where nothing varies.';
COMMENT ON COLUMN unlearnings.ceiling IS 'What a perfect prediction would reach against the noise of training; NULL where that hides all change.';
COMMENT ON COLUMN unlearnings.slope IS 'Of the retrained change on the predicted one; above 1 predictions are too small.';
COMMENT ON COLUMN unlearnings.slope_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN unlearnings.slope_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN unlearnings.error IS 'Root mean square error of the predicted changes.';
COMMENT ON COLUMN unlearnings.error_unchanged IS 'The same of predicting that nothing changes.';
COMMENT ON COLUMN unlearnings.certificate IS 'The certificate''s place, relative to the workspace.';

CREATE TABLE unlearned (
    verdict_id VARCHAR NOT NULL,
    solution_id VARCHAR NOT NULL,
    method VARCHAR,
    options VARCHAR NOT NULL,
    examples DOUBLE NOT NULL,
    scoring DOUBLE NOT NULL,
    cost DOUBLE NOT NULL,
    seconds DOUBLE NOT NULL,
    reached BOOLEAN NOT NULL,
    membership DOUBLE,
    membership_sd DOUBLE
);
COMMENT ON TABLE unlearned IS 'One row is one arm of an unlearning verdict: what it cost a model, and whether it gives the rows away.';
COMMENT ON COLUMN unlearned.verdict_id IS 'The arm; see verdicts.';
COMMENT ON COLUMN unlearned.solution_id IS 'The solution; see solutions.';
COMMENT ON COLUMN unlearned.method IS 'How its models were changed; NULL for untouched and for retrained ones.';
COMMENT ON COLUMN unlearned.options IS 'The method''s options as JSON.';
COMMENT ON COLUMN unlearned.examples IS 'Examples processed to change one model; a forward and backward pass of one example is 1.';
COMMENT ON COLUMN unlearned.scoring IS 'Of these, gradients, features and products with the curvature, before any parameter is changed.';
COMMENT ON COLUMN unlearned.cost IS 'examples as a share of those of one retraining without the rows.';
COMMENT ON COLUMN unlearned.seconds IS 'Measured, for all models of the arm.';
COMMENT ON COLUMN unlearned.reached IS 'Whether its models are as close to retrained ones on the forgotten rows as those are to each other.';
COMMENT ON COLUMN unlearned.membership IS 'Accuracy of U-LiRA in telling its models from retrained ones by the forgotten rows; 0.5 is ideal. NULL for retrained ones.';
COMMENT ON COLUMN unlearned.membership_sd IS 'Spread of that accuracy over models.';

CREATE TABLE closeness (
    verdict_id VARCHAR NOT NULL,
    solution_id VARCHAR NOT NULL,
    rows VARCHAR NOT NULL,
    n_rows INTEGER NOT NULL,
    models INTEGER NOT NULL,
    klom DOUBLE NOT NULL,
    klom_p95 DOUBLE NOT NULL,
    null_klom DOUBLE NOT NULL,
    null_p95 DOUBLE NOT NULL,
    accuracy DOUBLE
);
COMMENT ON TABLE closeness IS 'One row is how far the models of one arm are from retrained ones on one group of rows.';
COMMENT ON COLUMN closeness.verdict_id IS 'The arm; see verdicts.';
COMMENT ON COLUMN closeness.solution_id IS 'The solution; see solutions.';
COMMENT ON COLUMN closeness.rows IS 'forgotten, retained (a sample of the other training rows) or judging (the set that judges).';
COMMENT ON COLUMN closeness.n_rows IS 'Rows of the group that were compared.';
COMMENT ON COLUMN closeness.models IS 'Models on each side of the comparison.';
COMMENT ON COLUMN closeness.klom IS 'KL divergence of the histograms of a row''s output, unlearned from retrained models, mean over rows, in nats.';
COMMENT ON COLUMN closeness.klom_p95 IS 'Its 95th percentile over rows.';
COMMENT ON COLUMN closeness.null_klom IS 'klom between two groups of retrained models: what no method falls below.';
COMMENT ON COLUMN closeness.null_p95 IS 'klom_p95 between two groups of retrained models.';
COMMENT ON COLUMN closeness.accuracy IS 'Mean accuracy of the arm''s models on the rows; NULL where there are no classes.';

CREATE TABLE query_changes (
    solution_id VARCHAR NOT NULL,
    query_id INTEGER NOT NULL,
    aim VARCHAR NOT NULL,
    predicted DOUBLE NOT NULL,
    predicted_sd DOUBLE,
    observed DOUBLE
);
COMMENT ON TABLE query_changes IS 'One row is what training without the forgotten rows does to one query.';
COMMENT ON COLUMN query_changes.solution_id IS 'The solution; see solutions.';
COMMENT ON COLUMN query_changes.query_id IS 'The query, an example_id.';
COMMENT ON COLUMN query_changes.aim IS 'targets or judging: which set it was asked for.';
COMMENT ON COLUMN query_changes.predicted IS 'Predicted change of its output.';
COMMENT ON COLUMN query_changes.predicted_sd IS 'Standard deviation of that prediction; NULL where the bank cannot tell.';
COMMENT ON COLUMN query_changes.observed IS 'The change that retraining made, mean over models; NULL for targets that do not judge.';
