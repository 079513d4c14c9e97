"""What must be forgotten: ``[[problem]]`` of kind "unlearn", and requests that arrive later.

A spec names the rows that must go by a set, or leaves them to requests; either way it says how
they are unlearned and against what the result is measured.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from schemas.frozen import IDENTIFIER, Frozen, Name, distinct, refuse
from schemas.recipe import Task

UnlearnMethod = Literal[
    "matching",
    "newton",
    "influence",
    "projected",
    "finetune",
    "ascent",
    "ascent_descent",
    "scrub",
    "graddiff",
    "npo",
    "oracle_matching",
]

METHODS = get_args(UnlearnMethod)
METHODS_OF_TASK: dict[Task, tuple[UnlearnMethod, ...]] = {
    "classification": METHODS,
    "regression": tuple(method for method in METHODS if method not in ("scrub", "npo")),
    "language": METHODS,
}
"""What can be done for each task: SCRUB and NPO speak of probabilities."""

# Reads models that never saw the rows: it bounds what matching can reach, and unlearns nothing.
BOUND: UnlearnMethod = "oracle_matching"


class UnlearnSpec(Frozen):
    """``[[problem]]`` with ``kind = "unlearn"``: rows that a trained model must forget."""

    kind: Annotated[Literal["unlearn"], Field(examples=["unlearn"])]
    """The kind of question."""
    name: Name = "unlearn"
    """What the answer is called in tables and reports."""
    uses: Annotated[str, Field(examples=["trak"])]
    """Name of the attribution that predicts what forgetting does."""
    forget: Annotated[str, Field(pattern=IDENTIFIER, max_length=80)] | None = None
    """Set of training rows that must go; without one, only requests (`winnow forget`) name them."""
    targets: str = "queries"
    """Set of examples whose outputs' change is predicted."""
    method: UnlearnMethod = "matching"
    """How the models are changed."""
    compare: Annotated[tuple[UnlearnMethod, ...], AfterValidator(distinct)] = ("newton", "finetune")
    """Other methods, judged beside it."""
    models: Annotated[int, Field(ge=4, le=1_000)] = 50
    """Models that are unlearned, to be judged as a distribution; twice as many are retrained. With
    few the floor is high: the P95 of retrained models is about 5 at 20, 1.7 at 50, 0.7 at 100."""
    options: dict[UnlearnMethod, dict[str, bool | int | float | str]] = Field(
        default_factory=dict, examples=[{"matching": {"lr": 1e-4, "epochs": 4}}]
    )
    """What differs from each method's own defaults, by method."""

    def rivals(self, task: Task) -> tuple[UnlearnMethod, ...]:
        """The methods that are judged beside the chosen one, of those that the task has."""
        known = METHODS_OF_TASK[task]
        return tuple(each for each in self.compare if each != self.method and each in known)

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        problems: list[tuple[tuple[str | int, ...], str]] = []
        if self.method == BOUND:
            sentence = f"'{BOUND}' reads retrained models; name it in compare, as a bound"
            problems.append((("method",), sentence))
        if self.method in self.compare and "compare" in self.model_fields_set:
            sentence = f"'{self.method}' is the method already; leave it out"
            problems.append((("compare",), sentence))
        for name in self.options:
            if name not in (self.method, *self.compare):
                sentence = "it is neither the method nor compared with it; leave these options out"
                problems.append((("options", name), sentence))
        refuse(problems)
        return self


class ForgetRequest(Frozen):
    """One request that some rows be forgotten, frozen when it was made."""

    number: Annotated[int, Field(ge=1)]
    """Its place among the requests of the workspace."""
    spec: Name
    """Name of the spec whose problem answers it."""
    problem: Name
    """Name of that problem."""
    where: str
    """The SQL that named the rows."""
    note: str = ""
    """Why, in the words of whoever asked."""
    example_ids: Annotated[tuple[int, ...], Field(min_length=1)]
    """The rows as they were found, ascending."""
    digests: Annotated[tuple[str, ...], Field(min_length=1)]
    """Digest of each row as the model saw it: what is forgotten is a row, not its number."""
    recorded_at: AwareDatetime
    """When it was made."""

    @property
    def id(self) -> str:
        """Its number and a digest of all it says: also the name of its file."""
        return f"{self.number:04d}-{self.digest()[:12]}"
