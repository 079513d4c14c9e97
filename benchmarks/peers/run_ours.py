"""This project's own estimators, run and timed exactly as the peers are.

The first answer is the default without a bank; the second has the damping that `attribute` chooses
on the tuning masks, and is timed with that damping given, as the peers' dampings are.
"""

import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from attribution import attribute
from benchmarks.peers.exchange import Answer, Clock, Problem, serve


def ours(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """Scores of one estimator: its name and options come as JSON."""
    given: dict[str, Any] = {name: json.loads(value) for name, value in options.items()}
    method = given.pop("estimator")
    request = {
        "train": (problem.train[0].numpy(), problem.train[1].numpy()),
        "queries": (problem.queries[0].numpy(), problem.queries[1].numpy()),
        "device": "cpu",
        **given,
    }
    clock = Clock()
    with clock.stage("total"):
        scores = attribute(method, problem.model(), problem.states, **request)
    yield Answer(setting=_setting(scores.record), scores=scores, clock=clock)
    if scores.record.get("damping") is None:
        return
    bank = SimpleNamespace(masks=problem.masks, outputs=problem.outputs)
    tuned = attribute(method, problem.model(), problem.states, bank=bank, **request)
    request["damping"] = tuned.record["damping"]
    clock = Clock()
    with clock.stage("total"):
        scores = attribute(method, problem.model(), problem.states, **request)
    yield Answer(setting=_setting(scores.record), scores=scores, clock=clock)


def _setting(record: Mapping[str, Any]) -> str:
    damping = record.get("damping")
    return "no damping" if damping is None else f"rho {damping:g}"


if __name__ == "__main__":
    serve("winnow", {"ours": ours})
