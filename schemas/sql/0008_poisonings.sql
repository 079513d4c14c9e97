-- What a contributor of a few rows could do, and whether one would notice: problems of kind poison.
-- An attack is no choice of rows to train on, so it is no solution. Damage is to the mean loss of the
-- targets, output damage to their mean output; both are positive where it is worse.

CREATE TABLE poisonings (
    poisoning_id VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    dataset_id VARCHAR NOT NULL,
    attribution_id VARCHAR NOT NULL,
    problem VARCHAR NOT NULL,
    move VARCHAR NOT NULL,
    radius DOUBLE,
    taken_for VARCHAR,
    targets VARCHAR NOT NULL,
    n_targets INTEGER NOT NULL,
    n_elsewhere INTEGER NOT NULL,
    n_movable INTEGER NOT NULL,
    stealth DOUBLE,
    output VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    loss DOUBLE NOT NULL,
    value_elsewhere DOUBLE NOT NULL,
    accuracy DOUBLE NOT NULL,
    accuracy_elsewhere DOUBLE NOT NULL,
    taken DOUBLE,
    scale DOUBLE,
    power DOUBLE,
    scale_error DOUBLE,
    practice_sets INTEGER,
    sentence VARCHAR NOT NULL,
    notice VARCHAR NOT NULL
);
COMMENT ON TABLE poisonings IS 'One row is one problem that asked what a contributor of a few rows could do.';
COMMENT ON COLUMN poisonings.poisoning_id IS 'Digest of the problem, of the rows it is about and of the scores it reads.';
COMMENT ON COLUMN poisonings.run_id IS 'The run that committed it last.';
COMMENT ON COLUMN poisonings.dataset_id IS 'The data set whose examples the ids refer to.';
COMMENT ON COLUMN poisonings.attribution_id IS 'The attribution by whose options effects of labels were seen.';
COMMENT ON COLUMN poisonings.problem IS 'The problem''s name in the spec.';
COMMENT ON COLUMN poisonings.move IS 'flip: labels of training rows are changed; insert: rows are added under any label; perturb: inputs are moved, labels are not; match: so are rows of taken_for, until they pull as the targets under its label would.';
COMMENT ON COLUMN poisonings.radius IS 'The most that each input may move, in the unit that models see; NULL where inputs stay.';
COMMENT ON COLUMN poisonings.taken_for IS 'The class that the targets should be taken for; NULL where none is wished for.';
COMMENT ON COLUMN poisonings.targets IS 'The set of test rows, or the SQL, whose outputs the attacker wants to be worse.';
COMMENT ON COLUMN poisonings.n_targets IS 'Target rows.';
COMMENT ON COLUMN poisonings.n_elsewhere IS 'Judging rows that are no targets.';
COMMENT ON COLUMN poisonings.n_movable IS 'Rows that the contributor may move or insert.';
COMMENT ON COLUMN poisonings.stealth IS 'The most that the mean output elsewhere may get worse; NULL where anything goes.';
COMMENT ON COLUMN poisonings.output IS 'The attribution''s output: what stealth, values and output damage are of.';
COMMENT ON COLUMN poisonings.value IS 'Mean output of the targets by models of the clean rows.';
COMMENT ON COLUMN poisonings.loss IS 'Mean cross-entropy of the targets by these models, in nats.';
COMMENT ON COLUMN poisonings.value_elsewhere IS 'The same of the other judging rows.';
COMMENT ON COLUMN poisonings.accuracy IS 'Accuracy on the targets of models of the clean rows, 0 to 1.';
COMMENT ON COLUMN poisonings.accuracy_elsewhere IS 'The same on the other judging rows.';
COMMENT ON COLUMN poisonings.taken IS 'Share of the targets that models of the clean rows take for taken_for; NULL without one.';
COMMENT ON COLUMN poisonings.scale IS 'Linear predictions are read as scale times their power; NULL where inputs move, of which there are none.';
COMMENT ON COLUMN poisonings.power IS 'See scale; 1 where effects of moves add up.';
COMMENT ON COLUMN poisonings.scale_error IS 'Root mean square of the leave-one-out errors of what is so predicted.';
COMMENT ON COLUMN poisonings.practice_sets IS 'Poisoned training sets that the scale was fitted to.';
COMMENT ON COLUMN poisonings.sentence IS 'What the attack of the largest budget did, in words.';
COMMENT ON COLUMN poisonings.notice IS 'What the screens would have shown of it, in words.';

CREATE TABLE poison_budgets (
    poisoning_id VARCHAR NOT NULL,
    budget INTEGER NOT NULL,
    moves INTEGER NOT NULL,
    round INTEGER NOT NULL,
    linear DOUBLE,
    linear_low DOUBLE,
    linear_high DOUBLE,
    bound DOUBLE,
    gap DOUBLE,
    predicted DOUBLE NOT NULL,
    predicted_low DOUBLE NOT NULL,
    predicted_high DOUBLE NOT NULL,
    observed DOUBLE NOT NULL,
    observed_low DOUBLE,
    observed_high DOUBLE,
    observed_output DOUBLE NOT NULL,
    observed_output_low DOUBLE,
    observed_output_high DOUBLE,
    inside_linear BOOLEAN,
    random_p95 DOUBLE NOT NULL,
    inside_p95 DOUBLE NOT NULL,
    exceeds BOOLEAN NOT NULL,
    inside_interval BOOLEAN NOT NULL,
    predicted_elsewhere DOUBLE NOT NULL,
    predicted_elsewhere_low DOUBLE NOT NULL,
    predicted_elsewhere_high DOUBLE NOT NULL,
    observed_elsewhere DOUBLE NOT NULL,
    observed_elsewhere_low DOUBLE,
    observed_elsewhere_high DOUBLE,
    stealth_held BOOLEAN,
    accuracy DOUBLE NOT NULL,
    accuracy_low DOUBLE,
    accuracy_high DOUBLE,
    accuracy_elsewhere DOUBLE NOT NULL,
    accuracy_elsewhere_low DOUBLE,
    accuracy_elsewhere_high DOUBLE,
    taken DOUBLE,
    taken_low DOUBLE,
    taken_high DOUBLE
);
COMMENT ON TABLE poison_budgets IS 'One row is the attack of one budget: what it was predicted to do and what models trained on it do.';
COMMENT ON COLUMN poison_budgets.poisoning_id IS 'The poisoning; see poisonings.';
COMMENT ON COLUMN poison_budgets.budget IS 'Rows that may be moved.';
COMMENT ON COLUMN poison_budgets.moves IS 'Rows that the attack moves.';
COMMENT ON COLUMN poison_budgets.round IS 'The round of the search that found it: 0 looks at clean models, each later one at models of the one before.';
COMMENT ON COLUMN poison_budgets.linear IS 'Output damage of the worst moves as seen from clean models, scaled; attacks found later may do more. NULL where inputs move, as are its interval, bound and gap.';
COMMENT ON COLUMN poison_budgets.linear_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.linear_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.bound IS 'What no moves of this budget are predicted to exceed, on the same scale.';
COMMENT ON COLUMN poison_budgets.gap IS 'Relative distance of the bound from the worst moves found; 0 is proven worst.';
COMMENT ON COLUMN poison_budgets.predicted IS 'Damage of the attack to the targets'' mean loss, expected from models that chose nothing.';
COMMENT ON COLUMN poison_budgets.predicted_low IS 'Lower end of its 95 % interval for the mean of the verdict''s models.';
COMMENT ON COLUMN poison_budgets.predicted_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.observed IS 'Damage to the targets'' mean loss by the verdict''s models, against models of the clean rows.';
COMMENT ON COLUMN poison_budgets.observed_low IS 'Lower end of its 95 % interval over models.';
COMMENT ON COLUMN poison_budgets.observed_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.observed_output IS 'Output damage by the verdict''s models: by how much the targets'' mean output is worse.';
COMMENT ON COLUMN poison_budgets.observed_output_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.observed_output_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.inside_linear IS 'Whether it lies in the interval of linear.';
COMMENT ON COLUMN poison_budgets.random_p95 IS '95th percentile of the damage by as many random moves anywhere, a model each.';
COMMENT ON COLUMN poison_budgets.inside_p95 IS 'The same of random moves inside the classes of the targets.';
COMMENT ON COLUMN poison_budgets.exceeds IS 'Whether the observed damage exceeds both percentiles.';
COMMENT ON COLUMN poison_budgets.inside_interval IS 'Whether the observed damage lies in the predicted interval.';
COMMENT ON COLUMN poison_budgets.predicted_elsewhere IS 'By how much the mean output of the other judging rows is expected to be worse.';
COMMENT ON COLUMN poison_budgets.predicted_elsewhere_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.predicted_elsewhere_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.observed_elsewhere IS 'By how much it is worse; negative where it is better.';
COMMENT ON COLUMN poison_budgets.observed_elsewhere_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.observed_elsewhere_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.stealth_held IS 'Whether what was observed elsewhere is within the stealth; NULL where none was asked for.';
COMMENT ON COLUMN poison_budgets.accuracy IS 'Accuracy on the targets after the attack, 0 to 1.';
COMMENT ON COLUMN poison_budgets.accuracy_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.accuracy_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.accuracy_elsewhere IS 'Accuracy on the other judging rows after the attack.';
COMMENT ON COLUMN poison_budgets.accuracy_elsewhere_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.accuracy_elsewhere_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.taken IS 'Share of the targets that are then taken for taken_for; NULL without one.';
COMMENT ON COLUMN poison_budgets.taken_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_budgets.taken_high IS 'Upper end of its 95 % interval.';

CREATE TABLE poison_curve (
    poisoning_id VARCHAR NOT NULL,
    budget INTEGER NOT NULL,
    damage DOUBLE NOT NULL,
    damage_low DOUBLE NOT NULL,
    damage_high DOUBLE NOT NULL,
    bound DOUBLE NOT NULL
);
COMMENT ON TABLE poison_curve IS 'One row is one budget: what its worst moves are predicted to do, seen from clean models; attacks of later rounds do more.';
COMMENT ON COLUMN poison_curve.poisoning_id IS 'The poisoning; see poisonings.';
COMMENT ON COLUMN poison_curve.budget IS 'Rows that may be moved.';
COMMENT ON COLUMN poison_curve.damage IS 'Predicted output damage to the targets, scaled.';
COMMENT ON COLUMN poison_curve.damage_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN poison_curve.damage_high IS 'Upper end of its 95 % interval.';
COMMENT ON COLUMN poison_curve.bound IS 'What no moves of this budget are predicted to exceed.';

CREATE TABLE poison_draws (
    poisoning_id VARCHAR NOT NULL,
    budget INTEGER NOT NULL,
    kind VARCHAR NOT NULL,
    number INTEGER NOT NULL,
    damage DOUBLE NOT NULL,
    output_damage DOUBLE NOT NULL
);
COMMENT ON TABLE poison_draws IS 'One row is one model of random moves.';
COMMENT ON COLUMN poison_draws.poisoning_id IS 'The poisoning; see poisonings.';
COMMENT ON COLUMN poison_draws.budget IS 'Rows that were moved.';
COMMENT ON COLUMN poison_draws.kind IS 'anywhere, or inside the classes of the targets.';
COMMENT ON COLUMN poison_draws.number IS 'Of the draw, from 0.';
COMMENT ON COLUMN poison_draws.damage IS 'Damage to the targets'' mean loss, against models of the clean rows.';
COMMENT ON COLUMN poison_draws.output_damage IS 'By how much their mean output is worse.';

CREATE TABLE poisoned_rows (
    poisoning_id VARCHAR NOT NULL,
    poisoned_budget INTEGER NOT NULL,
    example_id INTEGER NOT NULL,
    move VARCHAR NOT NULL,
    label VARCHAR NOT NULL,
    poisoned_label VARCHAR NOT NULL,
    poisoned_share DOUBLE,
    largest_change DOUBLE,
    mean_change DOUBLE
);
COMMENT ON TABLE poisoned_rows IS 'One row is one example that the attack of a budget poisons: for research on defences, never to train on.';
COMMENT ON COLUMN poisoned_rows.poisoning_id IS 'The poisoning; see poisonings.';
COMMENT ON COLUMN poisoned_rows.poisoned_budget IS 'The budget whose attack it is part of.';
COMMENT ON COLUMN poisoned_rows.example_id IS 'The example whose label or inputs are moved, or a copy of which is inserted.';
COMMENT ON COLUMN poisoned_rows.move IS 'flip, insert, perturb or match; see poisonings.';
COMMENT ON COLUMN poisoned_rows.label IS 'Its label in the data.';
COMMENT ON COLUMN poisoned_rows.poisoned_label IS 'The label that the attack gives it; its own where inputs move.';
COMMENT ON COLUMN poisoned_rows.poisoned_share IS 'Its share of what the attack adds to the targets'' loss, seen from clean models; negative where it would help. NULL where inputs move.';
COMMENT ON COLUMN poisoned_rows.largest_change IS 'By how much the input moved that moved most, in the unit that models see; NULL where inputs stay. Where to, the artifact and exported files say.';
COMMENT ON COLUMN poisoned_rows.mean_change IS 'Mean over its inputs; likewise.';

CREATE TABLE poison_screens (
    poisoning_id VARCHAR NOT NULL,
    budget INTEGER NOT NULL,
    screen VARCHAR NOT NULL,
    auroc DOUBLE NOT NULL,
    average_precision DOUBLE NOT NULL,
    recall DOUBLE NOT NULL,
    looked_at INTEGER NOT NULL,
    chance DOUBLE NOT NULL
);
COMMENT ON TABLE poison_screens IS 'One row is what one screen found of the rows that the attack of a budget poisons.';
COMMENT ON COLUMN poison_screens.poisoning_id IS 'The poisoning; see poisonings.';
COMMENT ON COLUMN poison_screens.budget IS 'The budget.';
COMMENT ON COLUMN poison_screens.screen IS 'The screen, as optimize.defence.screens has it.';
COMMENT ON COLUMN poison_screens.auroc IS 'Chance that a poisoned row is more suspicious than another.';
COMMENT ON COLUMN poison_screens.average_precision IS 'Precision averaged over recall.';
COMMENT ON COLUMN poison_screens.recall IS 'Share of the poisoned rows among the most suspicious.';
COMMENT ON COLUMN poison_screens.looked_at IS 'How many of the most suspicious were looked at: as many as are poisoned.';
COMMENT ON COLUMN poison_screens.chance IS 'Recall of looking at as many random rows.';

CREATE TABLE weak_spots (
    poisoning_id VARCHAR NOT NULL,
    column_name VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    n_rows INTEGER NOT NULL,
    moves INTEGER NOT NULL,
    damage DOUBLE NOT NULL,
    damage_low DOUBLE NOT NULL,
    damage_high DOUBLE NOT NULL
);
COMMENT ON TABLE weak_spots IS 'One row is what the largest budget could do inside one value of a column, seen from clean models.';
COMMENT ON COLUMN weak_spots.poisoning_id IS 'The poisoning; see poisonings.';
COMMENT ON COLUMN weak_spots.column_name IS 'class, or the metadata column.';
COMMENT ON COLUMN weak_spots.value IS 'The class or the column''s value; empty where a row has none.';
COMMENT ON COLUMN weak_spots.n_rows IS 'Rows with it that may be moved.';
COMMENT ON COLUMN weak_spots.moves IS 'Rows that the worst attack there moves; fewer than the budget where no other harms.';
COMMENT ON COLUMN weak_spots.damage IS 'Predicted output damage to the targets, scaled.';
COMMENT ON COLUMN weak_spots.damage_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN weak_spots.damage_high IS 'Upper end of its 95 % interval.';
