"""The checkpoints that are handed over: those that people use, with the rows unlearned.

One's own weights where a spec names some, else models of all rows with the seeds of checkpoints.
Each goes out as one safetensors file, named beside the digest of what went in.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.bank import retrained, states_of
from tasks.blueprint import Blueprint
from tasks.reporting.forgetting import FORGOTTEN, RETRAINED
from tasks.train import WEIGHTS_FILE
from tasks.unlearning.witnesses import Seen, Witnesses, observe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoints:
    """Models as they are before anything is unlearned.

    Attributes:
        states: Weights [k, ...] by name.
        names: What each is called.
        digests: sha256 of each one's safetensors file.
    """

    states: "dict[str, Tensor]"
    names: tuple[str, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def checkpoints(plan: Blueprint) -> Checkpoints:
    """The models that are to be handed over, trained where no run of the workspace has."""
    import torch
    from safetensors.torch import load_file, save

    if plan.loaded.checkpoint_paths:
        sealed = [plan.sealed("checkpoints", key) for key in plan.training.checkpoint_keys]
        files = [plan.artifacts.folder(manifest) / WEIGHTS_FILE for manifest in sealed]
        each = [load_file(path) for path in files]
        return Checkpoints(
            states={name: torch.stack([state[name] for state in each]) for name in each[0]},
            names=tuple(path.name for path in plan.loaded.checkpoint_paths),
            digests=tuple(manifest.file(WEIGHTS_FILE).sha256 for manifest in sealed),
        )
    seeds = np.array(plan.training.checkpoint_seeds, dtype=np.int64)
    everything = np.ones((len(seeds), plan.n_train), dtype=bool)
    states = states_of(plan, retrained(plan, everything, seeds, weights=True))
    return Checkpoints(
        states=states,
        names=tuple(f"seed {seed}" for seed in seeds.tolist()),
        digests=tuple(
            hashlib.sha256(save(state_of(states, place))).hexdigest() for place in range(len(seeds))
        ),
    )


def handed_place(plan: Blueprint, verdict: str) -> str:
    """The folder of the unlearned checkpoints of a verdict's key, relative to the workspace."""
    return f"{plan.artifacts.root.name}/verdict/{verdict}"


def state_of(states: "Mapping[str, Tensor]", place: int) -> "dict[str, Tensor]":
    """The weights of one model of a stack."""
    return {name: value[place].contiguous().clone() for name, value in states.items()}


def hand_over(
    plan: Blueprint,
    folder: Path,
    before: Checkpoints,
    after: "Mapping[str, Tensor]",
    *,
    oracles: Seen,
    rows: Witnesses,
) -> list[dict[str, Any]]:
    """Write the unlearned checkpoints, a file each, and say of each what became of it.

    Args:
        plan: The blueprint.
        folder: Where to.
        before: The checkpoints as they were.
        after: Their unlearned weights [k, ...] by name.
        oracles: What models say that were retrained without the rows.
        rows: Where they say it.
    """
    from safetensors.torch import save

    group = rows.groups[FORGOTTEN]
    old, new = (observe(plan, states, rows).own[:, group] for states in (before.states, after))
    retrained_means = oracles.own[:, group].mean(axis=1)
    records = []
    for place, (name, digest) in enumerate(zip(before.names, before.digests, strict=True)):
        content = save(state_of(after, place))
        file = f"unlearned-{place}.safetensors"
        (folder / file).write_bytes(content)
        records.append(
            {
                "name": name,
                "file": file,
                "sha256_before": digest,
                "sha256_after": hashlib.sha256(content).hexdigest(),
                "before": float(old[place].mean()),
                "after": float(new[place].mean()),
                RETRAINED: [float(retrained_means.min()), float(retrained_means.max())],
            }
        )
    return records
