-- What the report reads from a published database. Each statement is named by the line above it.
-- Every value is a parameter ($run, $dataset, ...).

-- name: latest_run
SELECT run_id FROM runs ORDER BY committed_at DESC NULLS LAST, started_at DESC, run_id LIMIT 1;

-- name: run
SELECT run_id, dataset_id, spec_name, spec_digest, status, seed, device, code_version, seconds
FROM runs WHERE run_id = $run;

-- name: example_counts
SELECT
    count(*) FILTER (split = 'train') AS n_train,
    count(*) FILTER (split = 'test') AS n_test,
    count(*) FILTER (split = 'train' AND true_target IS NOT NULL AND true_target IS DISTINCT FROM target)
        AS n_flipped,
    count(*) FILTER (split = 'train' AND true_target IS NOT NULL) AS n_known
FROM examples
WHERE dataset_id = $dataset;

-- name: attributions
SELECT attribution_id, name, method, output, fingerprint, damping, damping_from, device, seconds,
    n_query
FROM attributions WHERE run_id = $run ORDER BY name, attribution_id;

-- name: lds
SELECT l.attribution_id, l.alpha, l.mean, l.low, l.high, l.ceiling, l.relative, l.null_sd,
    l.n_masks, l.n_seeds, l.n_queries
FROM lds AS l JOIN attributions AS a USING (attribution_id)
WHERE a.run_id = $run ORDER BY a.name, l.alpha NULLS FIRST;

-- name: solutions
SELECT s.solution_id, s.attribution_id, s.problem, s.kind, s.status, s.size, s.n_pool, s.gap,
    s.predicted_change, s.predicted_low, s.predicted_high, s.targets, s.sentence, a.output
FROM solutions AS s LEFT JOIN attributions AS a USING (attribution_id)
WHERE s.run_id = $run ORDER BY s.problem, s.solution_id;

-- name: solution_rows
SELECT r.example_id, r.chosen, r.utility, e.target, e.true_target
FROM solution_rows AS r
LEFT JOIN examples AS e ON e.example_id = r.example_id AND e.dataset_id = $dataset
WHERE r.solution_id = $solution
ORDER BY r.utility, r.example_id;

-- name: effects
SELECT f.example_id, f.mean_score AS utility, e.target, e.true_target
FROM example_effects AS f
LEFT JOIN examples AS e ON e.example_id = f.example_id AND e.dataset_id = $dataset
WHERE f.attribution_id = $attribution
ORDER BY f.mean_score, f.example_id;

-- name: verdicts
SELECT verdict_id, solution_id, arm, n_rows, seeds, accuracy, accuracy_low, accuracy_high, output,
    value, value_low, value_high, predicted_change, predicted_low, predicted_high,
    observed_change, observed_low, observed_high, advantage, advantage_low, advantage_high, sentence
FROM verdicts WHERE run_id = $run ORDER BY solution_id, verdict_id;

-- name: a_query
SELECT s.query_id FROM scores AS s JOIN attributions AS a USING (attribution_id)
WHERE a.run_id = $run ORDER BY s.query_id LIMIT 1;

-- name: preview
SELECT example_id, split, target FROM examples
WHERE dataset_id = $dataset AND split = $split ORDER BY example_id LIMIT 1000;
