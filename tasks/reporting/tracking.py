"""The only door to MLflow: a run's findings, as a parent run with children for methods and arms.

MLflow is an outbox. The ledger is committed first; then `log_run` sends the findings under a digest
of themselves. A parent whose `winnow.logged` tag holds that digest is complete (it is written last)
and is found again instead of being sent twice; one without it was left by a crash, is deleted with
its children, and sent anew. Runs are joined by explicit ids, never through MLflow's thread-local
active run, which makes orphans in worker threads.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from schemas.errors import NotFound, ServerUnavailable
from store.workspace import Workspace
from tasks.reporting.entries import SOURCE_TAG, Entry, digest_of, entries, refuse_undeclared
from tasks.reporting.findings import Findings
from tasks.reporting.gathering import gather, open_source, preview
from tasks.reporting.report import summary_text
from tasks.reporting.tracing_table import tracing_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

DIGEST_TAG = "winnow.digest"
LOGGED_TAG = "winnow.logged"
ADOPTED_TAG = "winnow.adopted"
KIND_TAG = "mlflow.experimentKind"  # MLflow's own
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own

PARAMS_PER_BATCH = 100  # MLflow refuses more in one call
DIGEST_LENGTH = 36  # of a dataset, likewise
PROBE_SECONDS = 5.0

# What MLflow 3.17 does to its own libraries; nothing that a user of winnow could change.
HOUSEKEEPING = (r"The ``noload`` loader strategy is deprecated",)  # its ORM on SQLAlchemy 2.1

# Settings for the length of a call: it prints links to stdout, where `--json` must be alone.
MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

Receipt = dict[str, Any]


def log_run(
    published_path: Path,
    workspace: Workspace,
    run_id: str,
    spec_text: str,
    *,
    uri: str | None = None,
    figures: Mapping[str, "Figure"] | None = None,
    files: Mapping[str, Path] | None = None,
    flow_run: str | None = None,
) -> Receipt:
    """Send one committed run to MLflow, unless it is there already.

    Args:
        published_path: The published DuckDB that holds the run.
        workspace: Holds MLflow's database and artifacts unless `uri` says otherwise.
        run_id: The run in the published database.
        spec_text: The spec as it was written; kept as an artifact, and flattened into params.
        uri: MLflow's tracking URI, such as a server; the workspace's own SQLite by default.
        figures: Pictures by name, kept as ``figures/<name>.png``.
        files: More files by the folder or name they are kept under.
        flow_run: The Prefect flow run, to find its log.

    Returns:
        uri, experiment, run_id (MLflow's), digest, children, and whether it was `sent` just now.

    Raises:
        NotFound: No such run; a metric that is not declared in schemas/metrics.toml; or
            MLFLOW_RUN_ID names a run that the tracking store lacks.
        ServerUnavailable: MLflow does not answer, or refused; what it lacks is sent next time.
    """
    with open_source(published_path) as source:
        findings = gather(source, run_id)
        inputs = {name: preview(source, findings.dataset_id, name) for name in ("train", "test")}
    parent, children = entries(findings, spec_text)
    refuse_undeclared((parent, *children))
    digest = digest_of(parent, children)
    address = tracking_uri(workspace, uri)
    check_answers(address)
    with _quietly(), _mapped(address):
        client = _client(address)
        experiment, adopted = _home(client, address, workspace, findings.spec_name)
        done = _settle(client, experiment, digest)
        receipt = {"uri": address, "experiment": experiment, "digest": digest}
        if done is not None:
            if adopted and adopted != done:
                client.set_tag(adopted, "winnow.same_as", done)
            return receipt | {"run_id": done, "children": len(children), "sent": False}
        tags = {DIGEST_TAG: digest} | ({"prefect.flow_run": flow_run} if flow_run else {})
        parent_id = _open(client, experiment, parent, tags, adopted)
        _write(client, parent_id, parent)
        _log_inputs(client, parent_id, findings, inputs)
        client.log_text(parent_id, spec_text, "spec.toml")
        client.log_text(parent_id, summary_text(findings), "report.txt")
        if findings.tracings:
            client.log_text(parent_id, tracing_page(findings.tracings), "traces.html")
        for name, figure in (figures or {}).items():
            client.log_figure(parent_id, figure, f"figures/{name}.png", save_kwargs={"dpi": 150})
        for name, path in (files or {}).items():
            client.log_artifact(parent_id, str(path), name)
        for child in children:
            child_id = _open(client, experiment, child, {PARENT_TAG: parent_id}, None)
            _write(client, child_id, child)
            client.set_terminated(child_id)
        client.set_tag(parent_id, LOGGED_TAG, digest)
        if not adopted:
            client.set_terminated(parent_id)
    return receipt | {"run_id": parent_id, "children": len(children), "sent": True}


def log_entry(
    workspace: Workspace,
    experiment_name: str,
    entry: Entry,
    *,
    uri: str | None = None,
    texts: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
    flow_run: str | None = None,
) -> Receipt:
    """Send one run that has no children to MLflow, unless it is there already.

    Args:
        workspace: As `log_run` takes it.
        experiment_name: The spec's name.
        entry: The run.
        uri: As `log_run` takes it.
        texts: Text artifacts by name.
        files: Files by the folder that they are kept under.
        flow_run: The Prefect flow run.

    Returns:
        uri, experiment, run_id, digest, and whether it was `sent` just now.

    Raises:
        NotFound: A metric is not declared in schemas/metrics.toml.
        ServerUnavailable: MLflow does not answer, or refused.
    """
    refuse_undeclared((entry,))
    digest, address = digest_of(entry, ()), tracking_uri(workspace, uri)
    check_answers(address)
    with _quietly(), _mapped(address):
        client = _client(address)
        experiment, _ = _home(client, address, workspace, experiment_name)
        done = _settle(client, experiment, digest)
        receipt = {"uri": address, "experiment": experiment, "digest": digest}
        if done is not None:
            return receipt | {"run_id": done, "sent": False}
        tags = {DIGEST_TAG: digest} | ({"prefect.flow_run": flow_run} if flow_run else {})
        run_id = _open(client, experiment, entry, tags, None)
        _write(client, run_id, entry)
        for name, text in (texts or {}).items():
            client.log_text(run_id, text, name)
        for name, path in (files or {}).items():
            client.log_artifact(run_id, str(path), name)
        client.set_tag(run_id, LOGGED_TAG, digest)
        client.set_terminated(run_id)
    return receipt | {"run_id": run_id, "sent": True}


def tracking_uri(workspace: Workspace, uri: str | None = None) -> str:
    """Say where runs go; never a place that depends on the working directory.

    Inside ``mlflow run``, MLFLOW_RUN_ID names a run of MLFLOW_TRACKING_URI, so that comes first.
    """
    inside = os.environ.get("MLFLOW_TRACKING_URI")
    if inside and os.environ.get("MLFLOW_RUN_ID"):
        return inside
    return uri or f"sqlite:///{Path(workspace.mlflow_db).absolute()}"


def check_answers(uri: str) -> None:
    """Return if the tracking server answers at all; a local database always does.

    MLflow itself retries for minutes before it gives up; one short request tells sooner.

    Raises:
        ServerUnavailable: Nothing answers there within five seconds.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/health")
        connection.getresponse()
    except (OSError, HTTPException) as error:
        raise ServerUnavailable(
            f"no MLflow server answers at {uri} ({error}); start it or change tracking.uri, "
            "then run again: what is committed stays committed and is sent then"
        ) from error
    finally:
        connection.close()


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _home(
    client: "MlflowClient", uri: str, workspace: Workspace, name: str
) -> tuple[str, str | None]:
    """Find the experiment, and the run that ``mlflow run`` opened for us if it did."""
    from mlflow.exceptions import MlflowException

    adopted = os.environ.get("MLFLOW_RUN_ID")
    if adopted:
        try:
            return client.get_run(adopted).info.experiment_id, adopted
        except MlflowException as error:
            raise NotFound(
                f"MLFLOW_RUN_ID is {adopted!r}, which {uri} does not have; "
                "unset it, or set MLFLOW_TRACKING_URI to where that run is"
            ) from error
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id, None
    remote = urlsplit(uri).scheme in ("http", "https")
    place = None if remote else Path(workspace.mlartifacts).absolute().as_uri()
    # Without a kind the page opens on traces of language models, where there are none.
    tags = {KIND_TAG: "custom_model_development"}
    return client.create_experiment(name, artifact_location=place, tags=tags), None


def _settle(client: "MlflowClient", experiment: str, digest: str) -> str | None:
    """Return the complete parent with this digest; clear away what a crash left of one."""
    done = None
    for run in client.search_runs([experiment], f"tags.`{DIGEST_TAG}` = '{digest}'"):
        if run.data.tags.get(LOGGED_TAG) == digest:
            done = run.info.run_id
            continue
        key = run.info.run_id
        for child in client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{key}'"):
            client.delete_run(child.info.run_id)
        if ADOPTED_TAG in run.data.tags:
            client.delete_tag(key, DIGEST_TAG)  # the run belongs to whoever opened it
        else:
            client.delete_run(key)
    return done


def _open(
    client: "MlflowClient",
    experiment: str,
    entry: Entry,
    tags: Mapping[str, str],
    adopted: str | None,
) -> str:
    tags = {**entry.tags, **tags}
    if adopted is None:
        return client.create_run(experiment, tags=tags, run_name=entry.name).info.run_id
    for key, value in {**tags, ADOPTED_TAG: "true"}.items():
        if key != SOURCE_TAG:  # `mlflow run` wrote where the project is
            client.set_tag(adopted, key, value)
    return adopted


def _write(client: "MlflowClient", run_id: str, entry: Entry) -> None:
    """Log params and metrics in as few calls as MLflow takes: single calls are ten times slower."""
    from mlflow.entities import Metric, Param

    now = client.get_run(run_id).info.start_time
    params = [Param(key, value) for key, value in entry.params.items()]
    metrics = [Metric(name, value, now, step) for name, value, step in entry.metrics]
    client.log_batch(run_id, metrics=metrics, params=params[:PARAMS_PER_BATCH])
    for start in range(PARAMS_PER_BATCH, len(params), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_BATCH])


def _log_inputs(
    client: "MlflowClient", run_id: str, findings: Findings, inputs: Mapping[str, Any]
) -> None:
    """Name the rows that were used, with a preview for the schema: the digest is the data set's."""
    import mlflow.data
    from mlflow.data.sources import LocalArtifactDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    context = {"train": "training", "test": "evaluation"}
    counts = {"train": findings.n_train, "test": findings.n_test}
    sent = []
    for split, frame in inputs.items():
        dataset = mlflow.data.from_polars(
            frame,
            source=LocalArtifactDatasetSource(str(findings.path)),
            name=f"{findings.spec_name}/{split}",
            digest=f"{findings.dataset_id[: DIGEST_LENGTH - 6]}-{split}",
        )
        tags = [
            InputTag("mlflow.data.context", context[split]),
            InputTag("winnow.rows", str(counts[split])),
        ]
        sent.append(DatasetInput(dataset=dataset._to_mlflow_entity(), tags=tags))
    client.log_inputs(run_id, datasets=sent)


@contextmanager
def _mapped(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into ours."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # OSError: requests, full disks
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ServerUnavailable(
            f"MLflow at {uri} refused: {first}; what is committed stays committed, "
            "run again to send it"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold back what MLflow says about its own housekeeping, and its minutes of retries."""
    # Read by MLflow when it is imported; a user's own value stands. Imported here because the
    # import sets the levels of MLflow's loggers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: F401

    names = ("mlflow", "alembic")
    levels = {name: logging.getLogger(name).level for name in names}
    added = {key: value for key, value in MANNERS.items() if key not in os.environ}
    os.environ.update(added)
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in HOUSEKEEPING:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for key in added:
            os.environ.pop(key, None)
