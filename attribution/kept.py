"""Finished retrainings in a folder, so that an interrupted bank goes on where it was.

A retraining is named by a digest of all that its logits depend on, so a folder may serve a growing
bank, or several. A file holds the names [m, 32] and logits [m, n_query, n_outputs] of models that
were trained together, as safetensors; it appears whole or not at all.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from attribution.models import ModelLike, fresh
from attribution.rows import Inputs, take
from attribution.training import Recipe
from schemas.errors import CheckpointError

# Models trained together: what an interruption can lose.
CHUNK_MODELS = 40

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]


def retraining_names(
    model: ModelLike,
    train: tuple[Inputs, torch.Tensor],
    eval_inputs: Inputs,
    masks: BoolArray,
    seeds: Sequence[int],
    training: Recipe,
    task: str,
) -> list[bytes]:
    """What names each retraining: its own rows, its seed, the recipe, the model, the queries.

    Of the model this knows its printed form and its first parameters, not the code of its forward
    pass: after a change of that code use another folder.

    Args:
        model: A module or a factory.
        train: Inputs [n, ...], or a mapping of them, and targets [n].
        eval_inputs: Rows on which the models are observed.
        masks: bool [M, n].
        seeds: [M].
        training: The recipe.
        task: classification or regression.
    """
    template = fresh(model, 0)
    shared = hashlib.sha256(repr((training, task, template)).encode())
    for name, value in template.state_dict().items():
        shared.update(name.encode() + _bytes(value))
    shared.update(_bytes(eval_inputs))
    inputs, targets = train
    digests = [
        hashlib.sha256(_bytes(take(inputs, row)) + _bytes(said)).digest()
        for row, said in enumerate(targets)
    ]
    rows = np.array([np.frombuffer(digest, dtype=np.uint8) for digest in digests])
    return [
        hashlib.sha256(shared.digest() + repr(int(seed)).encode() + rows[mask].tobytes()).digest()
        for mask, seed in zip(masks, seeds, strict=True)
    ]


def trained_through(
    folder: Path,
    names: Sequence[bytes],
    sizes: Sequence[int],
    train: Callable[[list[int]], FloatArray],
) -> FloatArray:
    """Logits of retrainings, of which a folder holds some and keeps the others when they are done.

    Args:
        folder: Where they are kept; made if it does not exist.
        names: What `retraining_names` gave [M].
        sizes: Rows of each subset [M]; models of one size are trained together.
        train: Trains the models of some places and gives their logits [places, n_query, n_outputs].

    Returns:
        float32 [M, n_query, n_outputs].

    Raises:
        CheckpointError: A file of the folder cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = dict(_read(folder))
    missing = list({name: place for place, name in enumerate(names) if name not in known}.values())
    for chunk in _chunks(sorted(missing, key=lambda place: sizes[place]), sizes):
        logits = train(chunk)
        _keep(folder, [names[place] for place in chunk], logits)
        known |= {names[place]: row for place, row in zip(chunk, logits, strict=True)}
    return np.stack([known[name] for name in names])


def _chunks(places: list[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    for place in places:
        if chunk and (len(chunk) == CHUNK_MODELS or sizes[place] != sizes[chunk[0]]):
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _read(folder: Path) -> Iterator[tuple[bytes, FloatArray]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for path in sorted(folder.glob("*.safetensors")):
        try:
            found = load_file(path)
            yield from zip(map(bytes, found["names"]), found["logits"], strict=True)
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(
                f"{path} holds no retrainings ({error}); delete it to train them again"
            ) from error


def _keep(folder: Path, names: list[bytes], logits: FloatArray) -> None:
    from safetensors.numpy import save_file

    path = folder / f"{hashlib.sha256(b''.join(names)).hexdigest()[:20]}.safetensors"
    draft = path.with_suffix(f".{os.getpid()}.draft")
    digests = np.array([np.frombuffer(name, dtype=np.uint8) for name in names])
    save_file({"names": digests, "logits": np.ascontiguousarray(logits)}, draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def _bytes(values: Inputs) -> bytes:
    if isinstance(values, Mapping):
        return b"".join(name.encode() + _bytes(values[name]) for name in sorted(values))
    array = values.detach().cpu().numpy()
    return repr((array.dtype.str, array.shape)).encode() + array.tobytes()
