"""Subsets that are chosen for what they tell calibrate, evaluate nothing, and are accounted for."""

from pathlib import Path

import numpy as np
import pytest

from optimize.design import bought, next_masks
from optimize.surrogate import calibrate
from schemas.errors import NotFound, RequestError
from tasks.bank import extend_bank, open_bank, pending_chunks
from tasks.bank_design import is_to_choose
from tasks.bank_status import bank_status
from tasks.blueprint import Blueprint
from tasks.extend import appraise, choose_next, reopened
from tasks.job import Job, blueprint
from tasks.score import load_scores
from tests.tasks.pipeline import TINY, run_stages
from tests.tasks.test_bank import apart, chunks, edited, trained


def extended(job: Job, count: int) -> Blueprint:
    """All that `winnow bank extend --next` does, without a server."""
    choose_next.fn(job, count)
    after = reopened(job)
    for chunk in pending_chunks(after):
        extend_bank.fn(after, chunk)
    appraise.fn(after)
    return blueprint(after)


def fresh(job: Job) -> Job:
    """The job as another process sees it."""
    return reopened(job)


def test_chosen_subsets_calibrate_and_the_next_run_works_with_them_once(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path, until="verdict")
    first = blueprint(job)
    known = trained(first)
    grown = extended(job, 4)
    assert len(trained(grown)) == len(known) + 4
    assert grown.bank.ids[: len(first.bank)] == first.bank.ids
    assert grown.bank.origins[-4:].tolist() == ["next"] * 4
    assert grown.bank.kinds[-4:].tolist() == ["calibrate"] * 4
    assert set(grown.bank.masks[-4:].sum(axis=1)) <= set(first.bank.masks.sum(axis=1))
    evaluating = [plan.bank.ids_of(plan.bank.rows("evaluate")) for plan in (first, grown)]
    assert evaluating[0] == evaluating[1]
    plan = blueprint(run_stages(TINY, tmp_path))
    assert plan.run_key() != first.run_key()
    apart(plan)
    before = chunks(plan), plan.artifacts.manifests("run")
    again = blueprint(run_stages(TINY, tmp_path))
    assert (chunks(again), again.artifacts.manifests("run")) == before


def test_the_receipt_is_what_the_surrogates_of_both_banks_say(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path, until="scores")
    first = blueprint(job)
    grown = extended(job, 4)
    (receipt,) = bank_status(grown)["bought"]
    assert (receipt["models"], receipt["output"], receipt["set"]) == (4, "margin", "queries")
    scores = load_scores(first, first.spec.attribution[0])[first.sets.places("queries")]
    ids = first.sets.ids("queries")
    banks = [open_bank(plan, "calibrate", ids, "margin") for plan in (first, grown)]
    assert [len(bank) for bank in banks] == [12, 16]
    before, after = (calibrate(scores, bank) for bank in banks)
    assert receipt["error"] == pytest.approx(
        {"before": before.error.mean(), "after": after.error.mean()}
    )
    # Other random subsets of the bank's sizes are as hard to predict, but for the luck of 64.
    rng = np.random.default_rng(0)
    sizes = np.resize(np.unique(first.bank.masks.sum(axis=1)), 400)[:, None]
    others = np.argsort(rng.random((len(sizes), first.n_train)), axis=1).argsort(axis=1) < sizes
    found = bought(before, after, others)
    sd = receipt["sd"]
    assert (sd["before"], sd["after"]) == pytest.approx(found.sd, rel=0.15)
    assert sd["foreseen"] < sd["random"] < sd["before"]
    # What the very subsets were worth beforehand, in the order of their choice.
    promised = next_masks(before, 4, targets=others, candidates=grown.bank.masks[-4:])
    share = np.sqrt(promised.after[-1] / promised.before)
    assert sd["foreseen"] / sd["before"] == pytest.approx(share, rel=0.15)


def test_a_choice_that_was_killed_goes_on_and_the_next_one_waits_for_scores(
    tmp_path: Path,
) -> None:
    job = run_stages(TINY, tmp_path, until="scores")
    choose_next.fn(job, 4)  # and killed before anything was trained
    assert not is_to_choose(blueprint(fresh(job)), 4)
    with pytest.raises(NotFound, match="--only scores"):
        is_to_choose(blueprint(fresh(job)), 5)
    assert bank_status(blueprint(fresh(job)))["bought"] == []
    plan = extended(fresh(job), 4)
    assert (plan.bank.chosen, len(plan.retraining.missing())) == (4, 0)
    with pytest.raises(NotFound, match="'trak' has none for the bank as it is"):
        is_to_choose(blueprint(fresh(job)), 4)
    more = extended(run_stages(TINY, tmp_path, until="scores"), 4)
    assert (more.bank.chosen, len(set(more.bank.ids))) == (8, 32)
    assert len(np.unique(more.bank.masks[-8:], axis=0)) == 8
    assert [receipt["models"] for receipt in bank_status(more)["bought"]] == [4, 4]


def few_rows(folder: Path) -> Path:
    """A spec of 10 training rows, of which there are 252 subsets of half the size."""
    rng = np.random.default_rng(0)
    table = ["a,b,kind,part"]
    for row, (a, b) in enumerate(rng.normal(size=(40, 2))):
        table.append(f"{a:.4f},{b:.4f},{'xy'[row % 2]},{'train' if row < 10 else 'test'}")
    (folder / "rows.csv").write_text("\n".join(table) + "\n")
    return edited(
        folder,
        ('source = "sklearn:wine"', 'source = "csv:rows.csv"\ntarget = "kind"\nsplit = "part"'),
        ("test_fraction = 0.4\ncorrupt = { labels = 0.1 }\n", ""),
        ("alpha = [0.5, 0.8]", "alpha = [0.5]"),
    )


def test_subsets_that_the_bank_has_are_not_offered(tmp_path: Path) -> None:
    job = run_stages(few_rows(tmp_path), tmp_path / "w", until="scores")
    with pytest.raises(RequestError, match="other subsets of 10 rows were found; ask for fewer"):
        choose_next.fn(job, 241)
    choose_next.fn(job, 60)
    plan = blueprint(fresh(job))
    # A row on a subset that evaluates would have been left out of the bank.
    assert plan.bank.chosen == 60
    assert len(np.unique(plan.bank.masks, axis=0)) == 12 + 60


def test_without_a_problem_the_first_attribution_is_made_surer(tmp_path: Path) -> None:
    text = TINY.read_text()
    problem = text[text.index("[[problem]]") :]
    asked = edited(tmp_path, (problem, ""))
    plan = extended(run_stages(asked, tmp_path / "w", until="scores"), 2)
    (receipt,) = bank_status(plan)["bought"]
    assert (receipt["set"], receipt["models"]) == ("queries", 2)
    attribution = text[text.index("[[attribution]]") :]
    fitted = edited(
        tmp_path,
        (attribution, '[[attribution]]\nmethod = "empirical_influence"\n'),
        ("models = 24", "models = 32"),
    )
    job = run_stages(fitted, tmp_path / "w", until="scores")
    with pytest.raises(RequestError, match="all are fitted to all of it"):
        is_to_choose(blueprint(job), 2)


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    job = run_stages(TINY, tmp_path, until="bank")
    with pytest.raises(RequestError, match="--next 0: give the number"):
        is_to_choose(blueprint(job), 0)
    with pytest.raises(NotFound, match="winnow run SPEC --only scores"):
        is_to_choose(blueprint(job), 4)
