-- What sources or rows are worth: problems of kind value. As solutions and solution_rows, but no
-- attribution lies behind them.

CREATE TABLE valuations (
    valuation_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    problem VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    sources VARCHAR,
    output VARCHAR NOT NULL,
    targets VARCHAR NOT NULL,
    n_players INTEGER NOT NULL,
    retrainings INTEGER NOT NULL,
    nothing DOUBLE NOT NULL,
    everything DOUBLE NOT NULL,
    converged BOOLEAN NOT NULL,
    sentence VARCHAR NOT NULL
);
COMMENT ON TABLE valuations IS 'One row is one problem that asked what sources or rows are worth.';
COMMENT ON COLUMN valuations.valuation_id IS 'Digest of the problem and of the rows it was asked of.';
COMMENT ON COLUMN valuations.run_id IS 'The run that committed it last.';
COMMENT ON COLUMN valuations.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN valuations.method IS 'shapley, beta, banzhaf or leave_one_out.';
COMMENT ON COLUMN valuations.sources IS 'The metadata column that names sources; NULL where rows were valued.';
COMMENT ON COLUMN valuations.output IS 'The output that values are in units of; of a loss or an error, less is worth more.';
COMMENT ON COLUMN valuations.targets IS 'The set of queries whose mean output is the worth of a model.';
COMMENT ON COLUMN valuations.n_players IS 'Sources, or rows, that were valued.';
COMMENT ON COLUMN valuations.retrainings IS 'Different models that the values were made of.';
COMMENT ON COLUMN valuations.nothing IS 'Worth of the untrained model.';
COMMENT ON COLUMN valuations.everything IS 'Worth of the model of all rows.';
COMMENT ON COLUMN valuations.converged IS 'Whether standard errors came within the tolerance asked for.';
COMMENT ON COLUMN valuations.sentence IS 'How they were found and whom they blame, in words.';

CREATE TABLE player_values (
    valuation_id VARCHAR NOT NULL,
    player VARCHAR NOT NULL,
    n_rows INTEGER NOT NULL,
    value DOUBLE NOT NULL,
    standard_error DOUBLE NOT NULL
);
COMMENT ON TABLE player_values IS 'One row is what one source, or one row, is worth in one valuation.';
COMMENT ON COLUMN player_values.valuation_id IS 'The valuation; see valuations.';
COMMENT ON COLUMN player_values.player IS 'The source''s name, or the row''s example_id as text.';
COMMENT ON COLUMN player_values.n_rows IS 'Training rows that it brings.';
COMMENT ON COLUMN player_values.value IS 'Positive: having it makes the model better, by so much of the output.';
COMMENT ON COLUMN player_values.standard_error IS 'Of the draws of coalitions and, with several seeds, of training; 0 where one seed trained all coalitions.';
