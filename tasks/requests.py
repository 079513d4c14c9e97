"""Requests that rows be forgotten: which there are, which are answered, which rows they mean.

A request is answered when its receipt is sealed; there is no other record of it. Rows were frozen
by id and digest when the request was made, so that rows added since are never taken for them.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.manifest import Manifest
from schemas.unlearning import ForgetRequest
from store.artifacts import Artifacts, artifact_key
from store.requests import recorded
from store.workspace import Workspace

STAGE = "request"
VERSION = 1
CERTIFICATE_FILE = "certificate.html"


def requests_of(workspace: Workspace, spec: str) -> list[ForgetRequest]:
    """Every request that was made of a spec, in order."""
    return [request for request in recorded(workspace.requests) if request.spec == spec]


def receipt_key(request: ForgetRequest) -> str:
    """Key of the receipt that a request has been answered."""
    return artifact_key(STAGE, VERSION, request)


def receipt(artifacts: Artifacts, request: ForgetRequest) -> Manifest | None:
    """The receipt of a request, or None while it waits."""
    return artifacts.find(STAGE, receipt_key(request))


def answered(workspace: Workspace, spec: str) -> tuple[ForgetRequest, ...]:
    """The requests of a spec that have been answered: the rows of these are gone for good."""
    artifacts = Artifacts(workspace.artifacts)
    return tuple(each for each in requests_of(workspace, spec) if receipt(artifacts, each))


def rows_named(
    requests: Iterable[ForgetRequest], digests: Sequence[str], example_ids: NDArray[np.int64]
) -> set[int]:
    """Places among the training rows that requests mean.

    A row is known by its digest. Where several rows are copies of each other, the one of the same
    id is meant; where none has that id any more, all copies are.

    Args:
        requests: The requests.
        digests: Digest of each training row.
        example_ids: Id of each training row, ascending [n_train].
    """
    copies: dict[str, list[int]] = {}
    for place, digest in enumerate(digests):
        copies.setdefault(digest, []).append(place)
    places: set[int] = set()
    for request in requests:
        at = np.searchsorted(example_ids, request.example_ids).tolist()
        for place, example, digest in zip(at, request.example_ids, request.digests, strict=True):
            known = copies.get(digest, [])
            same = place in known and example_ids[place] == example
            places.update([place] if same else known)
    return places
