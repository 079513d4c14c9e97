"""Specs with changes, and their stages one after the other without a Prefect server."""

from pathlib import Path

from tasks.bank import extend_bank, pending_chunks
from tasks.commit import commit
from tasks.featurize import featurize_shard, pending_features
from tasks.job import Job, attribution_names, blueprint, decision_names, valuation_names
from tasks.preflight import open_job, preflight
from tasks.score import evaluate, score
from tasks.solve import solve
from tasks.train import train
from tasks.value import appraise
from tasks.verdict import judge

TINY = Path(__file__).parents[2] / "examples" / "tiny.toml"


def exchanged(text: str, *changes: tuple[str, str]) -> str:
    """A spec's text with some of it exchanged; all that is to go must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def edited(folder: Path, *changes: tuple[str, str]) -> Path:
    """The tiny spec with some of its text exchanged, in a folder."""
    path = folder / "spec.toml"
    path.write_text(exchanged(TINY.read_text(), *changes))
    return path


def run_stages(spec: Path, workspace: Path, *, until: str = "run") -> Job:
    """Do what is missing up to a stage; the job, for looking at what was made."""
    return run_job(preflight(open_job(spec, workspace)), until=until)


def run_job(job: Job, *, until: str = "run") -> Job:
    """Do what is missing for a job up to a stage."""
    steps = {
        "checkpoints": lambda: train.fn(job),
        "bank": lambda: [extend_bank.fn(job, chunk) for chunk in pending_chunks(job)],
        "features": lambda: _featurize(job),
        "scores": lambda: [score.fn(job, name) for name in attribution_names(job)],
        "lds": lambda: [evaluate.fn(job, name) for name in attribution_names(job)],
        "solution": lambda: [solve.fn(job, name) for name in decision_names(job)],
        "verdict": lambda: [judge.fn(job, name) for name in decision_names(job)],
        "values": lambda: [appraise.fn(job, name) for name in valuation_names(job)],
        "run": lambda: commit.fn(job),
    }
    for stage, step in steps.items():
        if stage != "checkpoints" or blueprint(job).training.needs_checkpoints:
            step()
        if stage == until:
            break
    return job


def _featurize(job: Job) -> None:
    shards, total = pending_features(job)
    for shard in shards:
        featurize_shard.fn(job, shard, total)
