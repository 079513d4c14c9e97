-- What the constraints of a solution are worth: the dual prices of its relaxation.

CREATE TABLE solution_prices (
    solution_id VARCHAR NOT NULL,
    constraint_name VARCHAR NOT NULL,
    price DOUBLE NOT NULL
);
COMMENT ON TABLE solution_prices IS 'One row is one constraint of a solution and what one more unit of it would add.';
COMMENT ON COLUMN solution_prices.solution_id IS 'The solution; see solutions.';
COMMENT ON COLUMN solution_prices.constraint_name IS 'size, a quota such as "class 3", a budget''s column, must include, must exclude, or duplicates.';
COMMENT ON COLUMN solution_prices.price IS 'Gain of the objective when the limit is loosened by one; negative for a minimum that binds, 0 where nothing binds.';

COMMENT ON COLUMN verdicts.arm IS 'What the models were trained on: chosen, all, random, balanced, highest_loss, lowest_loss, similar or clean.';
