"""Where a flow's tasks run: threads of this process, or a cluster of Dask or Ray."""

from importlib import import_module
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from schemas.errors import RequestError
from schemas.settings import ComputeSpec

# Torch and the kernels use every core by themselves; two tasks keep them busy between steps.
THREADS = 2
CLUSTERS = {"dask": ("prefect_dask", "DaskTaskRunner"), "ray": ("prefect_ray", "RayTaskRunner")}


def task_runner(compute: ComputeSpec) -> TaskRunner[Any]:
    """The runner that a spec asks for.

    Raises:
        RequestError: The package of the cluster is not installed.
    """
    workers = None if compute.workers == "auto" else compute.workers
    if compute.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers or THREADS)
    module, name = CLUSTERS[compute.runner]
    try:
        cluster = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise RequestError(
            f"compute.runner = '{compute.runner}' needs {error.name}; "
            f"pip install -e '.[{compute.runner}]', or write 'threads'"
        ) from None
    if workers is None:
        made = cluster()
    elif compute.runner == "dask":
        made = cluster(cluster_kwargs={"n_workers": workers, "threads_per_worker": 1})
    else:
        made = cluster(init_kwargs={"num_cpus": workers})
    runner: TaskRunner[Any] = made
    return runner
