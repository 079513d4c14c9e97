"""A small published database, filled by hand, for the readers of published databases."""

from pathlib import Path

import numpy as np
import polars as pl

from store.connect import open_ledger, registered, run
from store.migrate import migrate

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
            "content_hash": [f"{i:064x}" for i in range(46)],
        }
    )
    rows = pl.DataFrame(
        {
            "solution_id": "solution-1",
            "example_id": ids[:40],
            "chosen": [i not in DROPPED for i in range(40)],
            "utility": utility,
            "copy_of": [4 if i == 5 else None for i in range(40)],
        }
    )
    connection = open_ledger(path)
    migrate(connection)
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
        "'margin', '{}', 40, 3, 'f00', 0.03, 'LDS 0.4 over 60 masks', 'cpu', 1.5, 3)",
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
    run(
        connection,
        "INSERT INTO solution_prices VALUES ('solution-1', 'size', -0.01), "
        "('solution-1', 'source web', 0.25), ('solution-1', 'tokens', 0.0)",
    )
    arms = (
        ("all", 40, accuracy - 0.05, 0.05, 0.0, -0.2),
        ("random", 30, accuracy - 0.06, 0.06, -0.2, -0.3),
        ("chosen", 30, accuracy, None, 0.6, -0.4),
    )
    for arm, n_rows, mean, advantage, change, likely in arms:
        run(
            connection,
            "INSERT INTO verdicts SELECT 'verdict-' || $arm, $run, 'solution-1', $arm, $rows, 5, "
            "$mean, $mean - 0.01, $mean + 0.01, 'margin', 5.0, 4.9, 5.1, $change - 0.05, "
            "$change - 0.2, $change + 0.1, $change, $change - 0.1, $change + 0.1, "
            "$ahead, $ahead - 0.01, $ahead + 0.01, '', $likely, $likely - 0.02, $likely + 0.02, "
            "$likelier, $likelier - 0.03, $likelier + 0.03",
            {
                "arm": arm,
                "run": run_id,
                "rows": n_rows,
                "mean": mean,
                "ahead": advantage,
                "change": change,
                "likely": likely,
                "likelier": None if arm == "chosen" else -0.4 - likely,
            },
        )
    run(
        connection,
        "INSERT INTO run_parts VALUES ($run, 'attributions', 'attribution-1'), "
        "($run, 'solutions', 'solution-1'), ($run, 'verdicts', 'verdict-all'), "
        "($run, 'verdicts', 'verdict-random'), ($run, 'verdicts', 'verdict-chosen')",
        {"run": run_id},
    )
    connection.close()
    return path
