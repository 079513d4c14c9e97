"""What could be done to a model through its data: ``[[problem]]`` of kind "poison".

Who asks is the owner of the pipeline: what a contributor of so many rows could do at worst, and
whether it would be noticed.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.frozen import Frozen, Name, distinct, refuse

Move = Literal["flip", "insert", "perturb", "match"]
# Moves of inputs, labels kept.
OF_INPUTS = ("perturb", "match")
# What the rows of an attack are called.
MOVED: dict[str, str] = {
    "flip": "flipped labels",
    "insert": "added rows",
    "perturb": "rows with moved inputs",
    "match": "rows with moved inputs",
}
Rows = Annotated[str, Field(min_length=1)]
Amount = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)]

# What `by` calls the class of a row, beside columns of metadata.
CLASS = "class"
# Draws at which their 95th percentile lies inside them.
LEAST_DRAWS = 20


class PoisonSpec(Frozen):
    """``[[problem]]`` with ``kind = "poison"``: what a contributor of a few rows could do."""

    kind: Annotated[Literal["poison"], Field(examples=["poison"])]
    """The kind of question."""
    name: Name = "poison"
    """What the answer is called in tables, reports and the names of exported files."""
    uses: Annotated[str, Field(examples=["trak"])]
    """Name of the attribution, a 'trak', by whose options and output effects are seen."""
    targets: Annotated[str, Field(min_length=1, examples=["cats"])]
    """Whose outputs the attacker wants to be worse: a set of test rows, or SQL that finds them."""
    move: Move = "flip"
    """What the contributor does: move the labels of own training rows ('flip'), add rows
    ('insert'), or move inputs and keep labels: where the targets are hurt most ('perturb'), or
    until rows of one class pull as the targets would under its label ('match')."""
    rows: Rows | None = None
    """Training rows that the contributor controls and may move, a set or SQL; by default all."""
    pool: Rows | None = None
    """Examples that the contributor may insert under any label, a set or SQL: copies of training
    rows (all of them by default), or test rows that are neither targets nor judged on."""
    radius: Annotated[float, Field(gt=0)] | None = None
    """Moves of inputs: the most that each input of a row may change, in the unit that models see;
    a standardised column has a spread of 1."""
    valid: tuple[float, float] | None = None
    """Moves of inputs: the least and the largest valid value; by default what the training rows
    span, input by input."""
    taken_for: Annotated[str, Field(min_length=1)] | None = None
    """'match': the class that the targets should be taken for, and whose rows are moved."""
    budget: Annotated[
        Amount | Annotated[tuple[Amount, ...], Field(min_length=1)],
        Field(examples=[25, [0.02, 0.035]]),
    ] = (0.01, 0.02)
    """Rows that may be moved or added: a number, a share of the training rows, or several."""
    stealth: Annotated[float, Field(gt=0)] | None = None
    """The most that the mean output of the other judging rows may get worse; by default anything
    goes."""
    by: Annotated[tuple[str, ...], AfterValidator(distinct)] = ("class",)
    """Columns whose values are compared as weak spots: 'class', or metadata."""
    draws: Annotated[int, Field(ge=LEAST_DRAWS, le=1_000)] = LEAST_DRAWS
    """Random moves of each budget that an attack must exceed, anywhere, and as many inside the
    classes of the targets."""
    rounds: Annotated[int, Field(ge=0, le=10)] = 2
    """Times that the search looks again at models trained on what it has found."""
    checkpoints: Annotated[int, Field(ge=1)] = 5
    """Models that effects are averaged over in each round."""

    @property
    def amounts(self) -> tuple[int | float, ...]:
        """The budgets as they are written, one or several."""
        return self.budget if isinstance(self.budget, tuple) else (self.budget,)

    @property
    def moves_inputs(self) -> bool:
        """Whether inputs move, and labels stay."""
        return self.move in OF_INPUTS

    def counts(self, n_train: int) -> tuple[int, ...]:
        """The budgets as numbers of rows, ascending, each once."""
        rows = (each if isinstance(each, int) else round(each * n_train) for each in self.amounts)
        return tuple(sorted(set(rows)))

    @model_validator(mode="after")
    def _options_belong_to_the_move(self) -> Self:
        refuse(self._refusals())
        return self

    def _refusals(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.move != "insert" and self.pool is not None:
            added = "flips add" if self.move == "flip" else f"'{self.move}' adds"
            yield ("pool",), f"{added} no rows; name the contributor's rows as 'rows'"
        if self.move == "insert" and self.rows is not None:
            yield (
                ("rows",),
                "what is inserted is nobody's row yet; name what may be added as 'pool'",
            )
        if self.moves_inputs:
            yield from self._refusals_of_inputs()
        else:
            for option in ("radius", "valid"):
                if getattr(self, option) is not None:
                    yield (option,), f"'{self.move}' leaves inputs as they are; leave {option} out"
        if self.move != "match" and self.taken_for is not None:
            yield ("taken_for",), "only 'match' aims at a class; leave taken_for out"

    def _refusals_of_inputs(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.radius is None:
            yield (
                ("radius",),
                "missing; say how far each input may move, in the unit that models see",
            )
        if self.valid is not None and self.valid[0] >= self.valid[1]:
            yield ("valid",), f"{list(self.valid)} holds no values; give the least and the largest"
        if self.move == "match" and self.taken_for is None:
            yield ("taken_for",), "missing; name the class that the targets should be taken for"
        if "by" in self.model_fields_set and self.by:
            yield ("by",), "weak spots are of labels, and labels stay; leave by out"
