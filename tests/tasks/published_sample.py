"""A small published database, filled by hand, for the readers of published databases."""

from pathlib import Path

import numpy as np
import polars as pl

from store.connect import open_ledger, registered, run

TABLES = """
CREATE TABLE runs(run_id VARCHAR, dataset_id VARCHAR, spec_name VARCHAR, spec_digest VARCHAR,
    spec_toml VARCHAR, status VARCHAR, seed BIGINT, device VARCHAR, code_version VARCHAR,
    started_at TIMESTAMPTZ, committed_at TIMESTAMPTZ, seconds DOUBLE);
CREATE TABLE examples(dataset_id VARCHAR, example_id INTEGER, split VARCHAR, target VARCHAR,
    true_target VARCHAR, content_hash VARCHAR, source_id VARCHAR, metadata JSON);
CREATE TABLE attributions(attribution_id VARCHAR, run_id VARCHAR, dataset_id VARCHAR,
    name VARCHAR, method VARCHAR, output VARCHAR, options JSON, n_train BIGINT, n_query BIGINT,
    fingerprint VARCHAR, damping DOUBLE, damping_from VARCHAR, device VARCHAR, seconds DOUBLE,
    kept VARCHAR);
CREATE TABLE scores(attribution_id VARCHAR, query_id INTEGER, train_id INTEGER, score FLOAT);
CREATE TABLE example_effects(attribution_id VARCHAR, example_id INTEGER, mean_score FLOAT,
    self_influence FLOAT);
CREATE TABLE lds(attribution_id VARCHAR, alpha DOUBLE, mean DOUBLE, low DOUBLE, high DOUBLE,
    ceiling DOUBLE, relative DOUBLE, null_sd DOUBLE, n_masks BIGINT, n_seeds BIGINT,
    n_queries BIGINT);
CREATE TABLE solutions(solution_id VARCHAR, run_id VARCHAR, attribution_id VARCHAR,
    problem VARCHAR, kind VARCHAR, status VARCHAR, size BIGINT, n_pool BIGINT, value DOUBLE,
    bound DOUBLE, gap DOUBLE, predicted_change DOUBLE, predicted_low DOUBLE,
    predicted_high DOUBLE, targets VARCHAR, sentence VARCHAR);
CREATE TABLE solution_rows(solution_id VARCHAR, example_id INTEGER, chosen BOOLEAN,
    utility DOUBLE, position INTEGER);
CREATE TABLE verdicts(verdict_id VARCHAR, run_id VARCHAR, solution_id VARCHAR, arm VARCHAR,
    n_rows BIGINT, seeds BIGINT, accuracy DOUBLE, accuracy_low DOUBLE, accuracy_high DOUBLE,
    output VARCHAR, value DOUBLE, value_low DOUBLE, value_high DOUBLE, predicted_change DOUBLE,
    predicted_low DOUBLE, predicted_high DOUBLE, observed_change DOUBLE, observed_low DOUBLE,
    observed_high DOUBLE, advantage DOUBLE, advantage_low DOUBLE, advantage_high DOUBLE,
    sentence VARCHAR);
"""

SPEC = """
name = "digits"
seed = 0

[data]
source = "sklearn:digits"
corrupt = { labels = 0.1 }

[train]
lr = 0.05
epochs = 30

[[attribution]]
name = "trak"
method = "trak"
projection = { kind = "sparse", dim = 2048 }

[[problem]]
name = "clean"
kind = "select"
size = 30
"""

LABELS = [str(i % 4) for i in range(40)]
WRONG = (3, 11, 20, 29)
DROPPED = (3, 5, 7, 9, 11, 20, 22, 24, 26, 29)


def write_published(path: Path, *, run_id: str = "run-1", accuracy: float = 0.95) -> Path:
    """Write 40 training and 6 test rows, one method, one problem with three arms."""
    ids = np.arange(46, dtype=np.int32)
    truth = [LABELS[i % 40] for i in range(46)]
    given = [str((int(t) + 1) % 4) if i in WRONG else t for i, t in enumerate(truth)]
    utility = np.linspace(0.01, 0.05, 40)
    utility[list(DROPPED)] = np.linspace(-0.05, -0.01, 10)
    examples = pl.DataFrame(
        {
            "dataset_id": "data-1",
            "example_id": ids,
            "split": ["train"] * 40 + ["test"] * 6,
            "target": given,
            "true_target": truth,
        }
    )
    rows = pl.DataFrame(
        {
            "solution_id": "solution-1",
            "example_id": ids[:40],
            "chosen": [i not in DROPPED for i in range(40)],
            "utility": utility,
        }
    )
    connection = open_ledger(path)
    for statement in TABLES.split(";"):
        if statement.strip():
            run(connection, statement)
    with registered(connection, new_examples=examples, new_rows=rows):
        run(connection, "INSERT INTO examples BY NAME SELECT * FROM new_examples")
        run(connection, "INSERT INTO solution_rows BY NAME SELECT * FROM new_rows")
        run(
            connection,
            "INSERT INTO example_effects BY NAME SELECT 'attribution-1' AS attribution_id, "
            "example_id, utility AS mean_score FROM new_rows",
        )
    run(
        connection,
        "INSERT INTO runs VALUES ($run, 'data-1', 'digits', 'spec-1', $spec, 'done', 0, 'cpu', "
        "'0.1.0', '2026-01-01 00:00:00Z', '2026-01-01 00:01:00Z', 41.5)",
        {"run": run_id, "spec": SPEC},
    )
    run(
        connection,
        "INSERT INTO attributions VALUES ('attribution-1', $run, 'data-1', 'trak', 'trak', "
        "'margin', '{}', 40, 3, 'f00', 0.03, 'the calibration half of the bank', 'cpu', 1.5, "
        "'all')",
        {"run": run_id},
    )
    run(connection, "INSERT INTO scores VALUES ('attribution-1', 42, 3, 0.5)")
    run(
        connection,
        "INSERT INTO lds VALUES ('attribution-1', 0.5, 0.31, 0.28, 0.34, 0.55, 0.56, 0.02, 30, "
        "2, 3), ('attribution-1', 0.9, 0.2, 0.1, 0.3, NULL, NULL, 0.02, 30, 2, 3)",
    )
    run(
        connection,
        "INSERT INTO solutions VALUES ('solution-1', $run, 'attribution-1', 'clean', 'select', "
        "'optimal', 30, 40, 1.0, 1.0, 0.0, 0.5, 0.3, 0.7, 'queries', '')",
        {"run": run_id},
    )
    arms = (
        ("all", 40, accuracy - 0.05, 0.05, 0.0),
        ("random", 30, accuracy - 0.06, 0.06, -0.2),
        ("chosen", 30, accuracy, None, 0.6),
    )
    for arm, n_rows, mean, advantage, change in arms:
        run(
            connection,
            "INSERT INTO verdicts SELECT 'verdict-' || $arm, $run, 'solution-1', $arm, $rows, 5, "
            "$mean, $mean - 0.01, $mean + 0.01, 'margin', 5.0, 4.9, 5.1, $change - 0.05, "
            "$change - 0.2, $change + 0.1, $change, $change - 0.1, $change + 0.1, "
            "$ahead, $ahead - 0.01, $ahead + 0.01, ''",
            {
                "arm": arm,
                "run": run_id,
                "rows": n_rows,
                "mean": mean,
                "ahead": advantage,
                "change": change,
            },
        )
    connection.close()
    return path
