"""Problems of kind value: what vendors are worth, on the example and on rows made here."""

import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.models import fresh
from attribution.streams import SEED_LIMIT, Purpose, stream
from attribution.training import predict
from attribution.training.train import train_one_reference
from flows.bank import show_bank
from flows.summary import meaning
from schemas.errors import RequestError
from store.connect import run_sql
from store.workspace import Workspace
from tasks.bank import logits_of, outputs_of
from tasks.begin import discard
from tasks.blueprint import Blueprint
from tasks.job import blueprint
from tasks.preflight import open_job, preflight
from tasks.reporting.entries import entries, refuse_undeclared
from tasks.reporting.report import read_findings, summary_json, summary_text
from tasks.retrainings import ids_of
from tasks.value import ERRORS_FILE, VALUES_FILE, models_of
from tests.tasks.pipeline import exchanged, run_stages

VENDORS = Path(__file__).parents[2] / "examples" / "vendors" / "vendors.toml"


def edited(folder: Path, *changes: tuple[str, str]) -> Path:
    """The example with changes, beside a copy of its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "leaves.csv").write_bytes(VENDORS.with_name("leaves.csv").read_bytes())
    (folder / "vendors.toml").write_text(exchanged(VENDORS.read_text(), *changes))
    return folder / "vendors.toml"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    """The example after all its stages."""
    return blueprint(run_stages(VENDORS, tmp_path_factory.mktemp("vendors")))


def rows(plan: Blueprint, sql: str) -> Sequence[tuple[object, ...]]:
    return run_sql(plan.workspace.published, sql, limit=None).rows


def found(plan: Blueprint, name: str) -> tuple[dict[str, float], np.ndarray, dict[str, object]]:
    """Values by vendor, their errors, and the facts of what was sealed."""
    problem = next(each for each in plan.spec.valuations if each.name == name)
    manifest = plan.sealed("values", plan.values.key(problem))
    folder = plan.artifacts.folder(manifest)
    values = np.load(folder / VALUES_FILE).tolist()
    errors = np.load(folder / ERRORS_FILE)
    names = plan.values.players(problem).names
    return dict(zip(names, values, strict=True)), errors, manifest.facts


def artifacts_of(plan: Blueprint, stage: str) -> set[str]:
    return plan.artifacts.keys(stage)


def vendors_of(plan: Blueprint) -> np.ndarray:
    table = plan.dataset.examples.filter(split="train").sort("example_id")
    return np.array([json.loads(text)["vendor"] for text in table["metadata"]])


def test_the_vendor_with_wrong_labels_is_worth_least(done: Blueprint) -> None:
    for problem in ("vendors", "accuracy"):
        last = rows(
            done,
            f"SELECT source, value FROM values_by_source WHERE problem = '{problem}' "
            "ORDER BY value LIMIT 1",
        )
        assert last[0][0] == "dune"
    values, errors, facts = found(done, "vendors")
    assert values["dune"] < -2 * errors[list(values).index("dune")]
    assert "1 of 5 sources made the model worse, most of all 'dune'" in str(facts["sentence"])


def test_shapley_values_share_out_what_all_rows_add_to_none(done: Blueprint) -> None:
    totals = rows(
        done,
        "SELECT sum(p.value), any_value(v.everything - v.nothing), sum(p.n_rows) "
        "FROM player_values AS p JOIN valuations AS v USING (valuation_id) GROUP BY valuation_id",
    )
    assert len(totals) == 2
    for total, gained, n_rows in totals:
        assert total == pytest.approx(gained, abs=1e-9)
        assert n_rows == done.n_train
    shares = rows(done, "SELECT sum(share) FROM values_by_source GROUP BY problem")
    np.testing.assert_allclose(shares, 1.0, atol=1e-9)


def worth_of(plan: Blueprint, vendors: frozenset[str], seed: int) -> float:
    """Mean margin over the queries of the sealed model of some vendors' rows, or untrained."""
    mask = np.isin(vendors_of(plan), list(vendors))
    logits = logits_of(plan, [plan.retraining.id_of(mask, seed)])
    return float(outputs_of(plan, logits, plan.sets.ids("queries"), "margin").mean())


def untrained_worth(plan: Blueprint, seed: int) -> float:
    states = fresh(plan.build_model, seed).state_dict()
    logits = predict(
        plan.build_model,
        {name: state[None] for name, state in states.items()},
        np.array(plan.dataset.test.inputs),
        device="cpu",
    )
    queries = plan.sets.ids("queries")
    return float(outputs_of(plan, logits.numpy(), queries, "margin").mean())


def test_values_are_mean_gains_over_all_orders_of_joining(done: Blueprint) -> None:
    values, errors, facts = found(done, "vendors")
    orders, seeds = list(permutations(values)), training_seeds(done)
    gains = {vendor: np.zeros(len(seeds)) for vendor in values}
    known: dict[frozenset[str], np.ndarray] = {
        frozenset(): np.array([untrained_worth(done, seed) for seed in seeds])
    }
    for order in orders:
        for place, vendor in enumerate(order):
            before, after = frozenset(order[:place]), frozenset(order[: place + 1])
            if after not in known:
                known[after] = np.array([worth_of(done, after, seed) for seed in seeds])
            gains[vendor] += (known[after] - known[before]) / len(orders)
    means = {vendor: float(gain.mean()) for vendor, gain in gains.items()}
    assert means == pytest.approx(values, abs=1e-6)
    # Every coalition was counted, so what is left to vary is the training.
    noise = [gain.std(ddof=1) / np.sqrt(len(seeds)) for gain in gains.values()]
    np.testing.assert_allclose(errors, noise, atol=1e-6)
    (manifest,) = [m for m in done.artifacts.manifests("values") if m.facts == facts]
    assert len(models_of(done, manifest)) == 31 * len(seeds)


def training_seeds(plan: Blueprint) -> list[int]:
    """The seeds that every coalition is trained under."""
    streams = (stream(plan.spec.seed, Purpose.SEEDS, each) for each in range(3))
    return [int(each.integers(SEED_LIMIT)) for each in streams]


def test_a_coalition_is_the_plain_training_of_its_vendors_rows(done: Blueprint) -> None:
    seed, train = training_seeds(done)[1], done.dataset.train
    mask = np.isin(vendors_of(done), ["alder", "dune"])
    state, _ = train_one_reference(
        done.build_model,
        (np.array(train.inputs), train.targets),
        mask=mask,
        seed=seed,
        training=done.training.recipe(),
    )
    model = done.build_model()
    model.load_state_dict(state)
    queries = done.dataset.subset(done.sets.ids("queries"))
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.from_numpy(np.array(queries.inputs))), dim=-1)
    right = logp.gather(1, torch.from_numpy(queries.targets)[:, None])[:, 0]
    margin = right - torch.log(-torch.expm1(right))
    named = frozenset({"alder", "dune"})
    assert worth_of(done, named, seed) == pytest.approx(float(margin.mean()), abs=1e-3)


def test_values_need_no_scores_and_train_nothing_for_them(done: Blueprint) -> None:
    assert not done.spec.attribution
    assert not artifacts_of(done, "checkpoints")
    assert len(done.bank) == 0
    models = {name for chunk in done.artifacts.manifests("bank") for name in ids_of(chunk)}
    # Every coalition but the empty one, under each seed; both problems ask the same models.
    assert len(models) == (2**5 - 1) * 3
    assert rows(done, "SELECT count(*) FROM bank")[0][0] == 0
    assert rows(done, "SELECT device FROM runs")[0][0] == "cpu"
    summary = summary_text(read_findings(done.workspace.published))
    assert "FROM values_by_source" in summary
    assert "harmful_examples" not in summary
    said = dict(meaning(done.loaded))
    assert {"bank", "checkpoints"}.isdisjoint(said)
    with pytest.raises(RequestError, match="has no bank"):
        show_bank(done.loaded, done.workspace, as_json=False)


def test_a_second_run_makes_nothing_again(done: Blueprint) -> None:
    stages = ("bank", "values", "run", "scores", "checkpoints")
    before = {stage: artifacts_of(done, stage) for stage in stages}
    run_stages(VENDORS, done.workspace.root)
    assert {stage: artifacts_of(done, stage) for stage in stages} == before
    assert not artifacts_of(done, "verdict")


def test_another_question_of_the_same_vendors_trains_no_model(
    done: Blueprint, tmp_path: Path
) -> None:
    before = artifacts_of(done, "bank")
    spec = edited(tmp_path, ('method = "shapley" ', 'method = "leave_one_out" '))
    plan = blueprint(run_stages(spec, done.workspace.root, until="values"))
    assert artifacts_of(plan, "bank") == before
    values, _, facts = found(plan, "vendors")
    seeds = training_seeds(plan)
    for vendor, value in values.items():
        others = frozenset(values) - {vendor}
        without = np.mean([worth_of(plan, others, seed) for seed in seeds])
        assert value == pytest.approx(float(facts["everything"]) - without, abs=1e-6)  # type: ignore[arg-type]


def test_refreshed_values_are_retrained_and_are_the_same(tmp_path: Path) -> None:
    spec = edited(tmp_path, ("epochs = 20", "epochs = 2"), ("seeds = 3", "seeds = 1"))
    job = run_stages(spec, tmp_path / "w", until="values")
    plan = blueprint(job)
    values, errors, facts = found(plan, "vendors")
    (first, *_) = plan.artifacts.manifests("values")
    models = set(models_of(plan, first))
    discard(job, ["values"])
    left = {name for chunk in plan.artifacts.manifests("bank") for name in ids_of(chunk)}
    assert models.isdisjoint(left)
    assert not artifacts_of(plan, "values")
    run_stages(spec, tmp_path / "w", until="values")
    again, _, _ = found(plan, "vendors")
    assert again == pytest.approx(values, abs=1e-6)
    assert (errors == 0).all()
    assert "One training seed" in str(facts["sentence"])


ROWS_SPEC = """
name = "rows"
data = { source = "csv:rows.csv", target = "y", test_fraction = 0.4, task = "regression" }
model.build = "linear"
train = { epochs = 3, lr = 0.05, batch_size = 8, seeds = 1 }
bank = { models = 8, alpha = [0.5], seeds = 1 }

[[attribution]]
method = "trak"
output = "squared_error"
projection = { kind = "sparse", dim = 16 }

[[problem]]
kind = "value"
method = "banzhaf"
draws = 60
"""


def test_rows_are_valued_by_sampling_and_less_error_is_worth_more(tmp_path: Path) -> None:
    table = ["x,y"] + [f"{x},{x / 10}" for x in range(1, 41)]
    (tmp_path / "rows.csv").write_text("\n".join(table) + "\n")
    (tmp_path / "spec.toml").write_text(ROWS_SPEC)
    plan = blueprint(run_stages(tmp_path / "spec.toml", tmp_path / "w"))
    values, errors, facts = found(plan, "value")
    assert len(values) == plan.n_train
    assert facts["output"] == "squared_error"
    assert float(facts["nothing"]) < float(facts["everything"]) < 0  # type: ignore[arg-type]
    assert (errors > 0).all()
    assert "from 60 coalitions" in str(facts["sentence"])
    assert rows(plan, "SELECT * FROM values_by_source") == []
    names = rows(plan, "SELECT player::INTEGER FROM player_values ORDER BY 1")
    assert [name for (name,) in names] == plan.dataset.train.example_ids.tolist()
    text = " ".join(summary_text(read_findings(plan.workspace.published)).split())
    assert "WHAT EACH ROW IS WORTH" in text
    assert "mean squared_error on 'queries' with its sign changed" in text


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'by = "vendor"',
            'by = "vendr"',
            "problem 'vendors': there is no metadata column 'vendr'; did you mean 'vendor'?",
        ),
        ('by = "vendor"', "", "230 rows could take 137,403 retrainings"),
        ('output = "accuracy"', 'output = "squared_error"', "has no output 'squared_error'"),
        ('targets = "queries"', "max_retrainings = 90", "5 sources by 'vendor' could take 93 "),
    ],
)
def test_a_wrong_request_gives_one_line_and_trains_nothing(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    spec = edited(tmp_path, (old, new))
    with pytest.raises(RequestError, match="problem '") as refused:
        preflight(open_job(spec, tmp_path / "w"))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    stages = [each.name for each in Workspace(tmp_path / "w").artifacts.iterdir()]
    assert stages == ["data"]


def test_a_row_without_a_source_is_refused(tmp_path: Path) -> None:
    spec = edited(tmp_path)
    text = (tmp_path / "leaves.csv").read_text()
    (tmp_path / "leaves.csv").write_text(text.replace(",echo,", ",,"))
    with pytest.raises(RequestError, match="25 training rows have no 'vendor', example "):
        preflight(open_job(spec, tmp_path / "w"))


def test_the_report_and_mlflow_tell_what_every_vendor_is_worth(done: Blueprint) -> None:
    findings = read_findings(done.workspace.published)
    lines = summary_text(findings, width=80).splitlines()
    start = lines.index("WHAT EACH VENDOR IS WORTH: VENDORS")
    shown = [line.split() for line in lines[start:] if line.startswith("  ")]
    table = {words[0]: words[1:] for words in shown if words[0] in ("alder", "dune")}
    values, errors, _ = found(done, "vendors")
    share = values["dune"] / sum(values.values())
    error = errors[list(values).index("dune")]
    assert table["dune"][1:] == [f"{values['dune']:+.4f}", f"{error:.4f}", f"{share:.0%}"]
    assert "No problem was solved" not in "\n".join(lines)
    document = json.loads(summary_json(done.workspace.published))
    assert document["valuations"][1]["players"][-1]["name"] == "dune"
    parent, children = entries(findings, done.loaded.text)
    refuse_undeclared((parent, *children))
    valued = [child for child in children if child.tags["winnow.kind"] == "value"]
    assert [child.name for child in valued] == ["value: accuracy", "value: vendors"]
    logged = [value for name, value, _ in valued[1].metrics if name == "worth.value"]
    assert logged == sorted(values.values(), reverse=True)
    assert valued[1].params["players"].endswith("dune")
