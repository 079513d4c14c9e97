-- Columns that say more than when they were made: for problems of kind unlearn and debug, several
-- sets of targets, and outputs that have no accuracy.

COMMENT ON COLUMN solutions.kind IS 'The kind of problem: select, unlearn or debug.';
COMMENT ON COLUMN solutions.targets IS 'The sets of queries it was solved for, or the query of a debug problem.';
COMMENT ON COLUMN verdicts.arm IS 'What the models were trained on: chosen, all, random, balanced, highest_loss, lowest_loss, similar or clean; of kind unlearn also retrained, and each method that chosen was compared with.';
COMMENT ON COLUMN verdicts.accuracy IS 'Mean accuracy on the judging set, 0 to 1; NULL where there are no classes, and of kind debug.';
COMMENT ON COLUMN verdicts.advantage IS 'Accuracy of the arm chosen minus the accuracy of this arm; where that is NULL, of their values, positive where chosen is better.';
