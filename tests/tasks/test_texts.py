"""Texts through the stages: a classifier, and a language model whose rows predict themselves."""

import json
from pathlib import Path

import numpy as np
import pytest

from attribution import attribute
from schemas.errors import DataError, ShapeError, SpecError
from schemas.recipe import TextSpec
from schemas.spec import load_spec
from store.connect import run_sql
from tasks.intake.rows import Columns
from tasks.intake.sources import read_rows
from tasks.intake.tokens import UNASKED, next_tokens, tokenise
from tasks.job import blueprint
from tasks.preflight import open_job, preflight
from tasks.score import load_scores
from tests.tasks.pipeline import TINY, run_stages

WORDS = ("good", "fine", "great", "bad", "awful", "poor")
SPEC = """
name = "texts"

[data]
source = "jsonl:texts.jsonl"
{data}
test_fraction = 0.3

[model]
build = "{build}"
options = {{ {options} }}

[train]
lr = 0.1
epochs = 3
batch_size = 10
seeds = 2

[bank]
models = 24
alpha = [0.5]
seeds = 2

[[attribution]]
method = "trak"
projection = {{ dim = 64 }}

[[problem]]
name = "keep"
kind = "select"
uses = "trak"
size = 0.9

[verdict]
seeds = 2
arms = ["all", "random"]
"""


def write(folder: Path, *, data: str, build: str, options: str) -> Path:
    draw = np.random.default_rng(0)
    lines = []
    for row in range(90):
        kind = row % 2
        words = [WORDS[3 * kind + int(draw.integers(3))], *map(str, draw.integers(9, size=4))]
        lines.append(json.dumps({"words": " ".join(words), "label": ["pos", "neg"][kind]}))
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "spec.toml"
    path.write_text(SPEC.format(data=data, build=build, options=options))
    return path


def test_a_text_classifier_runs_from_rows_to_verdict(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        data='target = "label"\ntext = { column = "words", length = 6, vocabulary = 50 }',
        build="bag",
        options="width = 4, hidden = [4]",
    )
    plan = blueprint(run_stages(spec, tmp_path / "work"))
    facts = plan.dataset.facts
    assert (facts.task, facts.input_shape, facts.input_dtype) == ("classification", (6,), "int64")
    assert (facts.n_tokens, facts.classes) == (50, ("neg", "pos"))
    assert plan.dataset.inputs.dtype == np.int64
    found = run_sql(
        plan.workspace.published,
        "SELECT metadata->>'words' AS words FROM examples ORDER BY example_id LIMIT 1",
    )
    assert found.rows[0][0].split()[0] in WORDS
    verdicts = run_sql(plan.workspace.published, "SELECT count(*) FROM verdicts").rows
    assert verdicts == [(3,)]


def test_words_in_common_are_scored_beside_gradients(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        data='target = "label"\ntext = { column = "words", length = 6, vocabulary = 9999 }',
        build="bag",
        options="width = 4, hidden = [4]",
    )
    spec.write_text(spec.read_text() + '[[attribution]]\nmethod = "bm25"\n')
    plan = blueprint(run_stages(spec, tmp_path / "work", until="lds"))
    found = load_scores(plan, plan.spec.attribution_named("bm25"))
    rows = plan.dataset.examples.sort("example_id")
    texts = [json.loads(text)["words"] for text in rows["metadata"]]
    queries = plan.dataset.subset(plan.sets.scored)
    want = attribute(
        "bm25",
        None,
        None,
        train=(plan.dataset.train.inputs, plan.dataset.train.targets),
        queries=(queries.inputs, queries.targets),
        train_texts=[texts[row] for row in plan.dataset.train.example_ids],
        query_texts=[texts[row] for row in plan.sets.scored],
    )
    assert found.std() > 0
    np.testing.assert_allclose(found, want, rtol=1e-5)
    key = plan.scores.lds_key(plan.spec.attribution_named("bm25"))
    assert plan.sealed("lds", key).facts["rows"]


def test_words_in_common_need_words(tmp_path: Path) -> None:
    tiny = TINY.read_text().replace('method = "trak"', 'method = "bm25"').splitlines()
    spec = tmp_path / "tiny.toml"
    spec.write_text("\n".join(line for line in tiny if not line.startswith("projection")))
    with pytest.raises(ShapeError, match="the rows are no texts"):
        preflight(open_job(spec, tmp_path / "work"))


def test_a_language_model_runs_from_rows_to_verdict(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        data=('metadata = ["label"]\ntext = { column = "words", tokens = "bytes", length = 12 }'),
        build="transformer",
        options="width = 8, depth = 1, heads = 2",
    )
    plan = blueprint(run_stages(spec, tmp_path / "work"))
    facts = plan.dataset.facts
    assert (facts.task, facts.n_outputs, facts.input_shape) == ("language", 257, (12,))
    assert plan.dataset.targets.shape == (90, 12)
    outputs = run_sql(plan.workspace.published, "SELECT DISTINCT output FROM attributions").rows
    assert outputs == [("logprob",)]
    value = run_sql(plan.workspace.published, "SELECT max(value) FROM bank_outputs").rows[0][0]
    assert value < 0  # log-probabilities of texts


def test_tokens_depend_on_their_own_text_alone() -> None:
    spec = TextSpec(column="words", length=5, vocabulary=100)
    one = tokenise(["A cat, a dog"], spec)
    both = tokenise(["something else entirely here", "a CAT , a dog"], spec)
    np.testing.assert_array_equal(one[0], both[1])
    assert one[0, 0] == one[0, 3]
    assert (both > 0).all(where=both != 0)
    assert both.max() < 100
    assert tokenise(["cat"], spec)[0].tolist()[1:] == [0, 0, 0, 0]


def test_bytes_are_themselves_and_the_end_is_unasked() -> None:
    spec = TextSpec(column="words", tokens="bytes", length=5)
    assert spec.vocabulary == 257
    inputs, targets = next_tokens(tokenise(["abc", "é and more"], spec, following=True))
    assert inputs.tolist()[0] == [98, 99, 100, 0, 0]
    assert targets.tolist()[0] == [99, 100, UNASKED, UNASKED, UNASKED]
    assert inputs.tolist()[1][:2] == [1 + 0xC3, 1 + 0xA9]
    np.testing.assert_array_equal(inputs[1, 1:], targets[1, :-1])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"words": "", "label": "x"}, "row 1 has 0 tokens in column 'words'"),
        ({"words": None, "label": "x"}, "row 1 has no value in column 'words'"),
        ({"words": "a b", "label": "x", "more": 1}, "column 'more' is beside the text"),
    ],
)
def test_rows_that_are_no_texts_are_refused(
    tmp_path: Path, line: dict[str, object], words: str
) -> None:
    path = tmp_path / "rows.jsonl"
    good = {key: "good text" if key in ("words", "label") else 2 for key in line}
    path.write_text("\n".join(json.dumps(row) for row in (line, good)) + "\n")
    columns = Columns(target="label", text=TextSpec(column="words"))
    with pytest.raises(DataError, match=words):
        read_rows("jsonl:rows.jsonl", path, columns)


@pytest.mark.parametrize(
    ("data", "build", "words"),
    [
        ('target = "label"\ntext = { column = "words" }', "mlp", "'mlp' reads no text"),
        ('target = "label"', "bag", "has no data.text"),
    ],
)
def test_models_that_cannot_read_the_rows_are_refused(
    tmp_path: Path, data: str, build: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        load_spec(write(tmp_path, data=data, build=build, options=""))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('target = "label"\ntext = { column = "label" }', "has another role"),
        ('text = { column = "words" }\ncorrupt = { labels = 0.1 }', "no labels to flip"),
        ('text = { column = "words" }\ntask = "regression"', "needs a target"),
        ('text = { column = "words", tokens = "bytes", vocabulary = 9 }', "257 token numbers"),
    ],
)
def test_specs_of_texts_that_cannot_be_are_refused(tmp_path: Path, data: str, words: str) -> None:
    spec = write(tmp_path, data=data, build="bag", options="")
    with pytest.raises(SpecError, match=words):
        load_spec(spec)
