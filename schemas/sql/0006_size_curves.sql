-- How much data a selection needs: what the best subset of each size is predicted to do.

CREATE TABLE size_curves (
    solution_id VARCHAR NOT NULL,
    n_rows INTEGER NOT NULL,
    output VARCHAR NOT NULL,
    predicted DOUBLE NOT NULL,
    change DOUBLE NOT NULL,
    change_low DOUBLE NOT NULL,
    change_high DOUBLE NOT NULL,
    lost DOUBLE NOT NULL,
    lost_low DOUBLE NOT NULL,
    lost_high DOUBLE NOT NULL,
    best BOOLEAN NOT NULL
);
COMMENT ON TABLE size_curves IS 'One row is one size of a solution with size = ''best'': what its best subset is predicted to do, by targets that did not rank its rows.';
COMMENT ON COLUMN size_curves.solution_id IS 'The solution; see solutions.';
COMMENT ON COLUMN size_curves.n_rows IS 'Training rows.';
COMMENT ON COLUMN size_curves.output IS 'The output by which sizes are compared.';
COMMENT ON COLUMN size_curves.predicted IS 'Its predicted mean over the targets.';
COMMENT ON COLUMN size_curves.change IS 'Predicted change of that mean against training on all rows.';
COMMENT ON COLUMN size_curves.change_low IS 'Lower end of its 90 % interval.';
COMMENT ON COLUMN size_curves.change_high IS 'Upper end of its 90 % interval.';
COMMENT ON COLUMN size_curves.lost IS 'By how much it is predicted to be worse than the best size.';
COMMENT ON COLUMN size_curves.lost_low IS 'Lower end of its 90 % interval; at or below 0 the size may be as good as the best.';
COMMENT ON COLUMN size_curves.lost_high IS 'Upper end of its 90 % interval.';
COMMENT ON COLUMN size_curves.best IS 'Whether it is the best size, which was chosen.';

COMMENT ON COLUMN bank.kind IS 'What it is for: calibrate, evaluate, aimed:<problem> or verdict:<arm>.';
