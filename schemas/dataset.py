"""What an ingested data set is: its task, sizes, classes and shape, not its rows."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.frozen import Frozen, distinct, refuse
from schemas.recipe import Task


class DatasetFacts(Frozen):
    """Facts about one ingested data set."""

    dataset_id: Annotated[str, Field(min_length=1)]
    """Digest of the rows as they are used: after splitting and corruption."""
    task: Task
    """Classification into `classes`, regression onto one number, or the next of `n_tokens`."""
    n_train: Annotated[int, Field(gt=0)]
    """Rows of split 'train'."""
    n_test: Annotated[int, Field(ge=0)]
    """Rows of split 'test'."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by class index; empty for a regression."""
    input_shape: tuple[Annotated[int, Field(gt=0)], ...]
    """Shape of one input."""
    input_dtype: str = "float32"
    """Element type of the inputs on disk."""
    n_tokens: Annotated[int, Field(ge=0)] = 0
    """Token numbers of texts, padding included; 0 where the inputs are no texts."""
    n_corrupted: Annotated[int, Field(ge=0)] = 0
    """Training rows whose target is known to be wrong: changed on purpose, or so by the source."""
    features: tuple[str, ...] = ()
    """Names of the columns of inputs [n, d]; empty where the source names none."""
    source_digest: Annotated[str, Field(min_length=1)]
    """Digest of the source: the file's bytes, or name and version of a built-in set."""

    @property
    def n_outputs(self) -> int:
        """Width of the model's output: a logit for each class or token, or one number."""
        return self.n_tokens if self.task == "language" else len(self.classes) or 1

    @model_validator(mode="after")
    def _classes_fit_the_task(self) -> Self:
        distinct(self.classes)
        if self.task == "regression" and self.classes:
            refuse([(("classes",), "a regression has none; leave them empty")])
        if self.task == "classification" and len(self.classes) < 2:
            refuse([(("classes",), "a classification needs two; name them by class index")])
        if self.task == "language" and not self.n_tokens:
            refuse([(("n_tokens",), "a language task needs tokens; say how many there are")])
        if self.n_corrupted > self.n_train:
            refuse([(("n_corrupted",), f"more than the {self.n_train} training rows")])
        return self
