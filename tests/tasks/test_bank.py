"""The bank knows rows, not banks: whatever is sealed is never trained again.

What was trained is counted in the sealed chunks, each of which lists its retrainings.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import NotFound, RequestError
from schemas.manifest import Manifest
from schemas.spec import BankSpec, load_spec
from store.connect import run_sql
from tasks import bank as banking
from tasks.bank import logits_of, open_bank
from tasks.bank_extension import Extension, Rows, models_to_draw, rows_to_adopt, strangers
from tasks.bank_plan import draw_bank
from tasks.bank_status import bank_status
from tasks.begin import discard
from tasks.blueprint import Blueprint
from tasks.extend import adopt_verdicts, draw_models
from tasks.job import Job, blueprint
from tests.tasks.pipeline import TINY, edited, run_stages

KINDS = ("calibrate", "evaluate")


def chunks(plan: Blueprint) -> list[Manifest]:
    return plan.artifacts.manifests("bank")


def trained(plan: Blueprint) -> set[str]:
    """Names of all models that were trained in a workspace; none of them twice."""
    names = [
        name
        for chunk in chunks(plan)
        if chunk.facts["path"] != "weights"
        for name in chunk.facts["retrainings"]
    ]
    assert len(set(names)) == len(names)
    return {str(name) for name in names}


def bank_after(spec: Path, workspace: Path) -> Blueprint:
    return blueprint(run_stages(spec, workspace, until="bank"))


def judged(spec: Path, workspace: Path) -> Blueprint:
    return blueprint(run_stages(spec, workspace, until="verdict"))


# --- growing, shrinking, losing -------------------------------------------------------------------


def test_a_larger_bank_trains_only_the_rows_that_are_new(tmp_path: Path) -> None:
    small = bank_after(TINY, tmp_path / "w")
    assert len(trained(small)) == 24
    grown = bank_after(edited(tmp_path, ("models = 24", "models = 48")), tmp_path / "w")
    assert len(trained(grown)) == 48
    assert grown.bank.ids[:24] == small.bank.ids
    assert set(grown.bank.ids) == trained(grown)
    at_once = bank_after(edited(tmp_path, ("models = 24", "models = 48")), tmp_path / "other")
    for kind in KINDS:
        one, two = (open_bank(plan, kind, plan.sets.scored, "margin") for plan in (grown, at_once))
        np.testing.assert_array_equal(one.masks, two.masks)
        np.testing.assert_allclose(one.outputs, two.outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        ("models = 24", "models = 16"),
        ("alpha = [0.5, 0.8]", "alpha = [0.8, 0.5]"),
        ("models = 24", "models = 24\ncalibrate = 0.4"),
    ],
)
def test_a_smaller_a_reordered_and_a_shared_out_bank_train_nothing(
    tmp_path: Path, change: tuple[str, str]
) -> None:
    whole = bank_after(TINY, tmp_path / "w")
    before = chunks(whole)
    other = bank_after(edited(tmp_path, change), tmp_path / "w")
    assert chunks(other) == before
    assert set(other.bank.ids) <= set(whole.bank.ids)


def test_another_list_of_sizes_trains_what_it_does_not_share(tmp_path: Path) -> None:
    one_size = bank_after(edited(tmp_path, ("alpha = [0.5, 0.8]", "alpha = [0.5]")), tmp_path / "w")
    shared = set(one_size.bank.ids)
    both = bank_after(TINY, tmp_path / "w")
    assert len(shared & set(both.bank.ids)) == 12
    assert trained(both) == shared | set(both.bank.ids)


def test_a_lost_chunk_alone_is_trained_again(tmp_path: Path) -> None:
    plan = bank_after(TINY, tmp_path / "w")
    before = chunks(plan)
    assert len(before) == 2
    lost = plan.artifacts.folder(before[0])
    (lost / "logits.npy").unlink()
    again = bank_after(TINY, tmp_path / "w")
    after = chunks(again)
    assert [chunk.key for chunk in after] == [chunk.key for chunk in before]
    assert after[1] == before[1]
    assert after[0].created_at > before[0].created_at
    shutil.rmtree(lost)
    assert len(again.retraining.missing()) == 12


def test_a_bank_that_is_refreshed_is_trained_again(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path / "w", until="bank")
    discard(job, ["bank"])
    assert not chunks(blueprint(job))
    assert len(blueprint(job).retraining.missing()) == 24
    assert len(trained(bank_after(TINY, tmp_path / "w"))) == 24


def test_chunks_hold_models_of_one_size_and_no_more_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banking, "CHUNK_MODELS", 5)
    plan = bank_after(TINY, tmp_path / "w")
    place = {name: row for row, name in enumerate(plan.bank.ids)}
    sizes = plan.bank.masks.sum(axis=1)
    held = [[place[str(name)] for name in chunk.facts["retrainings"]] for chunk in chunks(plan)]
    assert sorted(len(rows) for rows in held) == [2, 2, 5, 5, 5, 5]
    assert all(len(set(sizes[rows])) == 1 for rows in held)


# --- rows to observe ------------------------------------------------------------------------------


def measured(folder: Path, tests: range) -> Path:
    """A spec of 60 training rows and some test rows, always the same ones."""
    rng = np.random.default_rng(0)
    table = ["a,b,kind,part"]
    for row, (a, b) in enumerate(rng.normal(size=(200, 2))):
        if row < 60 or row - 60 in tests:
            table.append(f"{a:.4f},{b:.4f},{'xyz'[row % 3]},{'train' if row < 60 else 'test'}")
    (folder / "rows.csv").write_text("\n".join(table) + "\n")
    return edited(
        folder,
        ('source = "sklearn:wine"', 'source = "csv:rows.csv"\ntarget = "kind"\nsplit = "part"'),
        ("test_fraction = 0.4\ncorrupt = { labels = 0.1 }\n", ""),
    )


def test_fewer_test_rows_are_read_and_more_need_a_forward_pass_only(tmp_path: Path) -> None:
    whole = bank_after(measured(tmp_path, range(40)), tmp_path / "w")
    before, names = chunks(whole), whole.bank.ids
    logits = logits_of(whole, names)
    fewer = bank_after(measured(tmp_path, range(10, 30)), tmp_path / "w")
    assert fewer.bank.ids == names
    assert chunks(fewer) == before
    np.testing.assert_array_equal(logits_of(fewer, names), logits[:, 10:30])
    more = bank_after(measured(tmp_path, range(60)), tmp_path / "w")
    assert len(trained(more)) == 24
    assert sum(chunk.facts["path"] == "weights" for chunk in chunks(more)) == 2
    observed = logits_of(more, names)
    assert observed.shape[1] == 60
    np.testing.assert_allclose(observed[:, :40], logits, rtol=1e-5, atol=1e-6)
    at_once = bank_after(measured(tmp_path, range(60)), tmp_path / "other")
    np.testing.assert_allclose(observed, logits_of(at_once, names), rtol=1e-5, atol=1e-6)


def test_models_too_large_to_keep_are_trained_again_for_new_test_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banking, "KEPT_BYTES", 0)
    plan = bank_after(measured(tmp_path, range(40)), tmp_path / "w")
    assert not any(chunk.facts["weights"] for chunk in chunks(plan))
    bank_after(measured(tmp_path, range(60)), tmp_path / "w")
    assert len(chunks(plan)) == 4
    assert {chunk.facts["path"] for chunk in chunks(plan)} == {"compiled"}


def test_checkpoints_of_the_bank_are_kept_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banking, "KEPT_BYTES", 0)
    plain = bank_after(TINY, tmp_path / "w")
    assert len(chunks(plain)) == 2
    spec = edited(tmp_path, ('method = "trak"', 'method = "trak"\ncheckpoints = "bank"'))
    plan = bank_after(spec, tmp_path / "w")
    found = plan.scores.weights(plan.spec.attribution[0]) or ()
    assert len(found) == plan.spec.train.seeds
    # Their logits were known, their weights were not.
    again = [name for chunk in chunks(plan) for name in chunk.facts["weights"]]
    assert sorted(map(str, again)) == sorted(plan.bank.checkpoint_ids)


# --- verdicts -------------------------------------------------------------------------------------

SECOND = """
[[problem]]
name = "smaller"
kind = "select"
uses = "trak"
size = 0.7
aimed = 0
"""


def test_arms_that_are_known_are_not_trained_again(tmp_path: Path) -> None:
    known = trained(judged(TINY, tmp_path / "w"))
    assert len(known) == 24 + 3 * 3
    spec = tmp_path / "spec.toml"
    spec.write_text(TINY.read_text().replace("[verdict]", SECOND + "\n[verdict]"))
    plan = blueprint(run_stages(spec, tmp_path / "w"))
    # Another choice and random rows of another size; models of all rows are there.
    assert len(trained(plan)) == len(known) + 2 * 3
    arms = run_sql(
        plan.workspace.published,
        "SELECT kind, count(*) FROM bank WHERE kind LIKE 'verdict:%' GROUP BY 1 ORDER BY 1",
    ).rows
    assert arms == [("verdict:all", 3), ("verdict:chosen", 6), ("verdict:random", 6)]
    twice = "SELECT count(*) - count(DISTINCT (retrain_id, query_id, output)) FROM bank_outputs"
    assert run_sql(plan.workspace.published, twice).rows == [(0,)]


def test_a_refreshed_verdict_trains_its_models_again(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path / "w", until="verdict")
    plan = blueprint(job)
    bank, models = set(plan.bank.ids), trained(plan)
    discard(job, ["verdict"])
    assert trained(plan) == bank
    assert trained(judged(TINY, tmp_path / "w")) == models


def test_models_of_a_verdict_that_were_lost_are_trained_for_the_ledger(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path / "w")
    plan = blueprint(job)
    models = trained(plan)
    names, _ = strangers(plan)
    for chunk in plan.retraining.sealed.look().chunks(names):
        plan.artifacts.discard("bank", chunk.key)
    plan.workspace.published.unlink()
    assert trained(blueprint(run_stages(TINY, tmp_path / "w"))) == models


# --- extensions -----------------------------------------------------------------------------------


def verdict_names(plan: Blueprint) -> set[str]:
    """Names of the models that the plan's own verdicts compare."""
    keys = [plan.problems.verdict_key(problem) for problem in plan.spec.selections]
    names = [plan.sealed("verdict", key).facts["retrainings"] for key in keys]
    return {str(name) for group in names for name in group}


def apart(plan: Blueprint) -> None:
    """What tunes and fits, what evaluates and what judges have no model in common."""
    bank = plan.bank
    tuning, evaluating = (set(bank.ids_of(bank.rows(kind))) for kind in KINDS)
    judging = verdict_names(plan)
    assert tuning.isdisjoint(evaluating)
    assert tuning.isdisjoint(judging)
    assert evaluating.isdisjoint(judging)


def test_a_bank_that_was_extended_stays_so_and_the_next_run_works_with_it(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path, until="verdict")
    first = blueprint(job)
    assert draw_models.fn(job, 48) is not None
    plan = judged(TINY, tmp_path)
    assert len(plan.bank) == 48
    assert plan.run_key() != first.run_key()
    # A choice that stays the same is not trained again; another one is.
    assert len(trained(plan)) - 48 in (9, 12)
    evaluated = plan.sealed("lds", plan.scores.lds_key(plan.spec.attribution[0])).facts["rows"]
    assert {row["n_masks"] for row in evaluated} == {6, 12}
    before = chunks(plan), plan.artifacts.manifests("verdict")
    again = judged(TINY, tmp_path)
    assert (chunks(again), again.artifacts.manifests("verdict")) == before
    written = bank_after(edited(tmp_path, ("models = 24", "models = 48")), tmp_path)
    assert written.retraining.extension.acts == 0
    assert written.bank.ids == plan.bank.ids
    assert written.bank.kinds.tolist() == plan.bank.kinds.tolist()


def test_an_extension_that_was_killed_may_be_asked_for_again(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path, until="bank")
    assert draw_models.fn(job, 48) is not None  # and killed before anything was trained
    again = Job(spec=job.spec, workspace=job.workspace, data=job.data)
    assert models_to_draw(blueprint(again), 48) == 48
    assert draw_models.fn(again, 48) is None
    assert len(trained(bank_after(TINY, tmp_path))) == 48
    done = Job(spec=job.spec, workspace=job.workspace, data=job.data)
    with pytest.raises(RequestError, match="has 48 drawn models already"):
        models_to_draw(blueprint(done), 48)


def test_adopted_models_tune_and_fit_and_never_judge(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path, until="verdict")
    first = blueprint(job)
    adopted = verdict_names(first)
    apart(first)
    adopt_verdicts.fn(job)
    plan = blueprint(run_stages(TINY, tmp_path))
    apart(plan)
    tuning, evaluating = (plan.bank.ids_of(plan.bank.rows(kind)) for kind in KINDS)
    assert adopted < set(tuning)
    assert evaluating == first.bank.ids_of(first.bank.rows("evaluate"))
    assert len(trained(plan)) == 24 + 2 * 9
    kinds = run_sql(plan.workspace.published, "SELECT kind FROM bank WHERE alpha IS NULL").rows
    assert [kind for (kind,) in kinds].count("calibrate") == 9
    before = chunks(plan), plan.artifacts.manifests("run")
    again = blueprint(run_stages(TINY, tmp_path))
    assert (chunks(again), again.artifacts.manifests("run")) == before


def test_whatever_is_adopted_later_models_stay_apart(tmp_path: Path) -> None:
    """Also where another [bank] section starts from its spec and adopts what others judged by."""
    adopt_verdicts.fn(run_stages(TINY, tmp_path, until="verdict"))
    apart(judged(TINY, tmp_path))
    wider = edited(tmp_path, ("models = 24", "models = 32"))
    fresh = run_stages(wider, tmp_path, until="verdict")
    assert len(blueprint(fresh).bank) == 32
    apart(blueprint(fresh))
    adopt_verdicts.fn(fresh)
    apart(judged(wider, tmp_path))


def test_there_must_be_something_to_adopt(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path, until="bank")
    with pytest.raises(NotFound, match="winnow run"):
        rows_to_adopt(blueprint(job))


@pytest.mark.parametrize(
    ("models", "found"),
    [(24, "24 drawn models already"), (8, "already"), (50, "write 48 or 52"), (-1, "already")],
)
def test_a_number_of_models_that_makes_no_bank_is_refused(
    tmp_path: Path, models: int, found: str
) -> None:
    job = run_stages(TINY, tmp_path, until="bank")
    with pytest.raises(RequestError, match=found):
        models_to_draw(blueprint(job), models)


def test_the_status_counts_models_by_kind_origin_and_size(tmp_path: Path) -> None:
    adopt_verdicts.fn(run_stages(TINY, tmp_path, until="verdict"))
    found = bank_status(judged(TINY, tmp_path))
    assert (found["models"], found["drawn"], found["adopted"], found["missing"]) == (33, 24, 9, 0)
    held = [entry for entry in found["rows"] if entry["kind"] != "verdict"]
    assert sum(entry["models"] for entry in held) == 33
    assert {e["origin"] for e in held} == {
        "drawn",
        "verdict:all",
        "verdict:chosen",
        "verdict:random",
    }
    assert {entry["alpha"] for entry in held if entry["origin"] == "drawn"} == {0.5, 0.8}
    assert sum(e["models"] for e in found["rows"] if e["kind"] == "verdict") == 9
    assert found["cost"]["models"] == 33
    assert found["resolves"]["masks"] == 6
    assert 0 < found["resolves"]["half_width"] < 1
    assert len(found["resolves"]["ceilings"]) == 3


# --- the plan -------------------------------------------------------------------------------------

N = 12
sections = st.builds(
    lambda alpha, subsets, seeds, calibrate: {
        "alpha": alpha,
        "models": len(alpha) * subsets * seeds,
        "seeds": seeds,
        "calibrate": calibrate,
    },
    st.lists(st.sampled_from([0.25, 0.5, 0.9]), min_size=1, max_size=3, unique=True),
    st.integers(8, 12),
    st.integers(1, 3),
    st.sampled_from([0.3, 0.5, 0.7]),
)


def name_of(mask: np.ndarray, seed: int) -> str:
    return f"{mask.tobytes().hex()}:{seed}"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(section=sections, more=st.integers(1, 4), seed=st.integers(0, 3), data=st.data())
def test_rows_keep_their_kind_and_kinds_share_no_subset(
    section: dict[str, object], more: int, seed: int, data: st.DataObject
) -> None:
    bank = BankSpec.model_validate(section)
    spec = load_spec(TINY).spec.model_copy(update={"bank": bank, "seed": seed})
    plain = draw_bank(spec, N, name=name_of, extension=Extension())
    wanted = bank.models + more * len(bank.alpha) * bank.seeds
    # Subsets on which the bank evaluates are offered, too: of 12 rows many are the same.
    picked = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=6))
    masks = np.concatenate([plain.masks[picked], np.ones((1, N), dtype=bool)])
    rows = Rows(
        masks=masks,
        seeds=np.arange(len(masks), dtype=np.int64),
        origins=np.full(len(masks), "verdict:chosen"),
    )
    extended = draw_bank(
        spec, N, name=name_of, extension=Extension(models=wanted, adopted=(rows,), acts=2)
    )
    assert extended.ids[: len(plain)] == plain.ids
    np.testing.assert_array_equal(extended.kinds[: len(plain)], plain.kinds)
    of_kind = {
        kind: {mask.tobytes() for mask in extended.masks[extended.rows(kind)]} for kind in KINDS
    }
    adopted = {mask.tobytes() for mask in extended.masks[extended.drawn :]}
    assert adopted.isdisjoint(of_kind["evaluate"])
    assert np.ones(N, dtype=bool).tobytes() in adopted
    ids = [set(extended.ids_of(extended.rows(kind))) for kind in of_kind]
    assert ids[0].isdisjoint(ids[1])
    for size in bank.alpha:
        own = plain.kinds[plain.alpha == size]
        assert np.count_nonzero(own == "calibrate") == (
            round(bank.subsets * bank.calibrate) * bank.seeds
        )
