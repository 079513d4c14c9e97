"""Batches: encoded as the trusted rows, held up at the declared rates, answered once, checked."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import betabinom

from schemas.errors import DataError, InfeasibleProblem, NotFound, RequestError
from schemas.manifest import Manifest
from schemas.spec import ScreenSpec, load_spec
from store.connect import run_sql
from tasks.job import Job, blueprint
from tasks.preflight import open_job, preflight
from tasks.screening.answer import answer_of, conclude_batch, screen_batch
from tasks.screening.batches import read_batch
from tasks.screening.check import arms_of, check_screening, sentence_of
from tasks.screening.evidence import Evidence, gather
from tasks.screening.inbox import answers, inbox_files, waiting
from tasks.screening.reasons import reasons_of
from tests.tasks.arriving import mislabelled, stones, written
from tests.tasks.pipeline import run_stages


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Trusted rows whose models and sketches are there."""
    folder = tmp_path_factory.mktemp("stones")
    return run_stages(written(folder), folder / "work", until="scores")


def put(folder: Path, rows: pl.DataFrame, name: str = "batch.csv") -> Path:
    path = folder / name
    rows.write_csv(path)
    return path


def screened(job: Job, path: Path) -> Manifest:
    return screen_batch.fn(job, "gate", path)


def answered(job: Job, path: Path) -> dict[str, Any]:
    return answer_of(blueprint(job).artifacts, screened(job, path))


# --- encoding -------------------------------------------------------------------------------------


def test_the_data_s_own_rows_are_encoded_as_they_were(job: Job, tmp_path: Path) -> None:
    plan = blueprint(job)
    rows = pl.read_csv(plan.loaded.source_path)  # type: ignore[arg-type]
    shuffled = rows.select("kind", "weight", "finder", "depth", "width", "side")
    batch = read_batch(plan, put(tmp_path, shuffled))
    np.testing.assert_array_equal(batch.inputs, plan.dataset.inputs)
    np.testing.assert_array_equal(batch.targets, plan.dataset.targets)
    assert batch.hashes == plan.dataset.hashes


def test_a_batch_s_own_rows_do_not_change_each_other_s_encoding(job: Job, tmp_path: Path) -> None:
    plan, rows = blueprint(job), stones(np.random.default_rng(1), 6)
    together = read_batch(plan, put(tmp_path, rows)).inputs
    alone = read_batch(plan, put(tmp_path, rows[3:4], "one.csv")).inputs
    np.testing.assert_array_equal(together[3:4], alone)


@pytest.mark.parametrize("name", ["batch.parquet", "batch.jsonl"])
def test_other_tables_are_read_as_csv_is(job: Job, tmp_path: Path, name: str) -> None:
    plan, rows = blueprint(job), stones(np.random.default_rng(2), 5)
    path = tmp_path / name
    rows.write_parquet(path) if name.endswith("parquet") else rows.write_ndjson(path)
    found, like_csv = read_batch(plan, path), read_batch(plan, put(tmp_path, rows))
    np.testing.assert_array_equal(found.inputs, like_csv.inputs)
    assert found.labels == like_csv.labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop("depth"), r"lacks the feature 'depth' that the data have"),
        (lambda rows: rows.rename({"depth": "depht"}), r"lacks the feature 'depth'.*'depht'"),
        (lambda rows: rows.with_columns(more=pl.lit(1.0)), r"has a column 'more' that"),
        (lambda rows: rows.drop("kind"), r"data.target names column 'kind', which"),
        (lambda rows: rows.with_columns(depth=pl.lit("deep")), r"'depth' holds text \('deep' in"),
        (
            lambda rows: rows.with_columns(depth=pl.Series([None, 1.0, 2.0, 3.0])),
            "row 1 has no value in column 'depth'",
        ),
        (lambda rows: rows.with_columns(depth=pl.lit(float("nan"))), "nan in feature 'depth'"),
        (lambda rows: rows.clear(), "has no rows; there is nothing to screen"),
    ],
)
def test_a_batch_that_cannot_be_used_is_refused(
    job: Job, tmp_path: Path, change: Any, message: str
) -> None:
    path = put(tmp_path, change(stones(np.random.default_rng(3), 4)))
    with pytest.raises(DataError, match=message):
        read_batch(blueprint(job), path)


def test_files_of_other_kinds_and_files_that_are_not_there_are_refused(
    job: Job, tmp_path: Path
) -> None:
    (tmp_path / "batch.txt").write_text("width\n1\n")
    with pytest.raises(DataError, match=r"ends in '\.txt'; give \.csv"):
        read_batch(blueprint(job), tmp_path / "batch.txt")
    with pytest.raises(DataError, match="does not exist"):
        read_batch(blueprint(job), tmp_path / "nowhere.csv")


# --- rates ----------------------------------------------------------------------------------------


def test_of_untouched_rows_each_screen_holds_up_its_declared_share(
    job: Job, tmp_path: Path
) -> None:
    """Trusted rows are a sample too: the share beyond k of n of them is Beta(k, n + 1 - k)."""
    plan, n = blueprint(job), 1_500
    path = put(tmp_path, stones(np.random.default_rng(4), n))
    evidence = gather(plan, plan.spec.problem_of(ScreenSpec), read_batch(plan, path))
    assert set(evidence.standings) == {"loss", "neighbours", "harm", "self_influence", "group"}
    for name, seen in evidence.standings.items():
        assert seen.n_trusted > 0.95 * plan.n_train
        for rate in (0.02, 0.1, 0.3):
            held = int((seen.places <= rate).sum())
            beyond = int(np.floor(rate * (seen.n_trusted + 1)))
            spread = betabinom(n, beyond, seen.n_trusted + 1 - beyond)
            assert spread.ppf(0.001) <= held <= spread.ppf(0.999), (name, rate, held)


# --- answers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 wrong labels, 100 good rows; then copies and a kind that nobody knows."""
    rows = mislabelled(stones(np.random.default_rng(5), 124), 24)
    own = pl.read_csv(blueprint(job).loaded.source_path)[[10, 11, 300]].drop("side")  # type: ignore[arg-type]
    other = own[1].with_columns(
        kind=pl.when(pl.col("kind") == "chalk").then(pl.lit("flint")).otherwise(pl.lit("chalk"))
    )
    more = [rows, own[0], other, own[2], rows[50], rows[51].with_columns(kind=pl.lit("gneiss"))]
    return put(tmp_path_factory.mktemp("planted"), pl.concat(more))


def test_wrong_labels_are_found_and_good_rows_are_let_in(job: Job, planted: Path) -> None:
    held = np.array([not row["accepted"] for row in answered(job, planted)["rows"]])
    assert held[:24].mean() > 0.7
    assert held[24:124].mean() < 0.15


def test_copies_and_unknown_labels_are_reasons_of_their_own(job: Job, planted: Path) -> None:
    rows = answered(job, planted)["rows"][124:]
    codes = [set(row["codes"].split(",")) for row in rows]
    assert [bool(own & {"copy"}) for own in codes] == [True, True, False, True, True]
    assert "test_copy" in codes[2]
    assert "unknown_label" in codes[4]
    assert rows[0]["reasons"].startswith("its input is that of training row 10")
    assert re.search(r"training row 11, which is labelled '\w+'", rows[1]["reasons"])
    assert "is that of test row 300, which judges the models" in rows[2]["reasons"]
    assert "its input is that of row 51 of the batch" in rows[3]["reasons"]
    assert "its label 'gneiss' is none of the data's classes" in rows[4]["reasons"]
    assert rows[4]["effect"] is None


def test_copies_are_let_in_where_the_spec_says_so_but_not_under_another_label(
    job: Job, planted: Path
) -> None:
    plan = blueprint(job)
    problem = plan.spec.problem_of(ScreenSpec).model_copy(update={"copies": "accept"})
    batch = read_batch(plan, planted)
    nothing = Evidence(known=batch.known, standings={})
    found = reasons_of(plan, problem, batch, nothing)[124:]
    codes = [[reason.code for reason in own] for own in found]
    assert codes == [[], ["copy"], ["test_copy"], [], ["unknown_label", "copy"]]


def test_reasons_say_what_can_be_looked_up(job: Job, planted: Path) -> None:
    plan = blueprint(job)
    batch = read_batch(plan, planted)
    rows = [row for row in answered(job, planted)["rows"] if "neighbours" in row["codes"]]
    said = [
        re.search(r"(\d+) of its 10 nearest trusted rows are '(\w+)'", r["reasons"]) for r in rows
    ]
    trusted = np.asarray(plan.dataset.train.inputs)
    for row, match in zip(rows, said, strict=True):
        assert match
        distances = ((trusted - batch.inputs[row["batch_row"] - 1]) ** 2).sum(axis=1)
        nearest = plan.dataset.train.targets[np.argsort(distances)[:10]]
        assert (nearest == plan.dataset.classes.index(match[2])).sum() == int(match[1])


def test_accepted_and_quarantined_rows_are_the_batch_s_own_and_the_batch_is_left_alone(
    job: Job, planted: Path
) -> None:
    plan, before = blueprint(job), planted.read_bytes()
    manifest = screened(job, planted)
    folder, frame = plan.artifacts.folder(manifest), pl.read_csv(planted)
    accepted, held = (pl.read_parquet(folder / f"{x}.parquet") for x in ("accepted", "quarantined"))
    assert planted.read_bytes() == before
    assert accepted.columns == frame.columns
    assert len(accepted) == manifest.facts["accepted"]
    assert len(held) == manifest.facts["quarantined"]
    rows = held["batch_row"].to_numpy() - 1
    assert held.drop("batch_row", "reasons").equals(frame[rows])
    assert accepted.equals(frame[np.setdiff1d(np.arange(len(frame)), rows)])
    assert held["reasons"].str.len_chars().min() > 0


def test_a_planted_group_backs_itself(job: Job, tmp_path: Path) -> None:
    """Twelve stones far from all others, called flint: no row is like them but themselves."""
    rows = stones(np.random.default_rng(6), 120)
    mark = pl.Series("width", [-12.0 - 0.01 * n for n in range(12)] + rows["width"].to_list()[12:])
    kind = pl.Series("kind", ["chalk"] * 12 + rows["kind"].to_list()[12:])
    found = answered(job, put(tmp_path, rows.with_columns(mark, kind)))["rows"]
    assert all("group" in row["codes"] for row in found[:12])
    named = re.search(r"such rows of the batch as ([\d, ]+) back", found[0]["reasons"])
    assert named
    assert all(int(row) <= 12 for row in named[1].split(","))


def test_a_batch_of_one_row_is_answered_without_the_screen_of_groups(
    job: Job, tmp_path: Path
) -> None:
    answer = answered(job, put(tmp_path, stones(np.random.default_rng(7), 1)))
    asked = {each["screen"]: each["asked"] for each in answer["screens"]}
    assert asked == {
        "loss": True,
        "neighbours": True,
        "harm": True,
        "self_influence": True,
        "group": False,
    }


def test_a_batch_of_unknown_labels_alone_is_held_up_whole(job: Job, tmp_path: Path) -> None:
    rows = stones(np.random.default_rng(8), 3).with_columns(kind=pl.lit("gneiss"))
    answer = answered(job, put(tmp_path, rows))
    assert (answer["accepted"], answer["quarantined"], answer["screened_out"]) == (0, 3, 0)


# --- each once ------------------------------------------------------------------------------------


def test_a_batch_is_answered_once_whatever_its_file_is_called(job: Job, planted: Path) -> None:
    first = screened(job, planted)
    again = planted.with_name("again.csv")
    again.write_bytes(planted.read_bytes())
    assert screened(job, again) == first
    loaded = load_spec(job.spec)
    other = loaded.spec.problem_of(ScreenSpec).model_copy(
        update={
            "quarantine": loaded.spec.problem_of(ScreenSpec).quarantine.model_copy(
                update={"loss": 0.1}
            )
        }
    )
    artifacts = blueprint(job).artifacts
    assert len(waiting(loaded, artifacts, other, [planted, again], verify=False)) == 1


@pytest.mark.parametrize("absolute", [False, True])
def test_an_inbox_may_have_folders_of_its_own(tmp_path: Path, absolute: bool) -> None:
    folder = tmp_path if absolute else Path()
    spec = written(tmp_path, ('"inbox/*.csv"', f'"{folder / "inbox" / "**" / "*.csv"}"'))
    (tmp_path / "inbox" / "may").mkdir()
    names = ["inbox/a.csv", "inbox/b.txt", "inbox/may/c.csv"]
    for name in names:
        (tmp_path / name).write_text("width\n")
    loaded = load_spec(spec)
    found = inbox_files(loaded, loaded.spec.problem_of(ScreenSpec))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [names[0], names[2]]


def test_an_answer_that_was_interrupted_is_concluded_and_not_made_again(
    job: Job, tmp_path: Path
) -> None:
    plan = blueprint(job)
    problem = plan.spec.problem_of(ScreenSpec)
    path = put(tmp_path, stones(np.random.default_rng(9), 30))
    first = screened(job, path)  # and then the process is killed
    assert waiting(plan.loaded, plan.artifacts, problem, [path], verify=False) == [path]
    for _ in range(2):  # a retry, or another kill before the receipt
        conclude_batch.fn(job, screened(job, path))
    assert waiting(plan.loaded, plan.artifacts, problem, [path], verify=False) == []
    assert screened(job, path).created_at == first.created_at
    where = f"SELECT count(*) FROM screenings WHERE batch_digest = '{first.facts['batch_digest']}'"
    assert run_sql(plan.workspace.published, where).rows == [(1,)]
    assert first in answers(plan.loaded, plan.artifacts, problem)


def test_the_ledger_holds_every_row_value_and_reason(job: Job, planted: Path) -> None:
    plan, manifest = blueprint(job), screened(job, planted)
    conclude_batch.fn(job, manifest)
    published = plan.workspace.published
    (counts,) = run_sql(
        published,
        "SELECT n_rows, accepted, quarantined, (SELECT count(*) FROM screened_rows AS r WHERE "
        "r.screening_id = s.screening_id), (SELECT count(*) FROM screened_values AS v WHERE "
        f"v.screening_id = s.screening_id) FROM screenings AS s WHERE batch = '{planted.name}' "
        f"AND batch_digest = '{manifest.facts['batch_digest']}'",
    ).rows
    assert counts[:3] == (129, manifest.facts["accepted"], manifest.facts["quarantined"])
    assert counts[3:] == (129, 5 * 128)
    held = run_sql(published, "FROM quarantined_rows WHERE batch = 'batch.csv'", limit=None)
    place = held.columns.index("place")
    assert all(row[held.columns.index("reasons")] for row in held.rows)
    assert all(row[place] is None or row[place] > 0 for row in held.rows)
    said = run_sql(
        published,
        "SELECT bool_and((place <= rate) = contains(codes, screen)) FROM screened_values "
        "JOIN screened_rows USING (screening_id, batch_row)",
    ).rows
    assert said == [(True,)]


# --- checked by retraining ------------------------------------------------------------------------


def test_retraining_says_that_holding_up_wrong_labels_helps(job: Job, tmp_path: Path) -> None:
    rows = mislabelled(stones(np.random.default_rng(10), 160), 70)
    path = put(tmp_path, rows)
    screening = screened(job, path)
    checked = check_screening.fn(job, screening, path)
    facts: Any = checked.facts
    arms = {arm["arm"]: arm for arm in facts["arms"]}
    assert list(arms) == ["trusted", "accepted", "batch", "random"]
    assert arms["batch"]["n_rows"] == 250 + 160
    assert arms["random"]["n_rows"] == arms["accepted"]["n_rows"]
    assert arms["batch"]["observed_high"] < 0
    assert arms["batch"]["predicted"] < arms["accepted"]["predicted"]
    assert facts["gains"]["batch"][1] > 0
    assert facts["gains"]["random"][1] > 0
    assert facts["sentence"].startswith("Helped: ")
    assert check_screening.fn(job, screening, path) == checked
    conclude_batch.fn(job, screening, checked)
    where = f"WHERE screening_id LIKE '%{screening.key[:12]}'"
    plan = blueprint(job)
    assert run_sql(plan.workspace.published, f"SELECT verified FROM screenings {where}").rows == [
        (facts["sentence"],)
    ]
    stored = run_sql(
        plan.workspace.published, f"SELECT arm FROM screening_arms {where} ORDER BY place"
    )
    assert [row[0] for row in stored.rows] == list(arms)
    problem = plan.spec.problem_of(ScreenSpec)
    assert waiting(plan.loaded, plan.artifacts, problem, [path], verify=True) == []


def test_a_batch_that_has_changed_since_is_not_checked(job: Job, tmp_path: Path) -> None:
    path = put(tmp_path, stones(np.random.default_rng(11), 20))
    screening = screened(job, path)
    put(tmp_path, stones(np.random.default_rng(12), 20))
    with pytest.raises(DataError, match="has changed since it was screened"):
        check_screening.fn(job, screening, path)


def test_random_rows_are_drawn_anew_and_from_those_that_can_be_trained_on() -> None:
    known = np.array([True] * 30 + [False] * 5)
    accepted = known & (np.arange(35) < 20)
    arms = arms_of(known, accepted, 8, seed=0)
    assert (arms["random"].sum(axis=1) == 20).all()
    assert not arms["random"][:, ~known].any()
    assert len(np.unique(arms["random"], axis=0)) == 8
    assert (arms["accepted"] == accepted).all()


@pytest.mark.parametrize("accepted", [np.ones(6, bool), np.zeros(6, bool)])
def test_where_all_or_none_is_accepted_there_is_nothing_to_compare(
    accepted: np.ndarray,
) -> None:
    assert list(arms_of(np.ones(6, bool), accepted, 3, seed=0)) == ["trusted", "batch"]
    assert "nothing to compare" in sentence_of({}, "margin", 3)


@pytest.mark.parametrize(
    ("gain", "output", "words"),
    [
        ((0.5, 0.2, 0.8), "margin", "Helped: .* higher being better"),
        ((-0.5, -0.8, -0.2), "margin", r"Harmed: with what it held up .*\+0.5 \[\+0.2, \+0.8\]"),
        ((0.1, -0.2, 0.4), "loss", "Made no difference that 5 retrainings .* lower being better"),
    ],
)
def test_the_sentence_says_what_the_interval_does(
    gain: tuple[float, float, float], output: str, words: str
) -> None:
    gains = {"batch": gain, "random": (0.0, -1.0, 1.0), "trusted": gain}
    assert re.match(words, sentence_of(gains, output, 5))


# --- other tasks, and refusals --------------------------------------------------------------------

NUMBERS = (
    ('target = "kind"', 'target = "weight"'),
    ('metadata = ["finder"]', 'metadata = ["finder", "kind"]'),
    ("neighbours = 0.02, ", ""),
    ('method = "trak"', 'method = "trak"\noutput = "squared_error"'),
)


def test_a_regression_is_screened_by_all_but_neighbours(tmp_path: Path) -> None:
    job = run_stages(written(tmp_path, *NUMBERS), tmp_path / "work", until="scores")
    rows = stones(np.random.default_rng(13), 60)
    wrong = pl.Series("weight", [30.0] * 5 + rows["weight"].to_list()[5:])
    answer = answered(job, put(tmp_path, rows.with_columns(wrong)))
    assert {each["screen"] for each in answer["screens"]} == {
        "loss",
        "harm",
        "self_influence",
        "group",
    }
    assert all("loss" in row["codes"] for row in answer["rows"][:5])
    assert np.mean([row["accepted"] for row in answer["rows"][5:]]) > 0.8


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            NUMBERS[:2] + NUMBERS[3:],
            InfeasibleProblem,
            "has no classes, which 'neighbours' compares",
        ),
        ((("harm = 0.02", "harm = 0.001"),), InfeasibleProblem, "harm = 0.001 is less than one of"),
        ((('checkpoints = "bank"\n', ""),), RequestError, "checkpoints = 'bank'"),
        ((("harm = 0.02", "harms = 0.02"),), RequestError, "did you mean 'harm'"),
        ((("harm = 0.02", "harm = 0.6"),), RequestError, "at most 0.5"),
        ((("harm = 0.02", "harm = 0"),), RequestError, "greater than 0"),
        (
            (("seeds = 6\n\n[compute]", 'judge_on = "queries"\n[compute]'),),
            RequestError,
            "never saw",
        ),
    ],
)
def test_what_cannot_be_screened_is_refused_before_anything_is_trained(
    tmp_path: Path, changes: tuple[tuple[str, str], ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        preflight(open_job(written(tmp_path, *changes), tmp_path / "work"))


WORDS = {
    "bad": ["dull", "slow", "broken", "noisy", "late"],
    "good": ["bright", "quick", "sound", "calm", "early"],
}


def texts(rng: np.random.Generator, n: int) -> list[dict[str, str]]:
    """Texts of a class's own words and of words of all."""
    every = ["the", "a", "it", "was", "and", *WORDS["bad"], *WORDS["good"]]
    rows = []
    for _ in range(n):
        label = str(rng.choice(["bad", "good"]))
        words = [*rng.choice(WORDS[label], 4), *rng.choice(every, 5)]
        rows.append({"text": " ".join(rng.permutation(words)), "label": label})
    return rows


def of_texts(folder: Path, *more: tuple[str, str]) -> Job:
    data = """
source = "jsonl:texts.jsonl"
target = "label"
text = { column = "text", vocabulary = 64, length = 16 }
test_fraction = 0.3
"""
    old = 'source = "csv:stones.csv"\ntarget = "kind"\nsplit = "side"\nmetadata = ["finder"]\n'
    spec = written(folder, (f"\n{old}", data), ('build = "linear"', 'build = "bag"'), *more)
    pl.DataFrame(texts(np.random.default_rng(0), 240)).write_ndjson(folder / "texts.jsonl")
    return run_stages(spec, folder / "work", until="scores")


def test_texts_are_screened_by_their_words(tmp_path: Path) -> None:
    job = of_texts(tmp_path)
    rows = texts(np.random.default_rng(1), 60)
    for row in rows[:10]:
        row["label"] = "good" if row["label"] == "bad" else "bad"
    path = tmp_path / "batch.jsonl"
    pl.DataFrame(rows).write_ndjson(path)
    held = np.array([not row["accepted"] for row in answered(job, path)["rows"]])
    assert held[:10].mean() > 0.6
    assert held[10:].mean() < 0.25


def test_documents_of_a_language_model_are_screened_without_labels(tmp_path: Path) -> None:
    changes = (
        ('target = "label"\n', 'metadata = ["label"]\n'),
        ('build = "bag"', 'build = "transformer"\noptions = { width = 16, depth = 1, heads = 2 }'),
        ("neighbours = 0.02, ", ""),
    )
    job = of_texts(tmp_path, *changes)
    path = tmp_path / "batch.jsonl"
    rows = texts(np.random.default_rng(1), 20)
    pl.DataFrame([rows[0], *rows]).write_ndjson(path)
    found = answered(job, path)["rows"]
    assert np.mean([row["accepted"] for row in found[2:]]) > 0.7
    assert found[0]["label"] is None
    assert "copy" in found[1]["codes"]


def test_a_spec_that_screens_nothing_says_how_to(tmp_path: Path) -> None:
    spec = written(tmp_path)
    spec.write_text(re.sub(r"\[\[problem\]\].*?(?=\[verdict\])", "", spec.read_text(), flags=re.S))
    with pytest.raises(NotFound, match="add a \\[\\[problem\\]\\] with kind = 'screen'"):
        load_spec(spec).spec.problem_of(ScreenSpec)
    with pytest.raises(NotFound, match="did you mean 'gate'"):
        load_spec(written(tmp_path)).spec.problem_of(ScreenSpec, "gates")


def test_a_run_has_nothing_to_solve_for_a_screen(job: Job) -> None:
    plan = blueprint(job)
    assert plan.keys("solution") == plan.keys("verdict") == []
    assert plan.run_key() is not None
