-- What each run consists of. Runs share: a problem that two specs have in common is answered once,
-- and its answer is part of both.

CREATE TABLE run_parts (
    run_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    part_id VARCHAR NOT NULL
);
COMMENT ON TABLE run_parts IS 'One row: something that a run consists of, its own or shared with other runs.';
COMMENT ON COLUMN run_parts.run_id IS 'The run.';
COMMENT ON COLUMN run_parts.kind IS 'Table that holds it: attributions, solutions, verdicts, valuations, tracings or poisonings.';
COMMENT ON COLUMN run_parts.part_id IS 'Its id there.';

INSERT INTO run_parts
SELECT run_id, 'attributions', attribution_id FROM attributions
UNION ALL SELECT run_id, 'solutions', solution_id FROM solutions
UNION ALL SELECT run_id, 'verdicts', verdict_id FROM verdicts
UNION ALL SELECT run_id, 'valuations', valuation_id FROM valuations
UNION ALL SELECT run_id, 'tracings', tracing_id FROM tracings
UNION ALL SELECT run_id, 'poisonings', poisoning_id FROM poisonings;
