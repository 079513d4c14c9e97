"""The report says what the tables say, in words, within the width of a terminal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from schemas.errors import NotFound
from store.connect import open_ledger, run
from tasks.reporting.findings import Arm, Findings, Interval
from tasks.reporting.gathering import detection, gather, open_source
from tasks.reporting.judgement import arms_title, is_confirmed, verdict_sentence
from tasks.reporting.report import (
    read_findings,
    render,
    render_summary,
    summary_json,
    summary_text,
)
from tests.tasks.reporting.published_sample import DROPPED, WRONG, write_published
from tests.tasks.reporting.sample_findings import (
    ANSWER,
    FIDELITY,
    FINDINGS,
    METHOD,
    ROWS,
    arm,
    interval,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / "winnow.duckdb")


def squeezed(findings: Findings, width: int = 96) -> str:
    """The report with all white space made one."""
    return " ".join(summary_text(findings, width=width).split())


def with_answer(**changes: object) -> Findings:
    return replace(FINDINGS, answers=(replace(ANSWER, **changes),))  # type: ignore[arg-type]


def with_arms(*arms: Arm) -> Findings:
    return with_answer(arms=arms)


def test_a_published_run_is_gathered_as_it_was_written(published: Path) -> None:
    findings = read_findings(published)
    assert (findings.run_id, findings.n_train, findings.n_test) == ("run-1", 40, 6)
    assert (findings.n_flipped, findings.a_query) == (len(WRONG), 42)
    (answer,) = findings.answers
    assert answer.dropped == len(DROPPED)
    assert [row.example_id for row in answer.worst] == list(DROPPED)
    assert answer.worst[0].is_flipped
    assert not answer.worst[1].is_flipped
    assert answer.detection is not None
    assert answer.detection.precision == len(WRONG) / len(DROPPED)
    assert answer.detection.recall == 1.0
    assert {arm.name for arm in answer.arms} == {"all", "random", "chosen"}
    (method,) = findings.methods
    assert [found.alpha for found in method.fidelity] == [0.5, 0.9]
    assert method.worst[0].example_id == DROPPED[0]


def test_the_report_of_a_published_run_says_all_five_things(published: Path) -> None:
    text = " ".join(summary_text(read_findings(published)).split())
    assert "clean keeps 30 of 40 rows and drops 10." in text
    assert "Of the 4 wrong labels, 4 are among the dropped rows: recall 100%" in text
    assert "95.0 [94.0, 96.0]" in text
    assert "+5.0 [+4.0, +6.0]" in text
    assert "source web +0.25 size -0.01 it costs tokens 0 does not bind" in text
    assert "chosen 30 95.0 [94.0, 96.0] -0.400 [-0.420, -0.380]" in text
    assert "[4.900, 5.100] +0.55 [+0.40, +0.70] +0.60 [+0.50, +0.70]" in text
    assert "Dropped are 10 predicted to harm. Those of the lowest effects" in text
    assert "5 1 1 -0.0456 harmful, copy of 4" in text
    assert "The constraints bind 'chosen' only" in text
    assert "Confirmed: models trained on the chosen rows beat every control" in text
    assert "0.310 [0.280, 0.340] 0.55" in text
    assert "0.55 56% 0.03" in text
    assert "FROM top_influences(query := 42, attribution := 'attribution-1')" in text
    assert "".join(str(published).split()) in "".join(text.split())


def test_a_run_that_does_not_exist_is_refused_by_name(published: Path) -> None:
    with pytest.raises(NotFound, match="'run-9'"):
        render_summary(published, "run-9")


def test_a_database_without_runs_says_how_to_make_one(tmp_path: Path) -> None:
    path = write_published(tmp_path / "winnow.duckdb")
    ledger = open_ledger(path)
    run(ledger, "DELETE FROM runs")
    ledger.close()
    with pytest.raises(NotFound, match="winnow run"):
        render_summary(path)


def test_a_workspace_where_nothing_was_published_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        render_summary(tmp_path / "winnow.duckdb")


def test_parts_that_a_spec_left_out_are_left_out(tmp_path: Path) -> None:
    path = write_published(tmp_path / "winnow.duckdb")
    ledger = open_ledger(path)
    for table in ("solutions", "solution_rows", "verdicts", "lds", "scores"):
        run(ledger, f"DELETE FROM {table}")
    run(ledger, "UPDATE examples SET true_target = NULL")
    ledger.close()
    text = summary_text(read_findings(path))
    assert "MOST HARMFUL ROWS BY TRAK" in text
    for absent in ("WRONG", "RETRAINING", "subsets", "top_influences", "true label", "nan", "None"):
        assert absent not in text


def test_the_last_committed_run_is_the_default(tmp_path: Path) -> None:
    path = write_published(tmp_path / "winnow.duckdb")
    ledger = open_ledger(path)
    run(ledger, "INSERT INTO runs BY NAME SELECT * REPLACE ('run-2' AS run_id, "
        "committed_at + INTERVAL 1 HOUR AS committed_at) FROM runs")  # fmt: skip
    ledger.close()
    with open_source(path) as source:
        assert gather(source).run_id == "run-2"
        assert gather(source, "run-1").run_id == "run-1"


@pytest.mark.parametrize("width", [80, 96, 100])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = summary_text(FINDINGS, width=width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert not any("…" in line for line in lines), "numbers are cut"


def test_it_reads_without_colour() -> None:
    assert "\x1b" not in summary_text(FINDINGS)


def test_cells_from_data_are_never_markup_nor_control_codes() -> None:
    evil = "[red]a[/red]\x1b[31m\n[/]"
    row = replace(ROWS[0], label=evil, true_label=evil)
    hostile = replace(
        with_answer(
            worst=(row,),
            problem=evil,
            output=evil,
            sentence=evil,
            arms=tuple(replace(arm, name=arm.name, output=evil) for arm in ANSWER.arms),
        ),
        spec_name=evil,
        methods=(replace(METHOD, name=evil, output=evil, damping_from=evil),),
    )
    text = summary_text(hostile)
    assert "[red]a[/red]" in text
    assert "\x1b" not in text
    with Console(width=96, force_terminal=True, color_system="truecolor").capture() as capture:
        Console(width=96, force_terminal=True).print(render(hostile))
    assert "\x1b[31m" not in capture.get()


def test_long_labels_are_cut() -> None:
    text = summary_text(with_answer(worst=(replace(ROWS[0], label="word " * 50),)))
    assert "word word" in text
    assert max(len(line) for line in text.splitlines()) <= 96


def test_one_arm_that_is_not_clearly_beaten_is_enough_to_not_confirm() -> None:
    arms = (
        *ANSWER.arms[:2],
        replace(ANSWER.arms[2], advantage=interval(0.004, 0.01)),
        ANSWER.arms[3],
    )
    answer = replace(ANSWER, arms=arms)
    assert is_confirmed(ANSWER.arms) is True
    assert is_confirmed(answer.arms) is False
    said = verdict_sentence(answer.arms)
    assert said.startswith("Not confirmed: the chosen rows do not clearly beat 'balanced' (+0.4")


def test_without_intervals_nothing_is_judged() -> None:
    lone = Interval(mean=0.04, low=float("nan"), high=float("nan"))
    answer = replace(ANSWER, arms=(replace(ANSWER.arms[0], advantage=lone), ANSWER.arms[3]))
    assert is_confirmed(answer.arms) is None
    assert verdict_sentence(answer.arms).startswith("Not judged")


def contradicted(arms: tuple[Arm, ...], by: float) -> tuple[Arm, ...]:
    """The arms where those of the choice find labels less likely than those of all rows do."""
    lower = {"all": interval(-by, 0.1), "random": interval(-by / 2, 0.1)}
    return tuple(
        replace(arm, logprob=interval(-1.2, 0.05), logprob_advantage=lower.get(arm.name))
        for arm in arms
    )


def test_a_verdict_says_where_log_probability_contradicts_it() -> None:
    said = verdict_sentence(contradicted(ANSWER.arms, 0.52))
    assert (
        "by +4.1 [+3.3, +4.9] points. But their mean log-probability is lower than with all rows "
        "by 0.52 [0.42, 0.62]: they are surer, also where they are wrong. The change"
    ) in said
    assert is_confirmed(contradicted(ANSWER.arms, 0.52)) is True
    for arms in (ANSWER.arms, contradicted(ANSWER.arms, 0.05), contradicted(ANSWER.arms, -0.5)):
        assert "log-probability" not in verdict_sentence(arms)
        assert "log-probability" not in arms_title(arms)


def test_surer_is_said_only_where_the_margin_shows_it() -> None:
    chosen = replace(ANSWER.arms[3], observed=interval(-0.2, 0.1))
    said = verdict_sentence(contradicted((*ANSWER.arms[:3], chosen), 0.52))
    assert "lower than with all rows by 0.52" in said
    assert "surer" not in said


def test_a_choice_that_is_not_confirmed_is_said_to_be_less_likely_too() -> None:
    arms = contradicted((replace(ANSWER.arms[0], advantage=interval(0, 0.1)), ANSWER.arms[3]), 0.5)
    said = verdict_sentence(arms)
    assert said.startswith("Not confirmed")
    assert "The mean log-probability of models trained on them is lower than with all rows" in said


def test_log_probability_is_no_second_verdict_where_it_is_the_first() -> None:
    arms = contradicted(ANSWER.arms, 0.5)
    arms = tuple(replace(arm, accuracy=None, output="logprob") for arm in arms)
    assert "log-probability" not in verdict_sentence(arms)
    assert "mean logprob" in squeezed(with_arms(*arms))
    assert squeezed(with_arms(*arms)).count("-1.20") == 0


@pytest.mark.parametrize(
    ("beaten", "title"),
    [
        ((True, True, True), "The chosen rows train a better model\nthan every control"),
        ((False, True, True), "The chosen rows beat random and balanced,\nbut not every control"),
        ((False, False, False), "The chosen rows are not clearly better"),
    ],
)
def test_a_picture_is_titled_by_what_the_sentence_says(
    beaten: tuple[bool, ...], title: str
) -> None:
    arms = tuple(
        replace(arm, advantage=interval(0.05, 0.01 if won else 0.1))
        for arm, won in zip(ANSWER.arms[:3], beaten, strict=True)
    )
    arms = (*arms, ANSWER.arms[3])
    assert arms_title(arms) == title
    assert verdict_sentence(arms).startswith("Confirmed") == all(beaten)
    assert "every control" in arms_title(contradicted(arms, 0.5)) or not all(beaten)


def test_a_title_that_confirms_names_a_lower_log_probability() -> None:
    said = arms_title(contradicted(ANSWER.arms, 0.52))
    assert said == "The chosen rows beat every control,\nbut trail all rows in log-probability"


def test_without_intervals_a_picture_claims_nothing() -> None:
    assert arms_title((arm("chosen", 0.9, None, None),)) == "What each arm comes to"


def test_three_intervals_of_a_row_fit_a_terminal() -> None:
    wide = tuple(
        replace(each, name=name, logprob=interval(-12.345, 0.0123), value=interval(-12.3, 0.012))
        for each, name in zip(ANSWER.arms, ("all", "highest_loss", "random", "chosen"), strict=True)
    )
    lines = summary_text(with_arms(*wide)).splitlines()
    (heading,) = (line for line in lines if "chosen − arm" in line)
    assert "accuracy, %" in heading
    assert "mean logprob" in heading
    assert any("highest_loss" in line and "-12.345 [-12.357, -12.333]" in line for line in lines)


@pytest.mark.parametrize(("observed", "where"), [(0.61, "inside"), (0.9, "above"), (0.1, "below")])
def test_the_sentence_says_where_the_observation_fell(observed: float, where: str) -> None:
    chosen = replace(ANSWER.arms[3], observed=interval(observed, 0.1))
    said = verdict_sentence((*ANSWER.arms[:3], chosen))
    assert f"fell {where} its predicted interval" in said


def test_regression_speaks_of_the_output_instead_of_accuracy() -> None:
    arms = tuple(replace(arm, accuracy=None, output="squared_error") for arm in ANSWER.arms)
    text = squeezed(with_arms(*arms))
    assert "accuracy" not in text
    assert "points" not in text
    assert "mean squared_error" in text


def test_a_chosen_arm_alone_is_not_judged() -> None:
    assert "Not judged" in squeezed(with_arms(arm("chosen", 0.9, None, None)))


def test_the_noise_of_scores_without_information_is_stated() -> None:
    assert "vary by ±0.019" in squeezed(FINDINGS)


def test_a_ceiling_that_is_unknown_is_not_shown() -> None:
    unknown = replace(FIDELITY, ceiling=float("nan"), relative=float("nan"), null_sd=None)
    text = squeezed(replace(FINDINGS, methods=(replace(METHOD, fidelity=(unknown,)),)))
    assert "– –" in text
    assert "nan" not in text


def test_the_json_holds_the_same_facts_and_no_nan(published: Path) -> None:
    document = json.loads(summary_json(published))
    (answer,) = document["answers"]
    assert answer["confirmed"] is True
    assert answer["verdict"].startswith("Confirmed")
    assert answer["detection"]["recall"] == 1.0
    assert document["methods"][0]["fidelity"][0]["lds"] == {"mean": 0.31, "low": 0.28, "high": 0.34}
    chosen = next(arm for arm in answer["arms"] if arm["name"] == "chosen")
    assert chosen["advantage"] is None
    assert chosen["logprob"] == pytest.approx({"mean": -0.4, "low": -0.42, "high": -0.38})
    every = next(arm for arm in answer["arms"] if arm["name"] == "all")
    assert every["logprob_advantage"]["mean"] == pytest.approx(-0.2)
    assert answer["reasons"] == {"harmful": 10, "copies": 0, "no_room": 0}
    assert "NaN" not in summary_json(published)


def test_detection_needs_labels_known_to_be_wrong() -> None:
    none = np.zeros(4, dtype=bool)
    assert detection(np.arange(4.0), none, ~none) is None


def test_detection_of_a_perfect_ranking_is_perfect() -> None:
    flipped = np.array([True, True, False, False])
    found = detection(np.array([4.0, 3.0, 2.0, 1.0]), flipped, flipped)
    assert found is not None
    assert (found.precision, found.recall, found.auroc) == (1.0, 1.0, 1.0)


def test_detection_without_utilities_has_no_auroc() -> None:
    flipped = np.array([True, False])
    found = detection(np.array([np.nan, 1.0]), flipped, flipped)
    assert found is not None
    assert found.auroc is None


def test_commands_name_the_workspace_only_where_they_must(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WINNOW_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    beside = replace(FINDINGS, path=tmp_path / ".winnow" / "winnow.duckdb")
    assert "--workspace" not in squeezed(beside)
    below = replace(FINDINGS, path=tmp_path / "my specs" / ".winnow" / "winnow.duckdb")
    assert "winnow ui --workspace 'my specs/.winnow' # for" in squeezed(below)


def test_a_selection_that_only_a_size_binds_has_no_table_of_prices(published: Path) -> None:
    assert "WHAT THE CONSTRAINTS COST" in summary_text(read_findings(published))
    assert "WHAT THE CONSTRAINTS COST" not in summary_text(with_answer(prices={"size": 0.1}))


def test_an_oracle_is_a_ceiling_and_no_control() -> None:
    beaten, oracle = arm("random", 0.905, 0.057, -0.21), arm("clean", 0.98, -0.018, 0.7)
    chosen = arm("chosen", 0.962, None, 0.61)
    assert is_confirmed((beaten, oracle, chosen))
    said = verdict_sentence((beaten, oracle, chosen))
    assert "Confirmed: models trained on the chosen rows beat every control" in said
    assert "The oracle 'clean' " in said
    assert is_confirmed((beaten, replace(oracle, name="all"), chosen)) is False
