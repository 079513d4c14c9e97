-- How likely the arms of a selection's verdict find the labels, and which dropped rows are copies.

ALTER TABLE verdicts ADD COLUMN logprob DOUBLE;
ALTER TABLE verdicts ADD COLUMN logprob_low DOUBLE;
ALTER TABLE verdicts ADD COLUMN logprob_high DOUBLE;
ALTER TABLE verdicts ADD COLUMN logprob_advantage DOUBLE;
ALTER TABLE verdicts ADD COLUMN logprob_advantage_low DOUBLE;
ALTER TABLE verdicts ADD COLUMN logprob_advantage_high DOUBLE;
COMMENT ON COLUMN verdicts.logprob IS 'Mean log-probability of the judging set''s labels, in nats; a document''s is that of all its tokens. NULL for a regression, of kinds unlearn and debug, and of older runs.';
COMMENT ON COLUMN verdicts.logprob_low IS 'Lower end of its 95 % interval over seeds.';
COMMENT ON COLUMN verdicts.logprob_high IS 'Upper end of its 95 % interval over seeds.';
COMMENT ON COLUMN verdicts.logprob_advantage IS 'logprob of the arm chosen minus that of this arm: negative where models of the choice find the labels less likely.';
COMMENT ON COLUMN verdicts.logprob_advantage_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN verdicts.logprob_advantage_high IS 'Upper end of its 95 % interval.';

ALTER TABLE solution_rows ADD COLUMN copy_of INTEGER;
COMMENT ON COLUMN solution_rows.copy_of IS 'The chosen example that this dropped one is a copy of, where the selection holds one row of each group of copies; otherwise NULL.';
