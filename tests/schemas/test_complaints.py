"""Every kind of mistake in a spec gives one line that says where, what, and what to do."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import SpecError
from schemas.spec import load_spec, parse_spec
from tests.schemas.specs import FULL, MINIMAL

PROBLEM = """
[[problem]]
kind = "select"
uses = "trak"
size = 1000
"""
REGRESSION = MINIMAL.replace("digits", "diabetes")


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        parse_spec(tomllib.loads(text))
    return caught.value.problems


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("bank.modles = 4", "bank.modles: unknown key; did you mean 'models'?"),
        ("bnak = {}", "bnak: unknown key; did you mean 'bank'?"),
        ("train.lr = '0.1'", "train.lr: found '0.1'; write a number"),
        ("train.epochs = 1.5", "train.epochs: found 1.5; write a whole number"),
        ("train.epochs = true", "train.epochs: found true; write a whole number"),
        ("train.nesterov = 1", "train.nesterov: found 1; write true or false"),
        ("train.lr = inf", "train.lr: found Infinity; write a finite number"),
        ("train.lr = 0", "train.lr: found 0; write a number greater than 0"),
        ("train.betas = [0.9]", "train.betas: found [0.9]; write 2 values"),
        ("train.optimizer = 'adam'", "train.optimizer: found 'adam'; write 'sgd' or 'adamw'"),
        ("train = 3", "train: found 3; write a table"),
        ("bank.alpha = 0.5", "bank.alpha: found 0.5; write a list"),
        ("bank.alpha = []", "bank.alpha: found []; write at least 1"),
        ("bank.alpha = [0.5, 0.5]", "bank.alpha: 0.5 is given twice; leave one out"),
        ("bank.alpha = [1.0]", "bank.alpha[0]: found 1.0; write a number less than 1"),
        ("bank.calibrate = 1", "bank.calibrate: found 1; write a number less than 1"),
        (
            "bank.models = 101",
            "bank.models: 101 is not divisible by 2 sizes x 2 seeds; write 100 or 104",
        ),
        ("bank.models = 1", "bank.models: 1 is not divisible by 2 sizes x 2 seeds; write 16"),
        (
            "bank.models = 12",
            (
                "bank.models: 12 models are 3 subsets of each size, 2 to calibrate and "
                "1 to evaluate; write at least 16"
            ),
        ),
        ("verdict.seeds = 1", "verdict.seeds: found 1; write a number of at least 2"),
        (
            "verdict.arms = ['all', 'equal']",
            (
                "verdict.arms[1]: found 'equal'; write 'all', 'random', 'balanced', "
                "'highest_loss', 'lowest_loss', 'similar' or 'clean'"
            ),
        ),
        (
            "verdict.arms = ['random']",
            "verdict.arms: changes are measured against all rows; add 'all'",
        ),
        (
            "verdict.judge_on = 'holdut'",
            "verdict.judge_on: there is no set 'holdut'; did you mean 'holdout'?",
        ),
        (
            "compute.memory = 'lots'",
            "compute.memory: found 'lots'; write a size as in '4 GiB'",
        ),
        (
            "compute.workers = 0",
            "compute.workers: found 0; write 'auto' or a number greater than 0",
        ),
        (
            "sets.threes = 'DELETE FROM examples'",
            "sets.threes: no query; write SQL as in SELECT example_id FROM examples WHERE ...",
        ),
        (
            "sets.'a b' = 'FROM examples'",
            "sets.a b: found 'a b'; write letters, digits and '_', with no digit first",
        ),
        (
            "train = { nesterov = true, momentum = 0 }",
            "train.nesterov: there is no momentum to correct; set momentum above 0",
        ),
        (
            "train = { optimizer = 'adamw', momentum = 0.5 }",
            "train.momentum: adamw has no momentum; leave it out",
        ),
        ("train.betas = [0.8, 0.9]", "train.betas: sgd has no betas; leave it out"),
        (
            "train = { warmup = 3, epochs = 3 }",
            "train.warmup: 3 epochs of 3; write fewer than epochs",
        ),
        ("data.targe = 'y'", "data.targe: unknown key; did you mean 'target'?"),
        ("data.test_fraction = 1.5", "data.test_fraction: found 1.5; write a number less than 1"),
        (
            "data.id = 'row'",
            "data.id: sklearn:digits has no columns to choose from; leave it out",
        ),
        (
            "data.corrupt = { labels = 1 }",
            "data.corrupt.labels: found 1; write a number less than 1",
        ),
        (
            "model.options = { hidden = [3] }",
            "model.options.hidden: the linear model has no such option; leave it out",
        ),
        (
            "model.checkpoints = ['a.pkl']",
            "model.checkpoints[0]: found 'a.pkl'; weights are .safetensors or .pt",
        ),
        ("seed = -1", "seed: found -1; write a number of at least 0"),
        ("seed = 2024-01-01", "seed: found '2024-01-01'; write a whole number"),
    ],
)
def test_one_mistake_gives_one_line(lines: str, complaint: str) -> None:
    assert problems(lines + "\n" + MINIMAL) == (complaint,)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name = "tiny"', "", 'name: missing; add it, as in name = "digits"'),
        (
            'name = "tiny"',
            'name = "a/b"',
            (
                "name: found 'a/b'; write letters, digits, '.', '_' and '-', "
                "with a letter or digit first"
            ),
        ),
        (
            'data.source = "sklearn:digits"',
            "data = {}",
            'data.source: missing; add it, as in source = "sklearn:digits"',
        ),
        ('data.source = "sklearn:digits"', "", "data: missing; add a table [data]"),
        (
            "sklearn:digits",
            "sklearn:digit",
            "data.source: no sklearn data set 'digit'; did you mean 'digits'?",
        ),
        (
            "sklearn:digits",
            "parket:x.parquet",
            "data.source: unknown kind of source 'parket'; did you mean 'parquet'?",
        ),
        (
            "sklearn:digits",
            "csv:",
            "data.source: found 'csv:'; say what to read, as in 'csv:rows.csv'",
        ),
        (
            "sklearn:digits",
            "python:recipe:rows",
            "data.source: found 'python:recipe:rows'; write 'python:FILE.py:FUNCTION'",
        ),
        (
            "sklearn:digits",
            "csv:rows.csv",
            "data.target: missing; name the column of csv:rows.csv to predict",
        ),
        (
            '"linear"',
            '"liner"',
            (
                "model.build: unknown model 'liner'; did you mean 'linear'? Or write "
                "'python:FILE.py:FUNCTION'"
            ),
        ),
        (
            '"linear"',
            '"python:net"',
            "model.build: found 'python:net'; write 'python:FILE.py:FUNCTION'",
        ),
        (
            'build = "linear"',
            'build = "mlp"\nmodel.options.hiden = [3]',
            "model.options.hiden: the mlp model has no such option; did you mean 'hidden'?",
        ),
        (
            'build = "linear"',
            'build = "mlp"\nmodel.options.hidden = [3, 0]',
            "model.options.hidden: write a list of layer widths, as in [128, 64]",
        ),
        (
            'build = "linear"',
            'build = "mlp"\nmodel.options.activation = "rely"',
            "model.options.activation: unknown activation 'rely'; did you mean 'relu'?",
        ),
        (
            'build = "linear"',
            'build = "cnn"\nmodel.options.channels = []',
            (
                "model.options.channels: the list is empty; "
                "write positive numbers of maps, as in [16, 32]"
            ),
        ),
        (
            'build = "linear"',
            'build = "cnn"\nmodel.options.activation = "relu"',
            (
                "model.options.activation: the cnn model has no such option; "
                "choose 'channels' or 'hidden'"
            ),
        ),
        (
            'build = "linear"',
            'build = "resnet"\nmodel.options.width = 0',
            "model.options.width: found 0; write a number of 1 or more, as in 16",
        ),
        (
            'build = "linear"',
            'build = "resnet"\nmodel.options.blocks = [1.5]',
            "model.options.blocks: write a list of positive numbers of blocks, as in [1, 1, 1]",
        ),
        (
            'build = "linear"',
            'build = "two_tower"',
            "model.options: the two_tower model needs captions, one text for each class",
        ),
        (
            'build = "linear"',
            'build = "two_tower"\nmodel.options.captions = "a photo"',
            "model.options.captions: write a list of texts, one for each class in order",
        ),
        (
            '[[attribution]]\nmethod = "trak"',
            "",
            "problem: missing, as is attribution; add that, or a problem of kind 'value'",
        ),
        (
            '"trak"',
            '"track"',
            (
                "attribution[0].method: found 'track', so no other key of its table was read; "
                "did you mean 'trak'?"
            ),
        ),
        (
            'method = "trak"',
            "",
            'attribution[0].method: missing; add it, as in method = "trak"',
        ),
        (
            'method = "trak"',
            'method = "trak"\ndamping = 0',
            "attribution[0].damping: found 0; write 'auto' or a number greater than 0",
        ),
        (
            'method = "trak"',
            'method = "trak"\nprojection = { dim = 4, nonzeros = 8 }',
            "attribution[0].projection.nonzeros: 8 places of 4; write at most dim",
        ),
        (
            'method = "trak"',
            'method = "trak"\nprojection = { kind = "gaussian", nonzeros = 2 }',
            "attribution[0].projection.nonzeros: kind 'gaussian' has none to choose; leave it out",
        ),
        (
            'method = "trak"',
            'method = "trak"\nprojection = { kind = "gaussian", dim = 300000 }',
            "attribution[0].projection.dim: 300000 for kind 'gaussian'; write at most 262144",
        ),
        (
            'method = "trak"',
            'method = "trak"\nprojection.kind = "hadamar"',
            (
                "attribution[0].projection.kind: found 'hadamar'; "
                "write 'sparse', 'rademacher', 'gaussian', 'hadamard', 'factored' or 'auto'"
            ),
        ),
        (
            'method = "trak"',
            'method = "trak"\nprojection.dims = 8',
            "attribution[0].projection.dims: unknown key; did you mean 'dim'?",
        ),
        (
            'method = "trak"',
            'method = "trak"\n[[attribution]]\nmethod = "trak"',
            "attribution[1].name: 'trak' is the name of another one; give each its own",
        ),
    ],
)
def test_one_mistake_in_what_must_be_there_gives_one_line(
    old: str, new: str, complaint: str
) -> None:
    assert problems(MINIMAL.replace(old, new)) == (complaint,)


def test_snapshots_are_taken_during_the_training() -> None:
    text = MINIMAL.replace('method = "trak"', 'method = "tracin"\nepochs = [10, 40]')
    assert problems(text) == ("attribution[0].epochs: 40 of 30 epochs; write at most 30",)


def test_a_method_has_its_own_options_only() -> None:
    assert problems(MINIMAL + "rank = 5") == (
        (
            "attribution[0].rank: unknown key; choose 'average', 'checkpoints', 'curvature', "
            "'damping', 'ggn_classes', 'leverage', 'method', 'name', 'output' or 'projection'"
        ),
    )


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            '"trak"',
            '"trac"',
            "problem[0].uses: there is no attribution 'trac'; did you mean 'trak'?",
        ),
        (
            "size = 1000",
            "size = 1.5",
            (
                "problem[0].size: found 1.5; write a whole number or a number less than 1 or "
                "'best' or a table"
            ),
        ),
        ("size = 1000", "", "problem[0].size: missing; add it, as in size = 1000"),
        (
            "size = 1000",
            "size = 1000\ntargets = 'querys'",
            "problem[0].targets: there is no set 'querys'; did you mean 'queries'?",
        ),
        (
            "size = 1000",
            "size = 1000\ntargets = 'holdout'",
            (
                "verdict.judge_on: problem 'select' is solved for 'holdout'; "
                "judge on a set that the solver never saw"
            ),
        ),
        (
            "size = 1000",
            "size = 1000\nquotas = { class = { 3 = { mim = 1 } } }",
            "problem[0].quotas.class.3.mim: unknown key; did you mean 'min'?",
        ),
        (
            "size = 1000",
            "size = 1000\nquotas = { class = { 3 = {} } }",
            "problem[0].quotas.class.3: an empty quota; write { min = ... }, { max = ... } or both",
        ),
        (
            "size = 1000",
            "size = 1000\nquotas = { class = { 3 = { min = 5, max = 4 } } }",
            "problem[0].quotas.class.3.min: 5 is above max = 4; swap them",
        ),
        (
            "size = 1000",
            "size = 1000\nquotas = { class = { 3 = { min = 600 }, 4 = { min = 500 } } }",
            "problem[0].quotas.class: they ask for 1100 rows, size is 1000; lower them",
        ),
        (
            "size = 1000",
            "size = 1000\nquotas = { 3 = { min = 10 } }",
            "problem[0].quotas.3: quotas are by column; write { class = { 3 = { ... } } }",
        ),
        (
            "size = 1000",
            "size = { max = 90 }\nquotas = { site = { a = { min = 60 }, b = { min = 40 } } }",
            "problem[0].quotas.site: they ask for 100 rows, size is 90; lower them",
        ),
        (
            "size = 1000",
            "size = 1000\nbudget = [{ column = 'a', most = 9 }, { column = 'a', most = 8 }]",
            "problem[0].budget: 'a' is given twice; leave one out",
        ),
        (
            "size = 1000",
            "size = 1000\nbudget = { column = 'tokens', most = 9, least = 3 }",
            "problem[0].budget.least: unknown key; choose 'column' or 'most'",
        ),
        (
            "size = 1000",
            "size = 1000\ninclude = 'paid'",
            "problem[0].include: there is no set 'paid'; choose 'holdout' or 'queries'",
        ),
        (
            "size = 1000",
            "size = 1000\ntargets = { queries = 1, query = 2 }",
            "problem[0].targets: there is no set 'query'; did you mean 'queries'?",
        ),
        (
            "size = 1000",
            "size = 1000\ntargets = { queries = 0 }",
            "problem[0].targets.queries: found 0; write a number greater than 0",
        ),
        (
            "size = 1000",
            "size = { max = 90, mix = 3 }",
            "problem[0].size.mix: unknown key; did you mean 'min'?",
        ),
        (
            "size = 1000",
            "size = 1000\ncombine = 'worst'",
            "problem[0].combine: 'worst' is of several sets; name two or more in targets",
        ),
        (
            "size = 1000",
            "size = 1000\nduplicates = 1.2",
            "problem[0].duplicates: found 1.2; write 'keep' or 'content' or a number of at most 1",
        ),
        (
            '"select"',
            '"selekt"',
            (
                "problem[0].kind: found 'selekt', so no other key of its table was read; "
                "did you mean 'select'?"
            ),
        ),
        (
            "size = 1000",
            "size = 1000\ninclude = 'queries'",
            (
                "problem[0].include: 'queries' holds test rows, and only what is trained on can be "
                "chosen; name a set of training rows"
            ),
        ),
    ],
)
def test_one_mistake_in_a_problem_gives_one_line(old: str, new: str, complaint: str) -> None:
    assert problems(MINIMAL + PROBLEM.replace(old, new)) == (complaint,)


VALUE = """
[[problem]]
kind = "value"
by = "vendor"
method = "shapley"
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            '"shapley"',
            '"shaply"',
            (
                "problem[0].method: found 'shaply'; write 'shapley', 'beta', 'banzhaf' or "
                "'leave_one_out'"
            ),
        ),
        (
            '"shapley"',
            '"shapley"\nshape = [4, 1]',
            "problem[0].shape: 'shapley' has none; leave it out, or value by 'beta'",
        ),
        ('by = "vendor"', "draw = 30", "problem[0].draw: unknown key; did you mean 'draws'?"),
        (
            '"shapley"',
            '"shapley"\ndraws = 5',
            "problem[0].draws: found 5; write a number of at least 20",
        ),
        (
            '"shapley"',
            '"shapley"\ntargets = "query"',
            "problem[0].targets: there is no set 'query'; did you mean 'queries'?",
        ),
        (
            '"shapley"',
            '"shapley"\noutput = "squared_error"',
            (
                "problem[0].output: a classification has no 'squared_error'; "
                "choose 'accuracy', 'logprob', 'loss' or 'margin'"
            ),
        ),
    ],
)
def test_one_mistake_in_a_valuation_gives_one_line(old: str, new: str, complaint: str) -> None:
    assert problems(MINIMAL + VALUE.replace(old, new)) == (complaint,)


def test_values_may_be_asked_on_the_set_that_judges() -> None:
    spec = parse_spec(tomllib.loads(MINIMAL + VALUE + 'targets = "holdout"\n'))
    assert (spec.selections, [problem.targets for problem in spec.valuations]) == ((), ["holdout"])


def test_two_names_for_the_same_query_do_not_make_a_holdout() -> None:
    sets = "sets = { queries = 'FROM examples', holdout = 'FROM examples' }\n"
    (line,) = problems(sets + MINIMAL + PROBLEM)
    assert line.startswith("verdict.judge_on: problem 'select' is solved for 'queries'")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "verdict.arms = ['all', 'balanced']" + REGRESSION,
            "verdict.arms: a regression has no classes to balance; leave 'balanced' out",
        ),
        (
            "data.corrupt.labels = 0.1" + REGRESSION,
            "data.corrupt.labels: a regression has no labels to flip; leave it out",
        ),
        (
            REGRESSION + "output = 'margin'",
            (
                "attribution[0].output: a regression has no 'margin'; "
                "choose 'loss', 'prediction' or 'squared_error'"
            ),
        ),
        (
            REGRESSION + PROBLEM + "quotas = { class = { 1 = { min = 3 } } }",
            "problem[0].quotas.class: a regression has no classes; leave the quotas of 'class' out",
        ),
    ],
)
def test_a_regression_refuses_what_needs_classes(text: str, complaint: str) -> None:
    assert problems(text) == (complaint,)


def test_a_logistic_curvature_is_no_mistake_for_a_regression() -> None:
    assert parse_spec(tomllib.loads(REGRESSION + "curvature = 'logistic'"))


def test_ones_own_weights_beside_an_attribution_over_the_bank_are_no_mistake() -> None:
    text = "model.checkpoints = ['a.pt']" + MINIMAL + "checkpoints = 'bank'"
    assert parse_spec(tomllib.loads(text))


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ("split = 'label'", "data.split: column 'label' is target already; name another"),
        (
            "true_target = 'label'",
            "data.true_target: column 'label' has another role; name another",
        ),
        (
            "true_target = 'known'\ncorrupt.labels = 0.1",
            "data.true_target: corrupt.labels takes the labels for true ones; leave one out",
        ),
        ("metadata = ['label']", "data.metadata: 'label' is the target already; leave it out"),
        (
            "split = 'side'\ntest_fraction = 0.5",
            "data.test_fraction: the column 'side' splits already; leave one out",
        ),
    ],
)
def test_a_column_has_one_role(column: str, complaint: str) -> None:
    data = f"[data]\nsource = 'csv:a.csv'\ntarget = 'label'\n{column}\n"
    text = MINIMAL.replace('data.source = "sklearn:digits"', "")
    assert problems(text.replace("[[attribution]]", data + "[[attribution]]")) == (complaint,)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("quotas = { sit = { a = { min = 1 } } }", "quotas.sit: there is no metadata column 'sit'"),
        ("budget = { column = 'cents', most = 9 }", "budget.column: there is no metadata column"),
        (
            "budget = [{ column = 'cost', most = 9 }, { column = 'cots', most = 9 }]",
            "budget[1].column: there is no metadata column 'cots'; did you mean 'cost'?",
        ),
    ],
)
def test_a_column_that_no_table_keeps_is_told_before_rows_are_read(
    lines: str, complaint: str
) -> None:
    kept = 'csv:rows.csv"\ndata.target = "label"\ndata.metadata = ["site", "cost"]'
    text = MINIMAL.replace('sklearn:digits"', kept) + PROBLEM + lines
    (found,) = problems(text)
    assert found.startswith(f"problem[0].{complaint}")
    parse_spec(tomllib.loads(text.replace("csv:rows.csv", "python:rows.py:dataset")))


def test_all_mistakes_are_told_at_once() -> None:
    text = (
        FULL.replace("seed = 7", "seed = -7")
        .replace('target = "label"', "")
        .replace("[bank]", "[bank]\nmodles = 3")
        .replace('uses = "published"', 'uses = "publish"')
        .replace('judge_on = "holdout"', 'judge_on = "queries"')
        .replace('device = "cpu"', 'device = "gpu"')
    )
    assert [line.partition(":")[0] for line in problems(text)] == [
        "seed",
        "data.target",
        "bank.modles",
        "problem[0].uses",
        "compute.device",
    ]


def test_the_message_names_the_file_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("seed = -1\nnam = 3\n" + MINIMAL, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value) == (
        f"{path}: 2 problems\n"
        "  seed: found -1; write a number of at least 0\n"
        "  nam: unknown key; did you mean 'name'?"
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name = \n", "not TOML: Invalid value (at line 1, column 8)"),
        (b"a = 1\na = 2\n", "not TOML: Cannot overwrite a value (at line 2, column 6)"),
        (b"name = '\xff'", "byte 8 is not UTF-8; save the file as UTF-8"),
        (None, "there is no such file; check the path"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "spec.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.problems == (complaint,)


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path)


KEYS = ["data", "sets", "model", "train", "bank", "attribution", "problem", "verdict", "compute"]
WORDS = st.text("ab_.", max_size=4)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw may meet a busy machine
@given(data=st.dictionaries(st.sampled_from([*KEYS, "name", "seed", "x"]), VALUES, max_size=5))
def test_no_table_at_all_ends_in_anything_but_a_spec_error(data: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    for line in caught.value.problems:
        assert ": " in line
        assert "\n" not in line
