-- What one run found, for its report, its pictures and MLflow.

-- name: latest_run
SELECT run_id FROM runs ORDER BY committed_at DESC NULLS LAST, started_at DESC, run_id LIMIT 1;

-- name: run
SELECT run_id, dataset_id, spec_name, spec_digest, status, seed, device, code_version, seconds
FROM runs WHERE run_id = $run;

-- name: example_counts
SELECT
    count(*) FILTER (split = 'train') AS n_train,
    count(*) FILTER (split = 'test') AS n_test,
    count(*) FILTER (split = 'train' AND coalesce(true_target <> target, false)) AS n_flipped
FROM examples
WHERE dataset_id = $dataset;

-- name: attributions
SELECT attribution_id, name, method, output, damping, damping_from, device, seconds, n_query
FROM attributions
WHERE attribution_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'attributions')
   OR attribution_id IN (
       SELECT attribution_id FROM solutions
       WHERE solution_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'solutions')
   )
ORDER BY name, attribution_id;

-- name: lds
SELECT attribution_id, alpha, mean, low, high, ceiling, relative, null_sd, n_masks, n_seeds,
    n_queries
FROM lds WHERE attribution_id IN (SELECT unnest($attributions))
ORDER BY attribution_id, alpha NULLS FIRST;

-- name: solutions
SELECT s.solution_id, s.attribution_id, s.problem, s.kind, s.status, s.size, s.n_pool, s.gap,
    s.predicted_change, s.predicted_low, s.predicted_high, s.targets, s.sentence, a.output
FROM solutions AS s LEFT JOIN attributions AS a USING (attribution_id)
WHERE s.solution_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'solutions')
ORDER BY s.problem, s.solution_id;

-- name: solution_rows
SELECT r.example_id, r.chosen, r.utility, r.copy_of, e.target, e.true_target
FROM solution_rows AS r
LEFT JOIN examples AS e ON e.example_id = r.example_id AND e.dataset_id = $dataset
WHERE r.solution_id = $solution
ORDER BY r.utility, r.example_id;

-- name: solution_prices
SELECT constraint_name, price FROM solution_prices WHERE solution_id = $solution
ORDER BY abs(price) DESC, constraint_name;

-- name: effects
-- harm() knows in which direction the output is bad; where it has none, no row is the worst.
SELECT f.example_id, -harm(a.output, f.mean_score) AS utility, e.target, e.true_target
FROM example_effects AS f
JOIN attributions AS a USING (attribution_id)
LEFT JOIN examples AS e ON e.example_id = f.example_id AND e.dataset_id = a.dataset_id
WHERE f.attribution_id = $attribution AND harm(a.output, f.mean_score) IS NOT NULL
ORDER BY utility, f.example_id
LIMIT $n;

-- name: verdicts
SELECT verdict_id, solution_id, arm, n_rows, seeds, accuracy, accuracy_low, accuracy_high, output,
    value, value_low, value_high, predicted_change, predicted_low, predicted_high,
    observed_change, observed_low, observed_high, advantage, advantage_low, advantage_high, sentence,
    logprob, logprob_low, logprob_high,
    logprob_advantage, logprob_advantage_low, logprob_advantage_high
FROM verdicts
WHERE verdict_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'verdicts')
ORDER BY solution_id, verdict_id;

-- name: unlearnings
SELECT u.solution_id, u.method, u.n_forgotten, u.requests, u.models, u.oracles, u.n_queries,
    u.correlation, u.ceiling, u.slope, u.slope_low, u.slope_high, u.error, u.error_unchanged,
    u.certificate
FROM unlearnings AS u
WHERE u.solution_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'solutions');

-- name: unlearned
SELECT u.solution_id, v.arm, u.method, u.options, u.examples, u.scoring, u.cost, u.seconds,
    u.reached, u.membership, u.membership_sd
FROM unlearned AS u JOIN verdicts AS v USING (verdict_id)
WHERE v.verdict_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'verdicts');

-- name: closeness
SELECT c.solution_id, v.arm, c.rows, c.n_rows, c.models, c.klom, c.klom_p95, c.null_klom,
    c.null_p95, c.accuracy
FROM closeness AS c JOIN verdicts AS v USING (verdict_id)
WHERE v.verdict_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'verdicts');

-- name: valuations
SELECT valuation_id, problem, method, sources, output, targets, retrainings, nothing, everything,
    converged, sentence
FROM valuations
WHERE valuation_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'valuations')
ORDER BY problem, valuation_id;

-- name: player_values
SELECT p.valuation_id, p.player, p.n_rows, p.value, p.standard_error
FROM player_values AS p JOIN valuations AS v USING (valuation_id)
WHERE v.valuation_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'valuations')
ORDER BY p.valuation_id, p.value DESC, p.player;

-- name: tracings
SELECT tracing_id, problem, targets, text_column IS NOT NULL AS with_text, truth, top, n_queries,
    with_truth, judged, removed, output, value, sentence
FROM tracings
WHERE tracing_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'tracings')
ORDER BY problem, tracing_id;

-- name: tracing_arms
SELECT a.* FROM tracing_arms AS a JOIN tracings AS t USING (tracing_id)
WHERE t.tracing_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'tracings')
ORDER BY a.tracing_id, a.place;

-- name: tracing_rows
-- The queries that lost most by any method's rows, and the first rows of each method.
WITH worst AS (
    SELECT e.tracing_id, e.query_id,
        row_number() OVER (PARTITION BY e.tracing_id ORDER BY min(e.change), e.query_id) AS place
    FROM tracing_effects AS e JOIN tracings AS t USING (tracing_id)
    WHERE t.tracing_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'tracings')
        AND e.arm <> 'random'
    GROUP BY e.tracing_id, e.query_id
)
SELECT w.tracing_id, w.query_id, w.arm, w.rank, w.train_id, w.score,
    (x.metadata ->> t.truth) = (q.metadata ->> t.truth) AS states,
    e.change,
    coalesce(x.metadata ->> t.text_column, x.target) AS text,
    coalesce(q.metadata ->> t.text_column, q.target) AS query_text
FROM tracing_rows AS w
JOIN tracings AS t USING (tracing_id)
JOIN tracing_arms AS a ON a.tracing_id = w.tracing_id AND a.arm = w.arm
JOIN worst AS o ON o.tracing_id = w.tracing_id AND o.query_id = w.query_id
LEFT JOIN tracing_effects AS e
    ON e.tracing_id = w.tracing_id AND e.arm = w.arm AND e.query_id = w.query_id
LEFT JOIN examples AS x ON x.dataset_id = t.dataset_id AND x.example_id = w.train_id
LEFT JOIN examples AS q ON q.dataset_id = t.dataset_id AND q.example_id = w.query_id
WHERE t.tracing_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'tracings')
    AND o.place <= $queries AND w.rank <= $rows
ORDER BY w.tracing_id, o.place, a.place, w.rank;

-- name: poisonings
SELECT poisoning_id, problem, move, radius, taken_for, targets, n_targets, n_elsewhere, n_movable,
    stealth, output, value, loss, value_elsewhere, accuracy, accuracy_elsewhere, taken, scale, power,
    scale_error, practice_sets, sentence, notice
FROM poisonings
WHERE poisoning_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'poisonings')
ORDER BY problem, poisoning_id;

-- name: poison_budgets
SELECT b.* FROM poison_budgets AS b JOIN poisonings AS p USING (poisoning_id)
WHERE p.poisoning_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'poisonings')
ORDER BY b.poisoning_id, b.budget;

-- name: poison_screens
SELECT s.* FROM poison_screens AS s JOIN poisonings AS p USING (poisoning_id)
WHERE p.poisoning_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'poisonings')
ORDER BY s.poisoning_id, s.budget, s.recall DESC, s.auroc DESC, s.screen;

-- name: weak_spots
SELECT w.* FROM weak_spots AS w JOIN poisonings AS p USING (poisoning_id)
WHERE p.poisoning_id IN (SELECT part_id FROM run_parts WHERE run_id = $run AND kind = 'poisonings')
ORDER BY w.poisoning_id, w.column_name, w.damage DESC, w.value;

-- name: a_query
SELECT min(query_id) AS query_id FROM scores WHERE attribution_id IN (SELECT unnest($attributions));

-- name: preview
SELECT example_id, split, target FROM examples
WHERE dataset_id = $dataset AND split = $split ORDER BY example_id LIMIT 1000;
