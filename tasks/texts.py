"""The texts of a data set, as they were written, and other metadata by row."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError, NotFound, ShapeError
from schemas.frozen import nearest
from schemas.methods import Bm25Spec, EmbeddingSpec
from tasks.blueprint import Blueprint
from tasks.intake.tokens import PADDING
from tasks.sets import IntArray


def texts_of(plan: Blueprint, ids: IntArray) -> list[str]:
    """Texts of some rows, by example id.

    Raises:
        NotFound: The rows are no texts.
    """
    text = plan.spec.data.text
    if text is None:
        raise NotFound("the rows are no texts; name their column as data.text")
    return [str(value) for value in metadata_of(plan, text.column, ids)]


def metadata_of(plan: Blueprint, column: str, ids: IntArray) -> list[Any]:
    """One metadata value of some rows, by example id; None where a row has none.

    Raises:
        NotFound: No row has such a column.
    """
    rows = plan.dataset.examples["metadata"].to_list()
    first = json.loads(next((row for row in rows if row), "{}"))
    if column not in first:
        raise NotFound(f"the rows have no metadata column '{column}'{nearest(column, first)}")
    found = (rows[place] for place in plan.dataset.positions(ids).tolist())
    return [json.loads(row).get(column) if row else None for row in found]


def vectors_of(plan: Blueprint, column: str, ids: IntArray) -> NDArray[np.float32]:
    """Embeddings [n, d] that a metadata column holds.

    Raises:
        NotFound: There is no such column.
        DataError: A row holds no list of numbers, or lists differ in length.
    """
    lists = metadata_of(plan, column, ids)
    width = len(lists[0]) if isinstance(lists[0], list) else 0
    for place, values in enumerate(lists):
        numbers = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
        if not (numbers and len(values) == width):
            raise DataError(
                f"example {ids[place]}: column '{column}' holds no list of {width or 'some'} "
                "numbers; an embedding has as many in every row"
            )
    return np.array(lists, dtype=np.float32)


def options_of_rows(plan: Blueprint, attribution: Bm25Spec | EmbeddingSpec) -> dict[str, Any]:
    """What a method that asks no model compares: texts or embeddings of rows and queries.

    Raises:
        ShapeError: The rows are neither texts nor tokens.
        NotFound: There is no column of embeddings.
        DataError: A row holds no embedding.
    """
    sides = {"train": plan.dataset.train.example_ids, "query": plan.sets.scored}
    if isinstance(attribution, Bm25Spec):
        rows = plan.dataset.inputs
        if plan.spec.data.text is None and rows.dtype.kind in "iu" and rows.ndim == 2:
            return {"padding": PADDING}
        if plan.spec.data.text is None:
            raise ShapeError(
                f"attribution '{attribution.name}': bm25 compares words, and the rows are no "
                "texts; read a column of them by data.text"
            )
        return {f"{side}_texts": texts_of(plan, ids) for side, ids in sides.items()}
    if attribution.column is not None:
        column = attribution.column
        return {f"{side}_embeddings": vectors_of(plan, column, ids) for side, ids in sides.items()}
    from attribution.latent_words import WIDTH, latent_words

    train, queries = (texts_of(plan, ids) for ids in sides.values())
    made = latent_words(train, queries, dim=attribution.dim or WIDTH, seed=plan.spec.seed)
    return {f"{side}_embeddings": vectors for side, vectors in zip(sides, made, strict=True)}
