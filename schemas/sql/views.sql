-- What an analyst asks for by name. Applied anew at each migration; nothing here holds rows.
-- Inside a macro every column is qualified, because a bare name that is also a parameter is the
-- parameter.

CREATE MACRO harm(output, score) AS
    CASE
        WHEN output IN ('loss', 'squared_error') THEN score
        WHEN output IN ('margin', 'logprob', 'logit') THEN -score
    END;
COMMENT ON MACRO harm IS 'How much a score of this output hurts: positive is harmful, NULL where the output has no good direction.';

CREATE VIEW latest_attribution AS
SELECT
    a.attribution_id, a.run_id, a.dataset_id, a.name, a.method, a.output, a.n_train, a.n_query,
    a.kept, r.committed_at
FROM attributions AS a
JOIN runs AS r USING (run_id)
LEFT JOIN (SELECT l.attribution_id, avg(l.mean) AS lds FROM lds AS l GROUP BY ALL) AS judged
    ON judged.attribution_id = a.attribution_id
ORDER BY
    r.committed_at DESC,
    EXISTS (FROM solutions AS s WHERE s.attribution_id = a.attribution_id) DESC,
    judged.lds DESC NULLS LAST,
    a.name,
    a.attribution_id
LIMIT 1;
COMMENT ON VIEW latest_attribution IS 'The one attribution that macros use by default: of the latest run, the one its solutions used, else the one with the best LDS.';
COMMENT ON COLUMN latest_attribution.attribution_id IS 'Digest of everything the scores depend on.';
COMMENT ON COLUMN latest_attribution.run_id IS 'The run that committed it.';
COMMENT ON COLUMN latest_attribution.dataset_id IS 'The data set whose examples the ids refer to.';
COMMENT ON COLUMN latest_attribution.name IS 'Its name in the spec.';
COMMENT ON COLUMN latest_attribution.method IS 'The method.';
COMMENT ON COLUMN latest_attribution.output IS 'The model output that a score is in units of.';
COMMENT ON COLUMN latest_attribution.n_train IS 'Training examples scored for each query.';
COMMENT ON COLUMN latest_attribution.n_query IS 'Queries scored.';
COMMENT ON COLUMN latest_attribution.kept IS 'Rows of it in scores.';
COMMENT ON COLUMN latest_attribution.committed_at IS 'When its run was committed.';

CREATE MACRO attribution_named(wanted) AS
    CASE
        WHEN wanted IS NULL THEN
            coalesce(
                (SELECT la.attribution_id FROM latest_attribution AS la),
                error('nothing has been attributed yet; run `winnow run SPEC` with an [[attribution]]')
            )
        ELSE coalesce(
            (SELECT min(a.attribution_id) FROM attributions AS a WHERE a.attribution_id = wanted),
            (
                SELECT arg_max(a.attribution_id, r.committed_at)
                FROM attributions AS a JOIN runs AS r ON r.run_id = a.run_id
                WHERE a.name = wanted
            ),
            error(
                'there is no attribution ' || wanted || '; known: '
                || coalesce((SELECT string_agg(DISTINCT a.name, ', ') FROM attributions AS a), 'none')
            )
        )
    END;
COMMENT ON MACRO attribution_named IS 'The attribution_id for an id, for a name (its latest), or for NULL (latest_attribution).';

CREATE MACRO top_influences(query, n := 20, attribution := NULL) AS TABLE
WITH asked AS MATERIALIZED (
    SELECT attribution_named(attribution) AS attribution_id
),
checked AS MATERIALIZED (
    SELECT CASE
        WHEN EXISTS (
            FROM scores AS s
            WHERE s.attribution_id = asked.attribution_id AND s.query_id = query
        ) THEN asked.attribution_id
        ELSE error(
            'query ' || query || ' was not scored by attribution ' || asked.attribution_id
            || '; scored queries: SELECT DISTINCT query_id FROM scores WHERE attribution_id = '''
            || asked.attribution_id || ''''
        )
    END AS attribution_id
    FROM asked
)
SELECT
    row_number() OVER (ORDER BY abs(s.score) DESC, s.train_id) AS rank,
    s.train_id,
    s.score,
    t.target,
    t.true_target,
    q.target AS query_target,
    a.name,
    a.output,
    a.attribution_id
FROM checked AS c
LEFT JOIN scores AS s ON s.attribution_id = c.attribution_id AND s.query_id = query
LEFT JOIN attributions AS a ON a.attribution_id = c.attribution_id
LEFT JOIN examples AS t ON t.dataset_id = a.dataset_id AND t.example_id = s.train_id
LEFT JOIN examples AS q ON q.dataset_id = a.dataset_id AND q.example_id = s.query_id
ORDER BY abs(s.score) DESC, s.train_id
LIMIT n;
COMMENT ON MACRO TABLE top_influences IS 'The n training examples that move a query''s output most, either way (score > 0 raises it): FROM top_influences(17, n := 10).';

CREATE MACRO traces(query, n := 10, tracing := NULL) AS TABLE
WITH wanted AS MATERIALIZED (
    SELECT t.tracing_id, t.dataset_id, t.text_column, t.truth, t.output
    FROM tracings AS t JOIN runs AS r ON r.run_id = t.run_id
    WHERE tracing IS NULL OR t.tracing_id = tracing OR t.problem = tracing
    ORDER BY r.committed_at DESC, t.problem
    LIMIT 1
),
checked AS MATERIALIZED (
    SELECT CASE
        WHEN NOT EXISTS (FROM wanted) THEN
            error('nothing has been traced; run `winnow run SPEC` with a [[problem]] of kind trace')
        WHEN NOT EXISTS (
            FROM tracing_rows AS w JOIN wanted ON wanted.tracing_id = w.tracing_id
            WHERE w.query_id = query
        ) THEN error('query ' || query || ' was not traced; traced queries: SELECT DISTINCT query_id FROM tracing_rows')
    END AS unused
)
SELECT
    w.arm AS method,
    w.rank,
    w.train_id,
    w.score,
    (x.metadata ->> f.truth) = (q.metadata ->> f.truth) AS states,
    e.change AS change_without,
    coalesce(x.metadata ->> f.text_column, x.target) AS text,
    coalesce(q.metadata ->> f.text_column, q.target) AS query_text,
    f.output,
    f.tracing_id
FROM checked AS c
LEFT JOIN wanted AS f ON c.unused IS NULL
JOIN tracing_rows AS w ON w.tracing_id = f.tracing_id AND w.query_id = query AND w.rank <= n
JOIN tracing_arms AS a ON a.tracing_id = w.tracing_id AND a.arm = w.arm
LEFT JOIN tracing_effects AS e
    ON e.tracing_id = w.tracing_id AND e.arm = w.arm AND e.query_id = w.query_id
LEFT JOIN examples AS x ON x.dataset_id = f.dataset_id AND x.example_id = w.train_id
LEFT JOIN examples AS q ON q.dataset_id = f.dataset_id AND q.example_id = w.query_id
ORDER BY a.place, w.rank;
COMMENT ON MACRO TABLE traces IS 'The rows that each method names for a query, side by side, with texts, whether they state what it asks for, and what the query lost without them: FROM traces(17).';

CREATE MACRO slice_effects(query, attribution := NULL) AS TABLE
WITH asked AS MATERIALIZED (
    SELECT attribution_named(attribution) AS attribution_id
),
pairs AS (
    SELECT
        s.score, x.target, x.metadata,
        s.score - avg(s.score) OVER (PARTITION BY x.target) AS beyond
    FROM scores AS s
    JOIN asked ON asked.attribution_id = s.attribution_id
    JOIN attributions AS a ON a.attribution_id = s.attribution_id
    JOIN examples AS x ON x.dataset_id = a.dataset_id AND x.example_id = s.train_id
    WHERE s.query_id = query
),
named AS (
    SELECT 'target' AS key, p.target AS value, p.score, p.beyond FROM pairs AS p
    UNION ALL
    SELECT k.key, p.metadata ->> ('$."' || k.key || '"'), p.score, p.beyond
    FROM pairs AS p, unnest(json_keys(p.metadata)) AS k(key)
)
SELECT
    n.key, n.value, count(*) AS n_rows, sum(n.score) AS effect, avg(n.score) AS mean_score,
    sum(n.beyond) AS beyond_classes
FROM named AS n
GROUP BY n.key, n.value
ORDER BY abs(sum(n.beyond)) DESC, n.key, n.value;
COMMENT ON MACRO TABLE slice_effects IS 'What the rows of each metadata value, and of each class, do to a query together, and beyond what their classes do (score > 0 raises it); where only the strongest scores are kept, of those: FROM slice_effects(17).';

CREATE MACRO harmful_examples(n := 20, attribution := NULL) AS TABLE
WITH asked AS MATERIALIZED (
    SELECT attribution_named(attribution) AS attribution_id
),
checked AS MATERIALIZED (
    SELECT
        a.attribution_id, a.dataset_id, a.name, a.output,
        CASE
            WHEN harm(a.output, 1.0) IS NULL THEN error(
                'output ' || a.output || ' of attribution ' || a.name
                || ' has no good direction; attribute a loss or a margin instead'
            )
        END AS unused
    FROM attributions AS a JOIN asked ON a.attribution_id = asked.attribution_id
)
SELECT
    row_number() OVER (ORDER BY harm(c.output, e.mean_score) DESC, e.example_id) AS rank,
    e.example_id,
    harm(c.output, e.mean_score) AS harm,
    e.mean_score,
    e.self_influence,
    x.target,
    x.true_target,
    x.source_id,
    x.metadata,
    c.name,
    c.output,
    c.attribution_id
FROM checked AS c
JOIN example_effects AS e ON e.attribution_id = c.attribution_id
LEFT JOIN examples AS x ON x.dataset_id = c.dataset_id AND x.example_id = e.example_id
WHERE c.unused IS NULL
ORDER BY harm(c.output, e.mean_score) DESC, e.example_id
LIMIT n;
COMMENT ON MACRO TABLE harmful_examples IS 'The n training examples that hurt the scored queries most on average: FROM harmful_examples(n := 50).';

CREATE VIEW mislabel_candidates AS
SELECT
    row_number() OVER (ORDER BY harm(a.output, e.mean_score) DESC NULLS LAST, e.self_influence DESC, e.example_id)
        AS suspicion,
    e.example_id,
    x.target,
    x.true_target,
    harm(a.output, e.mean_score) AS harm,
    e.mean_score,
    e.self_influence,
    x.source_id,
    x.metadata
FROM latest_attribution AS a
JOIN example_effects AS e ON e.attribution_id = a.attribution_id
LEFT JOIN examples AS x ON x.dataset_id = a.dataset_id AND x.example_id = e.example_id
ORDER BY suspicion;
COMMENT ON VIEW mislabel_candidates IS 'Every training example of the latest attribution, the most suspicious label first.';
COMMENT ON COLUMN mislabel_candidates.suspicion IS 'Rank by harm, from 1; look at the first ones first.';
COMMENT ON COLUMN mislabel_candidates.example_id IS 'The training example.';
COMMENT ON COLUMN mislabel_candidates.target IS 'The label it was trained on.';
COMMENT ON COLUMN mislabel_candidates.true_target IS 'The true label: before any was corrupted on purpose, or as data.true_target says; NULL where nobody knows.';
COMMENT ON COLUMN mislabel_candidates.harm IS 'How much it hurts the scored queries on average; NULL where the output has no good direction.';
COMMENT ON COLUMN mislabel_candidates.mean_score IS 'Its mean score over all scored queries.';
COMMENT ON COLUMN mislabel_candidates.self_influence IS 'Its effect on itself: large for what the model had to memorise.';
COMMENT ON COLUMN mislabel_candidates.source_id IS 'The id in the source where that is a text.';
COMMENT ON COLUMN mislabel_candidates.metadata IS 'The source''s metadata columns as a JSON object.';

CREATE VIEW lds_by_method AS
SELECT
    r.spec_name, a.name, a.method, a.output, l.alpha, l.mean, l.low, l.high, l.ceiling, l.relative,
    l.null_sd, l.n_masks, l.n_seeds, l.n_queries, a.attribution_id, a.run_id, r.committed_at
FROM lds AS l
JOIN attributions AS a USING (attribution_id)
JOIN runs AS r USING (run_id)
ORDER BY r.committed_at DESC, l.alpha NULLS FIRST, l.mean DESC, a.name;
COMMENT ON VIEW lds_by_method IS 'How well each attribution predicts retrained models: one row for each attribution and share of rows, the latest run first.';
COMMENT ON COLUMN lds_by_method.spec_name IS 'The name of the run''s spec.';
COMMENT ON COLUMN lds_by_method.name IS 'The attribution''s name in the spec.';
COMMENT ON COLUMN lds_by_method.method IS 'The method.';
COMMENT ON COLUMN lds_by_method.output IS 'The model output that was predicted.';
COMMENT ON COLUMN lds_by_method.alpha IS 'Share of the training rows in the models; NULL: the mean over all shares.';
COMMENT ON COLUMN lds_by_method.mean IS 'The linear datamodeling score.';
COMMENT ON COLUMN lds_by_method.low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN lds_by_method.high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN lds_by_method.ceiling IS 'What a perfect attribution would reach against the training noise.';
COMMENT ON COLUMN lds_by_method.relative IS 'mean / ceiling.';
COMMENT ON COLUMN lds_by_method.null_sd IS 'Standard deviation for one query under scores that know nothing.';
COMMENT ON COLUMN lds_by_method.n_masks IS 'Different sets of rows that models were retrained on.';
COMMENT ON COLUMN lds_by_method.n_seeds IS 'Retrainings of each set.';
COMMENT ON COLUMN lds_by_method.n_queries IS 'Queries judged.';
COMMENT ON COLUMN lds_by_method.attribution_id IS 'The attribution.';
COMMENT ON COLUMN lds_by_method.run_id IS 'Its run.';
COMMENT ON COLUMN lds_by_method.committed_at IS 'When the run was committed.';

CREATE VIEW latest_solution AS
SELECT
    s.solution_id, s.run_id, s.attribution_id, r.dataset_id, s.problem, s.kind, s.status, s.size,
    s.n_pool, s.sentence, r.committed_at
FROM solutions AS s
JOIN runs AS r USING (run_id)
ORDER BY s.kind <> 'select', s.kind = 'debug', r.committed_at DESC, s.problem, s.solution_id
LIMIT 1;
COMMENT ON VIEW latest_solution IS 'The one solution that selected_examples and dropped_examples show: the first selection of the latest run that selects; where none does, the latest other problem.';
COMMENT ON COLUMN latest_solution.solution_id IS 'The solution.';
COMMENT ON COLUMN latest_solution.run_id IS 'The run that committed it.';
COMMENT ON COLUMN latest_solution.attribution_id IS 'The attribution whose scores it used.';
COMMENT ON COLUMN latest_solution.dataset_id IS 'The data set whose examples the ids refer to.';
COMMENT ON COLUMN latest_solution.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN latest_solution.kind IS 'The kind of problem.';
COMMENT ON COLUMN latest_solution.status IS 'What the solver says of its answer.';
COMMENT ON COLUMN latest_solution.size IS 'Rows chosen.';
COMMENT ON COLUMN latest_solution.n_pool IS 'Rows it could choose from.';
COMMENT ON COLUMN latest_solution.sentence IS 'The answer as a sentence.';
COMMENT ON COLUMN latest_solution.committed_at IS 'When the run was committed.';

CREATE VIEW selected_examples AS
SELECT
    row_number() OVER (ORDER BY w.utility DESC, w.example_id) AS rank,
    w.example_id, w.utility, x.target, x.true_target,
    x.target <> x.true_target AS corrupted, x.source_id, x.metadata, s.problem, s.solution_id
FROM latest_solution AS s
JOIN solution_rows AS w ON w.solution_id = s.solution_id AND w.chosen
LEFT JOIN examples AS x ON x.dataset_id = s.dataset_id AND x.example_id = w.example_id
ORDER BY rank;
COMMENT ON VIEW selected_examples IS 'The examples that the latest solution keeps, the most useful first.';
COMMENT ON COLUMN selected_examples.rank IS 'Rank by utility, from 1.';
COMMENT ON COLUMN selected_examples.example_id IS 'The example.';
COMMENT ON COLUMN selected_examples.utility IS 'What having it is predicted to add to the objective.';
COMMENT ON COLUMN selected_examples.target IS 'The label it is trained on.';
COMMENT ON COLUMN selected_examples.true_target IS 'The true label: before any was corrupted on purpose, or as data.true_target says; NULL where nobody knows.';
COMMENT ON COLUMN selected_examples.corrupted IS 'Whether its label is known to be wrong; NULL where no true labels are known.';
COMMENT ON COLUMN selected_examples.source_id IS 'The id in the source where that is a text.';
COMMENT ON COLUMN selected_examples.metadata IS 'The source''s metadata columns as a JSON object.';
COMMENT ON COLUMN selected_examples.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN selected_examples.solution_id IS 'The solution.';

CREATE VIEW dropped_examples AS
SELECT
    row_number() OVER (ORDER BY w.utility, w.example_id) AS rank,
    w.example_id, w.utility, x.target, x.true_target,
    x.target <> x.true_target AS corrupted, x.source_id, x.metadata, s.problem, s.solution_id
FROM latest_solution AS s
JOIN solution_rows AS w ON w.solution_id = s.solution_id AND NOT w.chosen
LEFT JOIN examples AS x ON x.dataset_id = s.dataset_id AND x.example_id = w.example_id
ORDER BY rank;
COMMENT ON VIEW dropped_examples IS 'The examples that the latest solution leaves out, the most harmful first.';
COMMENT ON COLUMN dropped_examples.rank IS 'Rank by utility from the lowest, from 1.';
COMMENT ON COLUMN dropped_examples.example_id IS 'The example.';
COMMENT ON COLUMN dropped_examples.utility IS 'What having it is predicted to add to the objective.';
COMMENT ON COLUMN dropped_examples.target IS 'The label it had.';
COMMENT ON COLUMN dropped_examples.true_target IS 'The true label: before any was corrupted on purpose, or as data.true_target says; NULL where nobody knows.';
COMMENT ON COLUMN dropped_examples.corrupted IS 'Whether its label is known to be wrong; NULL where no true labels are known.';
COMMENT ON COLUMN dropped_examples.source_id IS 'The id in the source where that is a text.';
COMMENT ON COLUMN dropped_examples.metadata IS 'The source''s metadata columns as a JSON object.';
COMMENT ON COLUMN dropped_examples.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN dropped_examples.solution_id IS 'The solution.';

CREATE VIEW prices_by_constraint AS
SELECT
    r.spec_name, s.problem, p.constraint_name, p.price, a.output, s.targets, s.solution_id,
    s.run_id, r.committed_at
FROM solution_prices AS p
JOIN solutions AS s USING (solution_id)
JOIN runs AS r ON r.run_id = s.run_id
LEFT JOIN attributions AS a ON a.attribution_id = s.attribution_id
ORDER BY r.committed_at DESC, s.problem, abs(p.price) DESC, p.constraint_name;
COMMENT ON VIEW prices_by_constraint IS 'What one more unit of each constraint is predicted to add: the latest run first, the dearest constraint first.';
COMMENT ON COLUMN prices_by_constraint.spec_name IS 'The name of the run''s spec.';
COMMENT ON COLUMN prices_by_constraint.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN prices_by_constraint.constraint_name IS 'size, a quota such as "class 3", a budget''s column, must include, must exclude, or duplicates.';
COMMENT ON COLUMN prices_by_constraint.price IS 'Gain of the objective when the limit is loosened by one; negative for a minimum that binds, 0 where nothing binds.';
COMMENT ON COLUMN prices_by_constraint.output IS 'The output that prices are in units of; of a loss or an error, a gain is a fall.';
COMMENT ON COLUMN prices_by_constraint.targets IS 'The sets of queries it was solved for.';
COMMENT ON COLUMN prices_by_constraint.solution_id IS 'The solution.';
COMMENT ON COLUMN prices_by_constraint.run_id IS 'Its run.';
COMMENT ON COLUMN prices_by_constraint.committed_at IS 'When the run was committed.';

CREATE VIEW arms AS
WITH latest AS (
    SELECT p.run_id
    FROM run_parts AS p JOIN runs AS r USING (run_id)
    WHERE p.kind = 'verdicts'
    ORDER BY r.committed_at DESC, p.run_id
    LIMIT 1
)
SELECT
    s.problem, v.arm, v.n_rows, 100 * v.accuracy AS accuracy, v.value,
    v.observed_change AS change,
    CASE WHEN v.accuracy IS NOT NULL THEN 100 * v.advantage END AS points
FROM latest
JOIN run_parts AS p ON p.run_id = latest.run_id AND p.kind = 'verdicts'
JOIN verdicts AS v ON v.verdict_id = p.part_id
JOIN solutions AS s ON s.solution_id = v.solution_id
ORDER BY s.problem, v.arm <> 'chosen', v.arm <> 'all', v.arm;
COMMENT ON VIEW arms IS 'What each arm of the latest verdicts reached: one row an arm, in few columns; verdicts has intervals and predictions.';
COMMENT ON COLUMN arms.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN arms.arm IS 'What the models were trained on, as in verdicts.';
COMMENT ON COLUMN arms.n_rows IS 'Rows they were trained on.';
COMMENT ON COLUMN arms.accuracy IS 'Mean accuracy on the judging set, in percent; NULL where there is none.';
COMMENT ON COLUMN arms.value IS 'Mean output on the judging set.';
COMMENT ON COLUMN arms.change IS 'Change of the output against the arm all.';
COMMENT ON COLUMN arms.points IS 'Accuracy of the arm chosen minus the accuracy of this arm, in percentage points; NULL where there is no accuracy.';

CREATE VIEW bank_by_kind AS
SELECT
    b.dataset_id, b.kind, b.alpha,
    count(*) AS models, count(DISTINCT b.mask) AS masks, avg(b.n_rows) AS mean_rows
FROM bank AS b
GROUP BY b.dataset_id, b.kind, b.alpha
ORDER BY b.dataset_id, b.kind, b.alpha;
COMMENT ON VIEW bank_by_kind IS 'How many retrained models there are, by data set, kind and share of rows.';
COMMENT ON COLUMN bank_by_kind.dataset_id IS 'The data set.';
COMMENT ON COLUMN bank_by_kind.kind IS 'What the models are for: calibrate, evaluate, aimed:<problem> or verdict:<arm>.';
COMMENT ON COLUMN bank_by_kind.alpha IS 'Share of the training rows that random masks keep.';
COMMENT ON COLUMN bank_by_kind.models IS 'Retrained models.';
COMMENT ON COLUMN bank_by_kind.masks IS 'Different sets of rows among them.';
COMMENT ON COLUMN bank_by_kind.mean_rows IS 'Mean number of rows they were trained on.';

CREATE VIEW values_by_source AS
WITH latest AS (
    SELECT v.run_id
    FROM valuations AS v JOIN runs AS r USING (run_id)
    WHERE v.sources IS NOT NULL
    ORDER BY r.committed_at DESC, v.run_id
    LIMIT 1
)
SELECT
    v.problem, v.sources, p.player AS source, p.n_rows, p.value, p.standard_error,
    CASE WHEN v.everything > v.nothing THEN p.value / (v.everything - v.nothing) END AS share,
    v.method, v.output, v.targets, v.valuation_id, v.run_id
FROM valuations AS v
JOIN latest USING (run_id)
JOIN player_values AS p USING (valuation_id)
WHERE v.sources IS NOT NULL
ORDER BY v.problem, p.value DESC, p.player;
COMMENT ON VIEW values_by_source IS 'What each source is worth, by the latest run that asked, the most valuable first.';
COMMENT ON COLUMN values_by_source.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN values_by_source.sources IS 'The metadata column that names sources.';
COMMENT ON COLUMN values_by_source.source IS 'The source.';
COMMENT ON COLUMN values_by_source.n_rows IS 'Training rows that it brings.';
COMMENT ON COLUMN values_by_source.value IS 'Positive: having it makes the model better, by so much of the output.';
COMMENT ON COLUMN values_by_source.standard_error IS 'Of the draws of coalitions and, with several seeds, of training; 0 where one seed trained all coalitions.';
COMMENT ON COLUMN values_by_source.share IS 'Of what all sources add together; Shapley values sum to 1. NULL where together they add nothing.';
COMMENT ON COLUMN values_by_source.method IS 'shapley, beta, banzhaf or leave_one_out.';
COMMENT ON COLUMN values_by_source.output IS 'The output that values are in units of; of a loss or an error, less is worth more.';
COMMENT ON COLUMN values_by_source.targets IS 'The set of queries whose mean output is the worth of a model.';
COMMENT ON COLUMN values_by_source.valuation_id IS 'The valuation.';
COMMENT ON COLUMN values_by_source.run_id IS 'Its run.';

CREATE VIEW closeness_by_arm AS
SELECT
    r.spec_name, s.problem, v.arm, u.method, c.rows, c.klom, c.klom_p95, c.null_klom, c.null_p95,
    u.reached, u.membership, c.accuracy, u.cost, c.n_rows, c.models, c.verdict_id, c.solution_id,
    s.run_id, r.committed_at
FROM closeness AS c
JOIN unlearned AS u USING (verdict_id)
JOIN verdicts AS v USING (verdict_id)
JOIN solutions AS s ON s.solution_id = c.solution_id
JOIN runs AS r ON r.run_id = s.run_id
ORDER BY r.committed_at DESC, s.problem, c.rows, c.klom_p95;
COMMENT ON VIEW closeness_by_arm IS 'How far each unlearned model is from retrained ones: one row for each arm and group of rows, the latest run first, the closest first.';
COMMENT ON COLUMN closeness_by_arm.spec_name IS 'The name of the run''s spec.';
COMMENT ON COLUMN closeness_by_arm.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN closeness_by_arm.arm IS 'all (untouched), retrained, chosen, or the name of a method beside it.';
COMMENT ON COLUMN closeness_by_arm.method IS 'How its models were changed; NULL for untouched and for retrained ones.';
COMMENT ON COLUMN closeness_by_arm.rows IS 'forgotten, retained or judging.';
COMMENT ON COLUMN closeness_by_arm.klom IS 'Mean divergence from retrained models over the rows, in nats.';
COMMENT ON COLUMN closeness_by_arm.klom_p95 IS 'Its 95th percentile over the rows.';
COMMENT ON COLUMN closeness_by_arm.null_klom IS 'klom between two groups of retrained models: the floor.';
COMMENT ON COLUMN closeness_by_arm.null_p95 IS 'klom_p95 between two groups of retrained models: the floor.';
COMMENT ON COLUMN closeness_by_arm.reached IS 'Whether the arm is at the floor on the forgotten rows.';
COMMENT ON COLUMN closeness_by_arm.membership IS 'Accuracy of U-LiRA on the forgotten rows; 0.5 is ideal.';
COMMENT ON COLUMN closeness_by_arm.accuracy IS 'Mean accuracy on the rows; NULL where there are no classes.';
COMMENT ON COLUMN closeness_by_arm.cost IS 'Examples processed for one model, as a share of a retraining''s.';
COMMENT ON COLUMN closeness_by_arm.n_rows IS 'Rows that were compared.';
COMMENT ON COLUMN closeness_by_arm.models IS 'Models on each side.';
COMMENT ON COLUMN closeness_by_arm.verdict_id IS 'The arm; see verdicts.';
COMMENT ON COLUMN closeness_by_arm.solution_id IS 'The solution.';
COMMENT ON COLUMN closeness_by_arm.run_id IS 'Its run.';
COMMENT ON COLUMN closeness_by_arm.committed_at IS 'When the run was committed.';

CREATE VIEW quarantined_rows AS
SELECT
    s.spec_name, s.problem, s.batch, w.batch_row, w.label, w.codes, w.reasons,
    min(v.place) AS place, w.effect, s.screening_id, s.screened_at
FROM screenings AS s
JOIN screened_rows AS w ON w.screening_id = s.screening_id AND NOT w.accepted
LEFT JOIN screened_values AS v ON v.screening_id = w.screening_id AND v.batch_row = w.batch_row
GROUP BY ALL
ORDER BY s.screened_at DESC, s.screening_id, place, w.batch_row;
COMMENT ON VIEW quarantined_rows IS 'The rows of batches that were held up, with reasons: the latest batch first, the most suspicious row first.';
COMMENT ON COLUMN quarantined_rows.spec_name IS 'The name of the spec.';
COMMENT ON COLUMN quarantined_rows.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN quarantined_rows.batch IS 'The batch''s file.';
COMMENT ON COLUMN quarantined_rows.batch_row IS 'The row''s place in it, from 1.';
COMMENT ON COLUMN quarantined_rows.label IS 'Its target as it was written.';
COMMENT ON COLUMN quarantined_rows.codes IS 'The screens that held it up, or copy, test_copy, unknown_label.';
COMMENT ON COLUMN quarantined_rows.reasons IS 'Why, in words.';
COMMENT ON COLUMN quarantined_rows.place IS 'The smallest of its places among trusted rows, over screens; NULL where none speaks of it.';
COMMENT ON COLUMN quarantined_rows.effect IS 'Predicted change of the mean output over the judging set by having it.';
COMMENT ON COLUMN quarantined_rows.screening_id IS 'The screening; see screenings.';
COMMENT ON COLUMN quarantined_rows.screened_at IS 'When the batch was answered.';

CREATE VIEW damage_by_budget AS
SELECT
    r.spec_name, p.problem, p.move, b.budget, b.predicted, b.observed, b.observed_low,
    b.observed_high, b.random_p95, b.inside_p95, b.exceeds, p.loss AS loss_before,
    b.observed_output, p.accuracy AS accuracy_before,
    b.accuracy, b.observed_elsewhere AS lost_elsewhere, b.stealth_held,
    p.accuracy_elsewhere AS accuracy_elsewhere_before, b.accuracy_elsewhere,
    (
        SELECT max(s.recall) FROM poison_screens AS s
        WHERE s.poisoning_id = b.poisoning_id AND s.budget = b.budget
    ) AS best_recall,
    p.output, p.targets, p.poisoning_id, p.run_id, r.committed_at
FROM poison_budgets AS b
JOIN poisonings AS p USING (poisoning_id)
JOIN runs AS r USING (run_id)
ORDER BY r.committed_at DESC, p.problem, b.budget;
COMMENT ON VIEW damage_by_budget IS 'What each budget of moved rows did at worst, and whether one would have noticed: the latest run first.';
COMMENT ON COLUMN damage_by_budget.spec_name IS 'The name of the run''s spec.';
COMMENT ON COLUMN damage_by_budget.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN damage_by_budget.move IS 'flip, insert, perturb or match; see poisonings.';
COMMENT ON COLUMN damage_by_budget.budget IS 'Rows that may be moved.';
COMMENT ON COLUMN damage_by_budget.predicted IS 'Expected damage to the targets'' mean loss; positive is worse.';
COMMENT ON COLUMN damage_by_budget.observed IS 'What models trained on the attack show.';
COMMENT ON COLUMN damage_by_budget.observed_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN damage_by_budget.observed_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN damage_by_budget.random_p95 IS '95th percentile of as many random moves anywhere.';
COMMENT ON COLUMN damage_by_budget.inside_p95 IS 'The same inside the classes of the targets.';
COMMENT ON COLUMN damage_by_budget.exceeds IS 'Whether the observed damage exceeds both.';
COMMENT ON COLUMN damage_by_budget.loss_before IS 'Mean loss of the targets by models of the clean rows.';
COMMENT ON COLUMN damage_by_budget.observed_output IS 'By how much their mean output is worse.';
COMMENT ON COLUMN damage_by_budget.accuracy_before IS 'Accuracy on the targets of models of the clean rows.';
COMMENT ON COLUMN damage_by_budget.accuracy IS 'Accuracy on the targets after the attack.';
COMMENT ON COLUMN damage_by_budget.lost_elsewhere IS 'By how much the mean output of the other judging rows is worse.';
COMMENT ON COLUMN damage_by_budget.stealth_held IS 'Whether that is within the stealth; NULL where none was asked for.';
COMMENT ON COLUMN damage_by_budget.accuracy_elsewhere_before IS 'Accuracy on the other judging rows of models of the clean rows.';
COMMENT ON COLUMN damage_by_budget.accuracy_elsewhere IS 'Accuracy on them after the attack.';
COMMENT ON COLUMN damage_by_budget.best_recall IS 'Share of the poisoned rows that the best screen has among as many that it suspects most.';
COMMENT ON COLUMN damage_by_budget.output IS 'The output that observed_output and lost_elsewhere are of; damage itself is of the loss.';
COMMENT ON COLUMN damage_by_budget.targets IS 'The targets: a set, or SQL.';
COMMENT ON COLUMN damage_by_budget.poisoning_id IS 'The poisoning.';
COMMENT ON COLUMN damage_by_budget.run_id IS 'Its run.';
COMMENT ON COLUMN damage_by_budget.committed_at IS 'When the run was committed.';

CREATE VIEW poisoned_examples AS
SELECT
    r.spec_name, p.problem, w.poisoned_budget, w.example_id, w.move, w.label, w.poisoned_label,
    w.poisoned_share, w.largest_change, w.mean_change, x.source_id, x.metadata, w.poisoning_id,
    p.run_id, r.committed_at
FROM poisoned_rows AS w
JOIN poisonings AS p USING (poisoning_id)
JOIN runs AS r USING (run_id)
LEFT JOIN examples AS x ON x.dataset_id = p.dataset_id AND x.example_id = w.example_id
ORDER BY
    r.committed_at DESC, p.problem, w.poisoned_budget, w.poisoned_share DESC, w.example_id,
    w.poisoned_label;
COMMENT ON VIEW poisoned_examples IS 'The rows that attacks poison, the latest run first, the most harmful first: for research on defences, never to train on.';
COMMENT ON COLUMN poisoned_examples.spec_name IS 'The name of the run''s spec.';
COMMENT ON COLUMN poisoned_examples.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN poisoned_examples.poisoned_budget IS 'The budget whose attack it is part of.';
COMMENT ON COLUMN poisoned_examples.example_id IS 'The example whose label or inputs are moved, or a copy of which is inserted.';
COMMENT ON COLUMN poisoned_examples.move IS 'flip, insert, perturb or match; see poisonings.';
COMMENT ON COLUMN poisoned_examples.label IS 'Its label in the data.';
COMMENT ON COLUMN poisoned_examples.poisoned_label IS 'The label that the attack gives it.';
COMMENT ON COLUMN poisoned_examples.poisoned_share IS 'Its share of the attack''s damage as seen from clean models; NULL where inputs move.';
COMMENT ON COLUMN poisoned_examples.largest_change IS 'By how much the input moved that moved most, in the unit that models see; NULL where inputs stay.';
COMMENT ON COLUMN poisoned_examples.mean_change IS 'Mean over its inputs; likewise.';
COMMENT ON COLUMN poisoned_examples.source_id IS 'The id in the source where that is a text.';
COMMENT ON COLUMN poisoned_examples.metadata IS 'The source''s metadata columns as a JSON object.';
COMMENT ON COLUMN poisoned_examples.poisoning_id IS 'The poisoning.';
COMMENT ON COLUMN poisoned_examples.run_id IS 'Its run.';
COMMENT ON COLUMN poisoned_examples.committed_at IS 'When the run was committed.';

CREATE VIEW contents AS
WITH named AS (
    SELECT
        'macro' AS kind, f.function_name || '(' || array_to_string(f.parameters, ', ') || ')' AS name,
        f.comment
    FROM duckdb_functions() AS f WHERE NOT f.internal AND f.function_type LIKE '%macro'
    UNION ALL
    SELECT 'view', v.view_name, v.comment FROM duckdb_views() AS v WHERE NOT v.internal
    UNION ALL
    SELECT 'table', t.table_name, t.comment FROM duckdb_tables() AS t WHERE NOT t.internal
)
SELECT n.kind, n.name, n.comment
FROM named AS n
ORDER BY list_position(['macro', 'view', 'table'], n.kind), n.name;
COMMENT ON VIEW contents IS 'What there is to ask: every macro with its parameters, every view and every table; DESCRIBE tells the columns of one.';
COMMENT ON COLUMN contents.kind IS 'macro, view or table.';
COMMENT ON COLUMN contents.name IS 'How it is asked for; of a macro with its parameters.';
COMMENT ON COLUMN contents.comment IS 'What it is, or what one row of it is.';
