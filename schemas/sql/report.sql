-- What the report asks of a published snapshot.

-- name: latest_run
SELECT run_id FROM runs ORDER BY committed_at DESC, run_id LIMIT 1;

-- name: runs
SELECT run_id, dataset_id, spec_name, status, seed, device, committed_at::VARCHAR AS committed_at, seconds
FROM runs ORDER BY runs.committed_at DESC, run_id;

-- name: run
SELECT * REPLACE (started_at::VARCHAR AS started_at, committed_at::VARCHAR AS committed_at)
FROM runs WHERE run_id = $run;

-- name: attributions
SELECT * FROM attributions
WHERE run_id = $run
   OR attribution_id IN (SELECT attribution_id FROM solutions WHERE solutions.run_id = $run)
ORDER BY name, attribution_id;

-- name: lds
SELECT a.name, a.method, a.output, l.*
FROM lds AS l JOIN attributions AS a USING (attribution_id)
WHERE l.attribution_id IN (SELECT unnest($attributions))
ORDER BY a.name, l.attribution_id, l.alpha NULLS FIRST;

-- name: solutions
SELECT * FROM solutions WHERE run_id = $run ORDER BY problem, solution_id;

-- name: verdicts
SELECT v.*, s.problem
FROM verdicts AS v LEFT JOIN solutions AS s USING (solution_id)
WHERE v.run_id = $run
ORDER BY
    s.problem, v.solution_id,
    list_position([
        'chosen', 'all', 'random', 'balanced', 'similar', 'highest_loss', 'lowest_loss', 'clean'
    ], v.arm) NULLS LAST, v.arm;

-- name: dropped
SELECT
    s.problem,
    s.solution_id,
    count(*) FILTER (NOT w.chosen) AS n_dropped,
    count(*) FILTER (NOT w.chosen AND coalesce(x.target <> x.true_target, false)) AS n_dropped_corrupted,
    count(*) FILTER (coalesce(x.target <> x.true_target, false)) AS n_corrupted,
    count(*) AS n_pool
FROM solutions AS s
JOIN runs AS r USING (run_id)
JOIN solution_rows AS w USING (solution_id)
LEFT JOIN examples AS x ON x.dataset_id = r.dataset_id AND x.example_id = w.example_id
WHERE s.run_id = $run
GROUP BY s.problem, s.solution_id
ORDER BY s.problem, s.solution_id;

-- name: detection
SELECT
    e.example_id,
    harm(a.output, e.mean_score) AS harm,
    e.self_influence,
    coalesce(x.target <> x.true_target, false) AS corrupted
FROM example_effects AS e
JOIN attributions AS a USING (attribution_id)
LEFT JOIN examples AS x ON x.dataset_id = a.dataset_id AND x.example_id = e.example_id
WHERE e.attribution_id = $attribution
ORDER BY e.example_id;

-- name: harmful
FROM harmful_examples(n := $n, attribution := $attribution);

-- name: comments
SELECT 'table' AS kind, table_name AS name, NULL AS part, comment
FROM duckdb_tables() WHERE NOT internal
UNION ALL
SELECT 'view', view_name, NULL, comment FROM duckdb_views() WHERE NOT internal
UNION ALL
SELECT 'column', table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal
UNION ALL
SELECT
    'macro', function_name,
    '(' || array_to_string(parameters, ', ') || ')', comment
FROM duckdb_functions() WHERE NOT internal AND function_type LIKE '%macro'
ORDER BY kind, name, part;
