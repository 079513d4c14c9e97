"""The stages of a run, on real artifacts and a real ledger, without a server."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from attribution.estimators.resampling import empirical_influence, fit_datamodel
from schemas.errors import ShapeError
from schemas.manifest import Manifest
from store.artifacts import Artifacts
from store.connect import run_sql
from store.workspace import Workspace
from tasks import train as training
from tasks.bank import open_bank
from tasks.blueprint import Blueprint
from tasks.featurize import feature_seconds, load_weights
from tasks.job import blueprint
from tasks.outbox import pictures
from tasks.preflight import open_job, preflight
from tasks.progress import StageProgress, listening
from tasks.reporting.report import read_findings, summary_text
from tasks.score import calibrating_bank, load_scores
from tests.tasks.pipeline import TINY, edited, exchanged, run_stages


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    """The tiny example after all its stages."""
    return blueprint(run_stages(TINY, tmp_path_factory.mktemp("tiny")))


def scalar(plan: Blueprint, sql: str) -> object:
    return run_sql(plan.workspace.published, sql).rows[0][0]


def sealed(workspace: Path) -> dict[tuple[str, str], Manifest]:
    artifacts = Artifacts(Workspace(workspace).artifacts)
    stages = [each.name for each in artifacts.root.iterdir() if each.name != "unfinished"]
    return {(m.stage, m.key): m for stage in stages for m in artifacts.manifests(stage)}


def test_a_run_ends_in_the_published_tables(done: Blueprint) -> None:
    queries, train = len(done.sets.scored), done.n_train
    assert scalar(done, "SELECT count(*) FROM scores") == queries * train
    assert scalar(done, "SELECT count(*) FROM example_effects") == train
    assert scalar(done, "SELECT count(*) FROM bank WHERE kind = 'evaluate'") == 12
    assert scalar(done, "SELECT count(*) FROM bank WHERE kind LIKE 'verdict:%'") == 9
    assert scalar(done, "SELECT count(*) FROM solution_rows WHERE chosen") == round(0.9 * train)
    assert scalar(done, "SELECT count(*) FROM verdicts") == 3
    assert scalar(done, "SELECT run_id FROM runs") == done.run_id()


def test_a_second_run_makes_nothing_again(done: Blueprint) -> None:
    before = sealed(done.workspace.root)
    run_stages(TINY, done.workspace.root)
    assert sealed(done.workspace.root) == before


def test_the_published_scores_are_those_that_were_sealed(done: Blueprint) -> None:
    attribution = done.spec.attribution[0]
    manifest = done.sealed("scores", done.scores.key(attribution) or "")
    scores = np.load(done.artifacts.folder(manifest) / "scores.npy")
    rows = run_sql(
        done.workspace.published,
        "SELECT score FROM scores ORDER BY query_id, train_id",
        limit=None,
    ).rows
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32).ravel(), scores.ravel())


def test_what_tunes_never_evaluates(done: Blueprint) -> None:
    bank = done.bank
    tuning = {mask.tobytes() for mask in bank.masks[bank.rows("calibrate")]}
    evaluating = {mask.tobytes() for mask in bank.masks[bank.rows("evaluate")]}
    assert tuning.isdisjoint(evaluating)
    judged = set(done.sets.ids(done.spec.verdict.judge_on).tolist())
    assert judged.isdisjoint(done.sets.ids("queries").tolist())


def test_bank_rows_keep_their_masks_and_seeds_through_the_chunks(done: Blueprint) -> None:
    opened = open_bank(done, "evaluate", done.sets.scored, "margin")
    rows = done.bank.rows("evaluate")
    np.testing.assert_array_equal(opened.masks, done.bank.masks[rows])
    place = 3
    table = run_sql(
        done.workspace.published,
        "SELECT value FROM bank_outputs JOIN bank USING (retrain_id) "
        f"WHERE retrain_id = '{done.bank.ids[rows[place]]}' ORDER BY query_id",
        limit=None,
    ).rows
    published = np.array(table, dtype=np.float32).ravel()
    np.testing.assert_array_equal(published, opened.outputs[place])


def test_nothing_is_compared_with_itself(done: Blueprint) -> None:
    rows = run_sql(
        done.workspace.published,
        "SELECT predicted_change, observed_change FROM verdicts WHERE arm = 'all'",
    ).rows
    assert rows == [(None, None)]


def test_another_verdict_repeats_only_the_verdict(done: Blueprint, tmp_path: Path) -> None:
    before = sealed(done.workspace.root)
    spec = edited(tmp_path, ("seeds = 3", "seeds = 4"))
    run_stages(spec, done.workspace.root)
    after = sealed(done.workspace.root)
    made = [after[place] for place in after.keys() - before.keys()]
    assert {manifest.stage for manifest in made} == {"bank", "run", "verdict"}
    # One more seed of each arm; the other three are known.
    trained = [m.facts["retrainings"] for m in made if m.stage == "bank"]
    assert sum(len(names) for names in trained) == 3


def scores_key(spec: Path, workspace: Path) -> str | None:
    plan = blueprint(preflight(open_job(spec, workspace)))
    return plan.scores.key(plan.spec.attribution[0])


@pytest.mark.parametrize(
    "change",
    [
        ("dim = 64", "dim = 32"),
        ('kind = "sparse"', 'kind = "rademacher"'),
        ('method = "trak"', 'method = "trak"\ncurvature = "after-kernel"'),
        ('method = "trak"', 'method = "trak"\ndamping = 0.5'),
        ('method = "trak"', 'method = "trak"\noutput = "loss"'),
        ('method = "trak"', 'method = "trak"\nleverage = true'),
        ("models = 24", "models = 28"),  # the bank tunes the damping
    ],
    ids=lambda change: change[1].splitlines()[-1],
)
def test_scores_are_named_by_all_that_makes_them(
    change: tuple[str, str], done: Blueprint, tmp_path: Path
) -> None:
    before = done.scores.key(done.spec.attribution[0])
    assert scores_key(edited(tmp_path, change), done.workspace.root) != before


def test_scores_are_not_named_by_what_they_are_called(done: Blueprint, tmp_path: Path) -> None:
    spec = edited(tmp_path, ('name = "trak"', 'name = "mine"'), ('uses = "trak"', 'uses = "mine"'))
    key = scores_key(spec, done.workspace.root)
    assert key == done.scores.key(done.spec.attribution[0])


def test_scores_are_named_by_the_checkpoint_itself(done: Blueprint, tmp_path: Path) -> None:
    first, second = (
        done.artifacts.folder(done.sealed("checkpoints", key)) / "model.safetensors"
        for key in done.training.checkpoint_keys
    )
    mine = tmp_path / "mine.safetensors"
    spec = edited(tmp_path, ('build = "linear"', f'build = "linear"\ncheckpoints = ["{mine}"]'))
    keys = []
    for weights in (first, second, first):  # another content under the same name, and back
        mine.write_bytes(weights.read_bytes())
        run_stages(spec, tmp_path / "w", until="checkpoints")
        keys.append(scores_key(spec, tmp_path / "w"))
    assert None not in keys
    assert keys[0] == keys[2] != keys[1]


def test_appended_rows_leave_the_checkpoints_pinned(tmp_path: Path) -> None:
    table = ["length,width,kind"]
    table += [f"{i % 3 + i * 0.01:.3f},{i * 0.02:.3f},{'abc'[i % 3]}" for i in range(120)]
    (tmp_path / "rows.csv").write_text("\n".join(table) + "\n")
    spec = edited(
        tmp_path,
        ('source = "sklearn:wine"', 'source = "csv:rows.csv"\ntarget = "kind"'),
    )
    workspace = tmp_path / "w"
    run_stages(spec, workspace, until="features")
    before = sealed(workspace)
    (tmp_path / "rows.csv").write_text("\n".join([*table, "0.5,1.5,a", "1.5,0.2,b"]) + "\n")
    run_stages(spec, workspace, until="features")
    made = [stage for stage, _ in sealed(workspace).keys() - before.keys()]
    assert "data" in made
    assert "checkpoints" not in made


def test_an_interrupted_training_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY_SECONDS", 0.0)

    def stop(progress: StageProgress) -> None:
        if progress.stage == "checkpoints" and progress.done == 5:
            raise KeyboardInterrupt

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    with listening(stop), pytest.raises(KeyboardInterrupt):
        run_stages(TINY, broken, until="checkpoints")
    assert list((broken / "artifacts" / "unfinished").iterdir())
    epochs = []
    with listening(lambda progress: epochs.append((progress.stage, progress.done))):
        run_stages(TINY, broken, until="checkpoints")
    assert min(done for stage, done in epochs if stage == "checkpoints" and done) >= 5
    assert not list((broken / "artifacts" / "unfinished").iterdir())
    run_stages(TINY, whole, until="checkpoints")
    for ours, theirs in zip(weights(broken), weights(whole), strict=True):
        for name, value in ours.items():
            assert value.equal(theirs[name])


def weights(workspace: Path) -> Iterator[dict[str, "object"]]:
    for path in sorted((workspace / "artifacts" / "checkpoints").glob("*/model.safetensors")):
        yield load_file(path)


def test_ones_own_weights_replace_training(tmp_path: Path) -> None:
    first = tmp_path / "first"
    plan = blueprint(run_stages(TINY, first, until="checkpoints"))
    manifest = plan.sealed("checkpoints", plan.training.checkpoint_keys[0])
    mine = plan.artifacts.folder(manifest) / "model.safetensors"
    spec = edited(tmp_path, ('build = "linear"', f'build = "linear"\ncheckpoints = ["{mine}"]'))
    own = blueprint(run_stages(spec, tmp_path / "second", until="features"))
    (adopted,) = own.scores.weights(own.spec.attribution[0]) or ()
    kept = load_file(own.artifacts.folder(adopted.manifest) / "model.safetensors")
    for name, value in load_file(mine).items():
        assert kept[name].equal(value)


def test_checkpoints_of_the_bank_are_models_of_its_masks(tmp_path: Path) -> None:
    spec = edited(tmp_path, ('method = "trak"', 'method = "trak"\ncheckpoints = "bank"'))
    plan = blueprint(run_stages(spec, tmp_path / "w", until="scores"))
    assert not plan.training.needs_checkpoints
    weights_found = plan.scores.weights(plan.spec.attribution[0]) or ()
    assert len(weights_found) == plan.spec.train.seeds
    assert set(plan.bank.kinds[plan.bank.checkpoint_rows]) == {"calibrate"}
    assert {each.manifest.stage for each in weights_found} == {"bank"}


def test_a_spec_without_a_problem_is_scored_and_evaluated(tmp_path: Path) -> None:
    text = TINY.read_text()
    spec = tmp_path / "spec.toml"
    spec.write_text(text[: text.index("[[problem]]")])
    plan = blueprint(run_stages(spec, tmp_path / "w"))
    assert scalar(plan, "SELECT count(*) FROM solutions") == 0
    assert scalar(plan, "SELECT count(*) FROM lds") == 3


def test_preflight_trains_nothing(tmp_path: Path) -> None:
    preflight(open_job(TINY, tmp_path))
    assert {stage for stage, _ in sealed(tmp_path)} == {"data"}


METHODS = """
[[attribution]]
name = "ggn"
method = "trak"
curvature = "ggn"
projection = { dim = 64 }

[[attribution]]
method = "influence"

[[attribution]]
method = "ekfac"

[[attribution]]
method = "graddot"
checkpoints = "bank"

[[attribution]]
method = "gradcos"

[[attribution]]
method = "tracin"
epochs = [4, 10]

[[attribution]]
method = "gas"
epochs = [4, 10]

[[attribution]]
method = "source"
epochs = [4, 10]

[[attribution]]
method = "logra"
dim = 64

[[attribution]]
method = "datainf"

[[attribution]]
method = "metagradient"

[[attribution]]
method = "representer"

[[attribution]]
method = "similarity"

[[attribution]]
method = "knn_shapley"
"""


def test_every_method_is_scored_evaluated_and_may_decide(tmp_path: Path) -> None:
    spec = edited(
        tmp_path, ("[[problem]]", METHODS + "\n[[problem]]"), ('"trak"\nsize', '"ekfac"\nsize')
    )
    plan = blueprint(run_stages(spec, tmp_path / "w"))
    rows = run_sql(
        plan.workspace.published, "SELECT name, max(n_queries) FROM lds_by_method GROUP BY 1"
    ).rows
    assert {name for name, _ in rows} == {a.name for a in plan.spec.attribution}
    assert scalar(plan, "SELECT count(DISTINCT attribution_id) FROM scores") == 15
    snapshots = plan.scores.weights(plan.spec.attribution_named("tracin")) or ()
    assert [each.manifest.facts["epoch"] for each in snapshots] == [4, 10]


def test_a_linear_model_may_leave_its_rows_out_in_closed_form(tmp_path: Path) -> None:
    closed = '\n[[attribution]]\nmethod = "alo"\n\n[[attribution]]\nmethod = "jackknife"\n'
    spec = edited(tmp_path, ("\n[[problem]]", f"{closed}\n[[problem]]"))
    text = spec.read_text()
    start = text.index("[model]")
    end = text.index("[train]")
    spec.write_text(text[:start] + '[model]\nbuild = "linear"\n\n' + text[end:])
    plan = blueprint(run_stages(spec, tmp_path / "w", until="lds"))
    scores = {
        name: np.load(
            plan.artifacts.folder(
                plan.sealed("scores", plan.scores.key(plan.spec.attribution_named(name)))
            )
            / "scores.npy"
        )
        for name in ("alo", "jackknife")
    }
    correlation = np.corrcoef(scores["alo"].ravel(), scores["jackknife"].ravel())[0, 1]
    assert 0.8 < correlation < 1


def test_the_last_snapshot_of_a_run_is_its_checkpoint(tmp_path: Path) -> None:
    spec = edited(tmp_path, ("[[problem]]", METHODS + "\n[[problem]]"))
    plan = blueprint(run_stages(spec, tmp_path / "w", until="checkpoints"))
    last = (plan.scores.weights(plan.spec.attribution_named("tracin")) or ())[-1]
    first = (plan.scores.weights(plan.spec.attribution_named("trak")) or ())[0]
    for name, value in load_weights(plan, last).items():
        assert load_weights(plan, first)[name].equal(value)


def test_several_attributions_make_one_bake_off_in_equal_seconds(tmp_path: Path) -> None:
    cosines = '\n[[attribution]]\nname = "cosines"\nmethod = "gradcos"\n'
    twin = cosines.replace("cosines", "kernel").replace("gradcos", "trak")
    twin += 'curvature = "after-kernel"\nprojection = { kind = "sparse", dim = 64 }\n'
    spec = edited(tmp_path, ("\n[[problem]]", f"{cosines}{twin}\n[[problem]]"))
    plan = blueprint(run_stages(spec, tmp_path / "ws"))
    figure = pictures(plan)["bake-off"]
    names = {text.get_text().split("  ")[0] for text in figure.axes[0].texts}
    assert {"trak", "cosines", "kernel"} <= names
    # Sketches are made once and count for both methods that use them.
    features = feature_seconds(plan, plan.spec.attribution_named("trak"))
    assert features == feature_seconds(plan, plan.spec.attribution_named("kernel")) > 0
    for name in ("trak", "kernel"):
        seconds = scalar(plan, f"SELECT seconds FROM attributions WHERE name = '{name}'")
        assert seconds > features


def test_one_set_of_scores_is_judged_on_each_share_of_a_bank_with_three(tmp_path: Path) -> None:
    shares = ("alpha = [0.5, 0.8]", "alpha = [0.25, 0.5, 0.75]")
    spec = edited(tmp_path, ("models = 24", "models = 48"), shares)
    plan = blueprint(run_stages(spec, tmp_path / "ws"))
    findings = read_findings(plan.workspace.published)
    (method,) = findings.methods
    assert [found.alpha for found in method.fidelity] == [None, 0.25, 0.5, 0.75]
    parts = [found.lds.mean for found in method.fidelity]
    assert parts[0] == pytest.approx(np.mean(parts[1:]))
    table = summary_text(findings)
    assert all(f" {share} " in table for share in ("25%", "50%", "75%"))


BANK_ONLY = """
[[attribution]]
name = "lasso"
method = "datamodel"

[[attribution]]
name = "ridge"
method = "datamodel"
penalty = "ridge"
strength = 1.0

[[attribution]]
method = "empirical_influence"

[[problem]]"""


def bank_only(folder: Path) -> Path:
    """A spec of methods that read the bank alone, on a bank that is large enough."""
    text = TINY.read_text()
    first = text.index("[[attribution]]")
    text = text[:first] + BANK_ONLY.lstrip() + text[text.index("[[problem]]") + 11 :]
    path = folder / "spec.toml"
    path.write_text(exchanged(text, ("models = 24", "models = 80"), ('"trak"', '"lasso"')))
    return path


def test_methods_that_read_the_bank_alone_train_no_checkpoint_and_may_decide(
    tmp_path: Path,
) -> None:
    plan = blueprint(run_stages(bank_only(tmp_path), tmp_path / "w"))
    assert {stage for stage, _ in sealed(tmp_path / "w")}.isdisjoint({"checkpoints", "features"})
    assert plan.keys("checkpoints") == plan.keys("features") == []
    rows = run_sql(
        plan.workspace.published,
        "SELECT name, max(n_queries), max(n_masks) FROM lds_by_method GROUP BY 1",
    ).rows
    assert {name for name, _, _ in rows} == {"lasso", "ridge", "empirical_influence"}
    assert scalar(plan, "SELECT count(*) FROM verdicts") == 3
    facts = {a.name: plan.sealed("scores", plan.scores.key(a)).facts for a in plan.spec.attribution}
    # A problem uses the first: a quarter of its subsets is left for calibrating.
    assert "fitted to 16 masks (32 models)" in str(facts["lasso"]["damping_from"])
    assert "fitted to 20 masks (40 models)" in str(facts["ridge"]["damping_from"])


def test_scores_fitted_to_the_bank_are_those_of_its_calibrating_models_alone(
    tmp_path: Path,
) -> None:
    plan = blueprint(run_stages(bank_only(tmp_path), tmp_path / "w", until="scores"))
    bank = open_bank(plan, "calibrate", plan.sets.scored, "margin")
    ridge, empirical = plan.spec.attribution[1:]
    want = fit_datamodel(bank.masks, bank.outputs, penalty="ridge", strength=1.0).weights
    np.testing.assert_allclose(load_scores(plan, ridge), want, rtol=1e-5, atol=1e-7)
    want = empirical_influence(bank.masks, bank.outputs, alpha=bank.alpha)[0]
    np.testing.assert_allclose(load_scores(plan, empirical), want, rtol=1e-5, atol=1e-7)


def test_what_scores_were_fitted_to_does_not_calibrate_them(tmp_path: Path) -> None:
    plan = blueprint(run_stages(bank_only(tmp_path), tmp_path / "w", until="bank"))
    lasso = plan.spec.attribution[0]
    whole = open_bank(plan, "calibrate", plan.sets.scored, "margin")
    fitted, _ = whole.split(plan.scores.fitted_share(lasso), plan.spec.seed)
    calibrating = calibrating_bank(plan, lasso, plan.sets.scored)
    both = [{mask.tobytes() for mask in part.masks} for part in (fitted, calibrating)]
    assert both[0].isdisjoint(both[1])
    assert len(fitted) + len(calibrating) == len(whole) == 40


def test_scores_fitted_to_the_bank_follow_its_rows(tmp_path: Path) -> None:
    first = bank_only(tmp_path)
    plan = blueprint(run_stages(first, tmp_path / "w", until="bank"))
    (tmp_path / "more").mkdir()
    other = bank_only(tmp_path / "more")
    other.write_text(other.read_text().replace("models = 80", "models = 88"))
    more = blueprint(run_stages(other, tmp_path / "w", until="bank"))
    for a, b in zip(plan.spec.attribution, more.spec.attribution, strict=True):
        assert plan.scores.key(a) != more.scores.key(b)


def test_a_bank_too_small_to_be_fitted_to_is_refused_before_training(tmp_path: Path) -> None:
    spec = bank_only(tmp_path)
    spec.write_text(spec.read_text().replace("models = 80", "models = 24"))
    with pytest.raises(ShapeError, match="'lasso' is fitted to the bank, of which 6 subsets"):
        preflight(open_job(spec, tmp_path / "w"))
    assert {stage for stage, _ in sealed(tmp_path / "w")} == {"data"}
