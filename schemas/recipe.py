"""What is trained, and on what: the tables ``[data]``, ``[model]``, ``[train]`` and ``[bank]``.

A section knows its own keys, ranges and impossible combinations; what concerns two sections at
once is checked by `schemas.spec.CurationSpec`. Relative paths stay as they were written: only
`schemas.spec.LoadedSpec` knows the folder that they are relative to.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from schemas.frozen import Frozen, distinct, nearest, refusal, refuse

Task = Literal["classification", "regression", "language"]

SKLEARN_TASKS: dict[str, Task] = {
    "breast_cancer": "classification",
    "diabetes": "regression",
    "digits": "classification",
    "wine": "classification",
}
TABLE_SCHEMES = ("csv", "parquet", "jsonl")
FILE_SCHEMES = (*TABLE_SCHEMES, "npz", "idx")
SOURCE_SCHEMES = ("sklearn", *FILE_SCHEMES, "python")
MODEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "mlp": ("activation", "hidden"),
    "cnn": ("channels", "hidden"),
    "resnet": ("blocks", "width"),
    "bag": ("hidden", "vocabulary", "width"),
    "transformer": ("causal", "depth", "heads", "vocabulary", "width"),
    "two_tower": ("captions", "channels", "width"),
}
TEXT_MODELS = ("bag", "transformer")
BUILT_IN_MODELS = tuple(MODEL_OPTIONS)
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
CHECKPOINT_SUFFIXES = (".safetensors", ".pt")

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Reference(NamedTuple):
    """A function in a user's file: ``python:FILE.py:FUNCTION``."""

    file: str
    function: str


def python_reference(text: str) -> Reference | None:
    """Read ``python:FILE.py:FUNCTION``; None when `text` is spelled otherwise."""
    match = re.fullmatch(r"python:(.+\.py):([A-Za-z_]\w*)", text)
    return Reference(match[1], match[2]) if match else None


# --- [data] ---------------------------------------------------------------------------------------


class CorruptSpec(Frozen):
    """``data.corrupt``: damage done on purpose, for experiments; the truth is kept beside it."""

    labels: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training labels that is replaced by another class."""


# Token numbers of the 256 bytes, and of padding.
BYTE_TOKENS = 257


class TextSpec(Frozen):
    """``data.text``: a column of text that the model reads as token numbers."""

    column: Annotated[str, Field(examples=["sentence"])]
    """The column."""
    tokens: Literal["words", "bytes"] = "words"
    """Words and punctuation, in lower case and hashed into `vocabulary`; or UTF-8 bytes."""
    length: Annotated[int, Field(gt=0)] = 64
    """Tokens of a text; longer texts are cut, shorter ones padded."""
    vocabulary: Annotated[int, Field(gt=1)] = 4096
    """Token numbers, padding included; 257 for bytes."""
    answer: str | None = None
    """Column of the words that are asked for, of a language model: where a row fills it, its output
    and its loss are those of these words alone, of the text's last mention of them."""

    @model_validator(mode="before")
    @classmethod
    def _bytes_have_their_vocabulary(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("tokens") == "bytes":
            return {"vocabulary": BYTE_TOKENS} | given
        return given

    @model_validator(mode="after")
    def _vocabulary_holds_the_tokens(self) -> Self:
        if self.tokens == "bytes" and self.vocabulary != BYTE_TOKENS:
            refuse([(("vocabulary",), f"bytes have {BYTE_TOKENS} token numbers; leave it out")])
        return self


class DataSpec(Frozen):
    """``[data]``: where the rows come from."""

    source: Annotated[str, Field(examples=["sklearn:digits", "csv:rows.csv"])]
    """sklearn:NAME, csv:, parquet:, jsonl: or npz:PATH, idx:FOLDER, python:FILE.py:FUNCTION."""
    target: str | None = None
    """Column to predict; needed for csv, parquet and jsonl, but where a text predicts itself."""
    true_target: Annotated[str | None, Field(exclude_if=lambda column: column is None)] = None
    """Column of the true labels where they are known: reports say which of the wrong ones were
    found. Models never see it."""
    text: TextSpec | None = None
    """A text column as the input; without `target`, each token is predicted from those before."""
    id: str | None = None
    """Column that names a row; without one, the row number does."""
    split: str | None = None
    """Column that holds 'train' or 'test'; without one, `test_fraction` decides."""
    metadata: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    """Columns that are kept for SQL and reports, and never shown to the model."""
    test_fraction: Fraction = 0.2
    """Share of the rows that is held out, drawn by the content of each row."""
    corrupt: CorruptSpec = CorruptSpec()
    """Label noise for experiments."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """What is predicted of a target; 'auto' decides by its column."""

    @property
    def scheme(self) -> str:
        """The word before the first colon of `source`."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """What follows the first colon of `source`."""
        return self.source.partition(":")[2]

    @property
    def known_task(self) -> Task | None:
        """The task where the spec alone tells it, else None (the rows decide)."""
        if self.text and not self.target:
            return "language"
        if self.task != "auto":
            return self.task
        return SKLEARN_TASKS.get(self.location) if self.scheme == "sklearn" else None

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        scheme, colon, location = source.partition(":")
        if scheme not in SOURCE_SCHEMES:
            raise refusal(f"unknown kind of source '{scheme}'{nearest(scheme, SOURCE_SCHEMES)}")
        if not colon or not location:
            raise refusal(f"found '{source}'; say what to read, as in '{scheme}:{_AFTER[scheme]}'")
        if scheme == "sklearn" and location not in SKLEARN_TASKS:
            raise refusal(f"no sklearn data set '{location}'{nearest(location, SKLEARN_TASKS)}")
        if scheme == "python" and python_reference(source) is None:
            raise refusal(f"found '{source}'; write 'python:FILE.py:FUNCTION'")
        return source

    @model_validator(mode="after")
    def _columns_fit_the_source(self) -> Self:
        refuse(self._column_problems())
        return self

    def _column_problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.text and self.scheme not in TABLE_SCHEMES:
            yield ("text",), f"{self.source} has no columns of text; use csv, parquet or jsonl"
        taken = (self.target, self.id, self.split, *self.metadata)
        if self.text and self.text.column in taken:
            yield ("text", "column"), f"column '{self.text.column}' has another role; name another"
        if self.text and self.text.answer in (self.text.column, *taken) and self.text.answer:
            yield ("text", "answer"), f"column '{self.text.answer}' has another role; name another"
        if self.text and self.text.answer and self.target:
            yield ("text", "answer"), "only a text that predicts itself has answers; leave it out"
        yield from self._truth_problems()
        if self.known_task == "language" and self.task != "auto":
            yield ("task",), f"a {self.task} needs a target; name its column, or leave it out"
        if self.scheme in TABLE_SCHEMES and not self.target and not self.text:
            yield ("target",), f"missing; name the column of {self.source} to predict"
        if self.scheme == "idx" and self.target:
            yield ("target",), f"{self.source} has labels of its own; leave it out"
        if self.scheme in ("sklearn", "idx"):
            for key in ("id", "split", "metadata"):
                if getattr(self, key):
                    yield (key,), f"{self.source} has no columns to choose from; leave it out"
        elif self.split and self.test_fraction != type(self).model_fields["test_fraction"].default:
            yield ("test_fraction",), f"the column '{self.split}' splits already; leave one out"
        roles = {"id": self.id, "split": self.split, "target": self.target}
        for key in ("id", "split"):
            others = [
                role for role, column in roles.items() if role != key and column == roles[key]
            ]
            if roles[key] and others:
                yield (key,), f"column '{roles[key]}' is {others[-1]} already; name another"
        if self.target and self.target in self.metadata:
            yield ("metadata",), f"'{self.target}' is the target already; leave it out"
        if self.corrupt.labels > 0 and self.known_task in ("regression", "language"):
            kind = "a regression" if self.target or not self.text else "text without a target"
            yield ("corrupt", "labels"), f"{kind} has no labels to flip; leave it out"

    def _truth_problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What speaks against a column of true labels."""
        if self.true_target is None:
            return
        taken = (self.target, self.id, self.split, *self.metadata)
        if self.scheme not in TABLE_SCHEMES:
            yield ("true_target",), f"{self.source} has no such column; use csv, parquet or jsonl"
        if self.true_target in taken or (self.text and self.true_target == self.text.column):
            yield ("true_target",), f"column '{self.true_target}' has another role; name another"
        if self.known_task in ("regression", "language"):
            yield ("true_target",), f"a {self.known_task} has no labels to be wrong; leave it out"
        if self.corrupt.labels > 0:
            yield ("true_target",), "corrupt.labels takes the labels for true ones; leave one out"


_AFTER = {scheme: f"rows.{scheme}" for scheme in FILE_SCHEMES} | {
    "sklearn": "digits",
    "idx": "fashion_mnist",
    "python": "recipe.py:dataset",
}


# --- [model], [train] -----------------------------------------------------------------------------


class ModelSpec(Frozen):
    """``[model]``: what is trained."""

    build: Annotated[str, Field(examples=["linear", "mlp"])]
    """linear, mlp, cnn, resnet, bag, transformer, two_tower, or python:FILE.py:FUNCTION, which
    returns a torch module."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """The builder's own: mlp hidden, activation; cnn channels, hidden; resnet width, blocks; bag
    width, hidden; transformer width, depth, heads; two_tower captions, one text for each class,
    channels, width. The vocabulary and whether it is causal follow from the data."""
    checkpoints: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()
    """One's own weights (.safetensors, or .pt read as weights only), instead of training."""

    @property
    def reference(self) -> Reference | None:
        """The user's function, or None for a built-in model."""
        return python_reference(self.build)

    @field_validator("build")
    @classmethod
    def _builder_is_known(cls, build: str) -> str:
        if build in BUILT_IN_MODELS or python_reference(build):
            return build
        if build.startswith("python:"):
            raise refusal(f"found '{build}'; write 'python:FILE.py:FUNCTION'")
        hint = nearest(build, BUILT_IN_MODELS)
        joint = " Or" if hint.endswith("?") else ", or"
        raise refusal(f"unknown model '{build}'{hint}{joint} write 'python:FILE.py:FUNCTION'")

    @model_validator(mode="after")
    def _options_fit_the_builder(self) -> Self:
        refuse(self._option_problems())
        return self

    def _option_problems(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for place, file in enumerate(self.checkpoints):
            if not file.endswith(CHECKPOINT_SUFFIXES):
                yield ("checkpoints", place), f"found '{file}'; weights are .safetensors or .pt"
        if self.build not in BUILT_IN_MODELS:
            return
        known = MODEL_OPTIONS[self.build]
        for key in self.options.keys() - set(known):
            hint = nearest(key, known) or "; leave it out"
            yield ("options", key), f"the {self.build} model has no such option{hint}"
        if "captions" in known and "captions" not in self.options:
            yield ("options",), f"the {self.build} model needs captions, one text for each class"
        for key in self.options.keys() & set(known):
            value = self.options[key]
            if key == "activation" and value not in ACTIVATIONS:
                hint = nearest(str(value), ACTIVATIONS)
                yield ("options", key), f"unknown activation '{value}'{hint}"
            if key in _NUMBERS and not _is_size(value):
                yield ("options", key), f"found {value!r}; write a number of 1 or more, as in 16"
            if key == "captions" and not _are_texts(value):
                yield ("options", key), "write a list of texts, one for each class in order"
            if key == "causal" and not isinstance(value, bool):
                yield ("options", key), f"found {value!r}; write true or false"
            if key in _SIZES and not (isinstance(value, list) and all(map(_is_size, value))):
                yield ("options", key), f"write a list of {_SIZES[key]}"
            elif key in ("channels", "blocks") and not value:
                yield ("options", key), f"the list is empty; write {_SIZES[key]}"


_NUMBERS = ("width", "depth", "heads", "vocabulary")
_SIZES = {
    "hidden": "layer widths, as in [128, 64]",
    "channels": "positive numbers of maps, as in [16, 32]",
    "blocks": "positive numbers of blocks, as in [1, 1, 1]",
}


def _is_size(value: JsonValue) -> bool:
    return type(value) is int and value > 0


def _are_texts(value: JsonValue) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


class TrainSpec(Frozen):
    """``[train]``: how a model is trained; every retraining follows the same recipe."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent, or AdamW."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """L2 penalty of sgd (added to the gradient), decoupled decay of adamw."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """Decay of the two moments of adamw."""
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Epochs over which the learning rate climbs to its peak."""
    epochs: Annotated[int, Field(gt=0)] = 30
    """Passes over the (subset of the) training rows."""
    batch_size: Annotated[int, Field(gt=0)] = 50
    """Rows in a step."""
    seeds: Annotated[int, Field(gt=0)] = 5
    """Independently seeded checkpoints, over which attributions are averaged."""

    @model_validator(mode="after")
    def _optimizer_has_these_knobs(self) -> Self:
        refuse(self._knob_problems())
        return self

    def _knob_problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        default = {key: field.default for key, field in type(self).model_fields.items()}
        # Compared with the default, not with "was it given": a spec that was written out in full
        # and read again must still be the same spec.
        foreign = ("momentum", "nesterov") if self.optimizer == "adamw" else ("betas",)
        for key in foreign:
            if getattr(self, key) != default[key]:
                yield (key,), f"{self.optimizer} has no {key}; leave it out"
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            yield ("nesterov",), "there is no momentum to correct; set momentum above 0"
        if self.warmup >= self.epochs:
            yield ("warmup",), f"{self.warmup:g} epochs of {self.epochs}; write fewer than epochs"


# --- [bank] ---------------------------------------------------------------------------------------


class BankSpec(Frozen):
    """``[bank]``: retrainings on subsets, against which every prediction is measured."""

    models: Annotated[int, Field(gt=0)] = 120
    """Retrainings in all: sizes x subsets x seeds."""
    alpha: Annotated[tuple[Fraction, ...], Field(min_length=1), AfterValidator(distinct)] = (
        0.5,
        0.9,
    )
    """Subset sizes as shares of the training rows; absolute effects need several."""
    seeds: Annotated[int, Field(gt=0)] = 2
    """Retrainings of each subset; two or more give the noise ceiling."""
    calibrate: Fraction = 0.5
    """Share of the subsets that tunes and calibrates; the others only evaluate."""

    @property
    def subsets(self) -> int:
        """Distinct subsets of each size."""
        return self.models // (self.seeds * len(self.alpha))

    @model_validator(mode="after")
    def _models_divide(self) -> Self:
        refuse(self._division_problems())
        return self

    def _division_problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        group = self.seeds * len(self.alpha)
        if self.models % group:
            below, above = self.models // group * group, -(-self.models // group) * group
            choices = sorted({max(count, self._enough() * group) for count in (below, above)})
            advice = " or ".join(str(count) for count in choices)
            sizes = len(self.alpha)
            found = f"{self.models} is not divisible by {sizes} sizes x {self.seeds} seeds"
            yield ("models",), f"{found}; write {advice}"
            return
        share = round(self.subsets * self.calibrate)
        if min(share, self.subsets - share) < 2:
            found = (
                f"{self.models} models are {self.subsets} subsets of each size, "
                f"{share} to calibrate and {self.subsets - share} to evaluate"
            )
            yield ("models",), f"{found}; write at least {self._enough() * group}"

    def _enough(self) -> int:
        """Fewest subsets of each size that leave two on both sides of `calibrate`."""
        count = 4
        while not 2 <= round(count * self.calibrate) <= count - 2:
            count += 1
        return count
