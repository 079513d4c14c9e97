"""The harness of the benchmarks on a toy problem; no peer is needed and no time is asserted."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.outputs import evaluate
from benchmarks.compare import PEER_METHODS, Row, Run, Side, measure, plan, ratio_line, table
from benchmarks.peers.environments import PeerError, call, install, names
from benchmarks.peers.exchange import margin, miss, network, read_problem, write_problem
from benchmarks.problems import Size, make

FEW = 12


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_a_problem_survives_the_exchange(tmp_path: Path, architecture: str) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(FEW, 64)).astype(np.float32)
    labels = generator.integers(10, size=FEW)
    states = [network(architecture).state_dict() for _ in range(2)]
    masks = generator.random((3, FEW)) < 0.5
    write_problem(
        tmp_path,
        architecture=architecture,
        train=(inputs, labels),
        queries=(inputs[:4], labels[:4]),
        states=states,
        masks=masks,
        outputs=np.zeros((3, 4), dtype=np.float32),
    )
    problem = read_problem(tmp_path, checkpoints=2)
    np.testing.assert_array_equal(problem.train[0].numpy(), inputs)
    np.testing.assert_array_equal(problem.masks, masks)
    expected = network(architecture)
    expected.load_state_dict(states[1])
    np.testing.assert_array_equal(
        problem.model(1)(problem.queries[0]).detach(), expected(problem.queries[0]).detach()
    )


def test_our_own_run_is_measured_and_judged_like_a_peers(tmp_path: Path) -> None:
    size = Size(n_train=60, n_query=5, checkpoints=1, judging=4, tuning=4, seeds=1, epochs=2)
    truth = make("mlp", tmp_path, size)
    options = ('estimator="trak"', 'projection={"dim": 64}')
    run = Run(package="winnow", method="ours", label="TRAK", checkpoints=1, options=options)
    row = measure(run, truth)
    assert row.failure == ""
    assert row.default is not None
    assert row.default.setting == "rho 1"
    assert -1 <= row.default.lds <= 1
    assert row.default.cpu > 0


def test_peers_explain_the_margin_that_the_bank_holds() -> None:
    logits = torch.randn(FEW, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(FEW) % 10
    torch.testing.assert_close(margin(logits, targets), evaluate("margin", logits, targets))
    chance = logits.softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(miss(logits, targets), 1 - chance)


def test_every_peer_has_requirements_a_run_module_and_methods() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "peers"
    assert set(names()) == set(PEER_METHODS)
    for name in names():
        assert (folder / f"run_{name}.py").is_file()


def test_quick_plans_keep_costly_methods_at_one_checkpoint() -> None:
    quick, full = list(plan([10, 1], quick=True)), list(plan([10, 1]))
    assert {run.label for run in quick} == {run.label for run in full}
    assert len(quick) < len(full)
    assert all(run.package == "trak" for run in plan([1], ["trak"]))


def test_tables_show_ratios_and_say_why_a_row_is_empty() -> None:
    ours = Run(package="winnow", method="ours", label="TRAK logistic, k = 2048", checkpoints=1)
    peer = Run(package="trak", method="trak", label="TRAK, k = 2048", checkpoints=1)
    absent = Run(package="pydvl", method="ekfac", label="EK-FAC", checkpoints=1)
    rows = [
        Row(run=ours, default=_side(2.0), best=_side(2.0), version="1"),
        Row(run=peer, default=_side(20.0), best=_side(30.0), version="2"),
        Row(run=absent, failure="not installed"),
    ]
    printed = table(rows, 1)
    assert "| 15.0 |" in printed
    assert "EK-FAC | not installed" in printed
    assert "trak 15.0 times the CPU" in ratio_line(rows, 1)
    assert ratio_line(rows, 10) == ""


def test_an_unknown_peer_and_a_failing_command_say_so() -> None:
    with pytest.raises(PeerError, match="there is no peer 'trac'"):
        install("trac")
    with pytest.raises(PeerError, match="No module named"):
        call([sys.executable, "-m", "no_such_module_here"])


def _side(seconds: float) -> Side:
    return Side(setting="rho 1", lds=0.6, low=0.5, high=0.7, cpu=seconds, wall=seconds)
