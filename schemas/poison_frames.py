"""The frames of poisonings: attacks by budget, rows they poison, and what screens found of them.

What `schemas.frames` says of all frames holds for these. Damage is positive where an output is
worse.
"""

import dataframely as dy


class PoisoningFrame(dy.Schema):
    """One row: one problem that asked what a contributor of a few rows could do."""

    poisoning_id = dy.String(primary_key=True, min_length=1)
    run_id = dy.String(min_length=1)
    dataset_id = dy.String(min_length=1)
    attribution_id = dy.String(min_length=1)
    problem = dy.String(min_length=1)
    move = dy.String(regex="^(flip|insert|perturb|match)$")
    radius = dy.Float64(nullable=True, min=0)
    taken_for = dy.String(nullable=True)
    targets = dy.String(min_length=1)
    n_targets = dy.Int64(min=1)
    n_elsewhere = dy.Int64(min=1)
    n_movable = dy.Int64(min=1)
    stealth = dy.Float64(nullable=True, min=0)
    output = dy.String(min_length=1)
    value = dy.Float64()
    loss = dy.Float64(min=0)
    value_elsewhere = dy.Float64()
    accuracy = dy.Float64(min=0, max=1)
    accuracy_elsewhere = dy.Float64(min=0, max=1)
    taken = dy.Float64(nullable=True, min=0, max=1)
    scale = dy.Float64(nullable=True, min=0)
    power = dy.Float64(nullable=True, min=0, max=1)
    scale_error = dy.Float64(nullable=True, min=0)
    practice_sets = dy.Int64(nullable=True, min=3)
    sentence = dy.String()
    notice = dy.String()


class PoisonBudgetFrame(dy.Schema):
    """One row: the attack of one budget, as predicted and as retrained."""

    poisoning_id = dy.String(primary_key=True, min_length=1)
    budget = dy.Int64(primary_key=True, min=1)
    moves = dy.Int64(min=0)
    round = dy.Int64(min=0)
    linear = dy.Float64(nullable=True)
    linear_low = dy.Float64(nullable=True)
    linear_high = dy.Float64(nullable=True)
    bound = dy.Float64(nullable=True)
    gap = dy.Float64(nullable=True, min=0)
    predicted = dy.Float64()
    predicted_low = dy.Float64()
    predicted_high = dy.Float64()
    observed = dy.Float64()
    observed_low = dy.Float64(nullable=True)
    observed_high = dy.Float64(nullable=True)
    observed_output = dy.Float64()
    observed_output_low = dy.Float64(nullable=True)
    observed_output_high = dy.Float64(nullable=True)
    inside_linear = dy.Bool(nullable=True)
    random_p95 = dy.Float64()
    inside_p95 = dy.Float64()
    exceeds = dy.Bool()
    inside_interval = dy.Bool()
    predicted_elsewhere = dy.Float64()
    predicted_elsewhere_low = dy.Float64()
    predicted_elsewhere_high = dy.Float64()
    observed_elsewhere = dy.Float64()
    observed_elsewhere_low = dy.Float64(nullable=True)
    observed_elsewhere_high = dy.Float64(nullable=True)
    stealth_held = dy.Bool(nullable=True)
    accuracy = dy.Float64(min=0, max=1)
    accuracy_low = dy.Float64(nullable=True)
    accuracy_high = dy.Float64(nullable=True)
    accuracy_elsewhere = dy.Float64(min=0, max=1)
    accuracy_elsewhere_low = dy.Float64(nullable=True)
    accuracy_elsewhere_high = dy.Float64(nullable=True)
    taken = dy.Float64(nullable=True, min=0, max=1)
    taken_low = dy.Float64(nullable=True)
    taken_high = dy.Float64(nullable=True)


class PoisonCurveFrame(dy.Schema):
    """One row: what the worst moves of a budget are predicted to do, seen from clean models."""

    poisoning_id = dy.String(primary_key=True, min_length=1)
    budget = dy.Int64(primary_key=True, min=1)
    damage = dy.Float64()
    damage_low = dy.Float64()
    damage_high = dy.Float64()
    bound = dy.Float64()


class PoisonDrawFrame(dy.Schema):
    """One row: one model of random moves."""

    poisoning_id = dy.String(primary_key=True, min_length=1)
    budget = dy.Int64(primary_key=True, min=1)
    kind = dy.String(primary_key=True, regex="^(anywhere|inside)$")
    number = dy.Int64(primary_key=True, min=0)
    damage = dy.Float64()
    output_damage = dy.Float64()


class PoisonedRowFrame(dy.Schema):
    """One row: one row that the attack of a budget poisons; never one to train on."""

    poisoning_id = dy.String(primary_key=True, min_length=1)
    poisoned_budget = dy.Int64(primary_key=True, min=1)
    example_id = dy.Int32(primary_key=True, min=0)
    move = dy.String(regex="^(flip|insert|perturb|match)$")
    label = dy.String(min_length=1)
    poisoned_label = dy.String(primary_key=True, min_length=1)
    poisoned_share = dy.Float64(nullable=True)
    largest_change = dy.Float64(nullable=True, min=0)
    mean_change = dy.Float64(nullable=True, min=0)


class PoisonScreenFrame(dy.Schema):
    """One row: what one screen found of the rows that the attack of a budget poisons."""

    poisoning_id = dy.String(primary_key=True, min_length=1)
    budget = dy.Int64(primary_key=True, min=1)
    screen = dy.String(primary_key=True, min_length=1)
    auroc = dy.Float64(min=0, max=1)
    average_precision = dy.Float64(min=0, max=1)
    recall = dy.Float64(min=0, max=1)
    looked_at = dy.Int64(min=1)
    chance = dy.Float64(min=0, max=1)


class WeakSpotFrame(dy.Schema):
    """One row: what the largest budget could do inside one value of a column."""

    poisoning_id = dy.String(primary_key=True, min_length=1)
    column_name = dy.String(primary_key=True, min_length=1)
    value = dy.String(primary_key=True)
    n_rows = dy.Int64(min=1)
    moves = dy.Int64(min=0)
    damage = dy.Float64()
    damage_low = dy.Float64()
    damage_high = dy.Float64()
