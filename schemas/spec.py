"""The spec of a curation: one TOML file that names data, recipe, methods, problems and verdict.

`load_spec` reads it and reports everything that is wrong with it at once. A spec that loads has
no unknown key, no value out of range, and no name that leads nowhere; whether files exist and
rows fit is found where they are read.

    python -m schemas.spec        writes schemas/curation.schema.json, which editors understand
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from schemas.agreement import (
    attribution_conflicts,
    model_conflicts,
    problem_conflicts,
    verdict_conflicts,
)
from schemas.complaints import complaints
from schemas.errors import NotFound, SpecError
from schemas.frozen import Frozen, Name, nearest, refusal, refuse
from schemas.methods import (
    AttributionSpec,
    RunMethodSpec,
    TrakSpec,
)
from schemas.poisoning import PoisonSpec
from schemas.questions import (
    DEFAULT_SETS,
    ChoiceSpec,
    DebugSpec,
    DecisionSpec,
    ProblemSpec,
    Quota,
    SelectSpec,
    SetName,
    TraceSpec,
    ValueSpec,
    VerdictSpec,
    attributions_of,
    target_sets,
)
from schemas.recipe import (
    FILE_SCHEMES,
    BankSpec,
    DataSpec,
    ModelSpec,
    TrainSpec,
    python_reference,
)
from schemas.screening import ScreenSpec
from schemas.settings import ComputeSpec, StoreSpec, TrackingSpec
from schemas.unlearning import UnlearnSpec

SCHEMA_PATH = Path(__file__).with_name("curation.schema.json")


def _is_query(sql: str) -> str:
    first = sql.split(maxsplit=1)[0].upper() if sql.strip() else ""
    if first not in ("SELECT", "FROM", "WITH"):
        raise refusal("no query; write SQL as in SELECT example_id FROM examples WHERE ...")
    return sql


def _with_default_sets(sets: Any) -> Any:
    # Only when both are absent: a default beside one's own could hold the same rows.
    if isinstance(sets, dict) and not sets.keys() & DEFAULT_SETS.keys():
        return {**DEFAULT_SETS, **sets}
    return sets


Asked = TypeVar("Asked", PoisonSpec, ScreenSpec, UnlearnSpec)


class CurationSpec(Frozen):
    """One TOML file: what is asked of which data, and how the answer is checked."""

    name: Annotated[Name, Field(examples=["digits"])]
    """What runs are called in tables, reports and MLflow."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Key of all randomness; the same seed gives the same numbers."""
    data: DataSpec
    """Where the rows come from."""
    sets: Annotated[
        dict[SetName, Annotated[str, AfterValidator(_is_query)]],
        BeforeValidator(_with_default_sets),
    ] = Field(default_factory=dict)
    """Sets of examples as SQL over `examples`; 'queries' and 'holdout' halve the test rows."""
    model: ModelSpec
    """What is trained."""
    train: TrainSpec = TrainSpec()
    """How it is trained."""
    bank: BankSpec = BankSpec()
    """Retrainings on subsets, against which every prediction is measured."""
    attribution: tuple[AttributionSpec, ...] = ()
    """How scores are computed; problems of kind "value" alone need none."""
    problem: Annotated[tuple[ProblemSpec, ...], Field(validate_default=True)] = ()
    """What is decided from the scores, or valued by retraining."""
    verdict: VerdictSpec = VerdictSpec()
    """How a decision is checked by retraining."""
    store: StoreSpec = StoreSpec()
    """What the ledger keeps."""
    compute: ComputeSpec = ComputeSpec()
    """Where it runs."""
    tracking: TrackingSpec = TrackingSpec()
    """Where MLflow is."""

    def attribution_named(self, name: str) -> AttributionSpec:
        """The attribution that a problem's `uses` names."""
        return next(a for a in self.attribution if a.name == name)

    @property
    def decisions(self) -> tuple[DecisionSpec, ...]:
        """The problems that are solved over scores; a verdict judges each."""
        later = ValueSpec | ScreenSpec
        return tuple(problem for problem in self.problem if not isinstance(problem, later))

    def decision_named(self, name: str) -> DecisionSpec:
        """The problem of that name."""
        return next(problem for problem in self.decisions if problem.name == name)

    def problem_of(self, kind: type[Asked], name: str | None = None) -> Asked:
        """The problem of a kind, as named, or the only one there is.

        Raises:
            NotFound: There is none, none of that name, or there are several and none was named.
        """
        word = str(get_args(kind.model_fields["kind"].annotation)[0])
        known = {each.name: each for each in self.problem if isinstance(each, kind)}
        if not known:
            raise NotFound(
                f"{self.name} has no problem of kind '{word}'; add a [[problem]] with "
                f"kind = '{word}'"
            )
        if name is None and len(known) > 1:
            raise NotFound(
                f"{self.name} has {len(known)} problems of kind '{word}'; name one with --problem"
                f"{nearest('', known)}"
            )
        if name is not None and name not in known:
            raise NotFound(f"there is no problem '{name}' of kind '{word}'{nearest(name, known)}")
        return known[name or next(iter(known))]

    @property
    def selections(self) -> tuple[SelectSpec, ...]:
        """The problems that choose rows to train on."""
        return tuple(problem for problem in self.problem if isinstance(problem, SelectSpec))

    @property
    def unlearnings(self) -> tuple[UnlearnSpec, ...]:
        """The problems that make trained models forget rows."""
        return tuple(problem for problem in self.problem if isinstance(problem, UnlearnSpec))

    @property
    def traces(self) -> tuple[TraceSpec, ...]:
        """The problems that ask which rows made the model say something."""
        return tuple(problem for problem in self.problem if isinstance(problem, TraceSpec))

    @property
    def diagnoses(self) -> tuple[DebugSpec, ...]:
        """The problems that ask why an output is what it is."""
        return tuple(problem for problem in self.problem if isinstance(problem, DebugSpec))

    @property
    def poisonings(self) -> tuple[PoisonSpec, ...]:
        """The problems that ask what a contributor of a few rows could do."""
        return tuple(problem for problem in self.problem if isinstance(problem, PoisonSpec))

    @property
    def valuations(self) -> tuple[ValueSpec, ...]:
        """The problems that value sources or rows."""
        return tuple(problem for problem in self.problem if isinstance(problem, ValueSpec))

    @property
    def screens(self) -> tuple[ScreenSpec, ...]:
        """The problems that are asked of batches of new rows."""
        return tuple(problem for problem in self.problem if isinstance(problem, ScreenSpec))

    # Each check sees the sections above its own that are valid, so that one bad section hides no
    # problem of another.

    @field_validator("model")
    @classmethod
    def _model_reads_the_rows(cls, model: ModelSpec, info: ValidationInfo) -> ModelSpec:
        refuse(model_conflicts(model, info.data))
        return model

    @field_validator("attribution")
    @classmethod
    def _attributions_fit(
        cls, attributions: tuple[AttributionSpec, ...], info: ValidationInfo
    ) -> tuple[AttributionSpec, ...]:
        refuse(attribution_conflicts(attributions, info.data))
        return attributions

    @field_validator("problem")
    @classmethod
    def _problems_fit(
        cls, problems: tuple[ProblemSpec, ...], info: ValidationInfo
    ) -> tuple[ProblemSpec, ...]:
        refuse(problem_conflicts(problems, info.data))
        return problems

    @field_validator("verdict")
    @classmethod
    def _verdict_fits(cls, verdict: VerdictSpec, info: ValidationInfo) -> VerdictSpec:
        refuse(verdict_conflicts(verdict, info.data))
        return verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedSpec:
    """A spec and the file that it came from.

    Attributes:
        spec: What the file says.
        path: The file, absolute.
        text: The file's text, comments and all.
        digest: Sixteen hex characters that name the values, whatever the text looks like.
    """

    spec: CurationSpec
    path: Path
    text: str
    digest: str

    def resolve(self, text: str) -> Path:
        """A path as the spec spells it, relative to the folder of the spec."""
        return (self.path.parent / Path(text).expanduser()).resolve()

    @property
    def source_path(self) -> Path | None:
        """The data's file, or the Python file that makes the data; None for sklearn's."""
        data = self.spec.data
        if reference := python_reference(data.source):
            return self.resolve(reference.file)
        return self.resolve(data.location) if data.scheme in FILE_SCHEMES else None

    @property
    def model_path(self) -> Path | None:
        """The user's file that builds the model; None for a built-in one."""
        reference = self.spec.model.reference
        return self.resolve(reference.file) if reference else None

    @property
    def checkpoint_paths(self) -> tuple[Path, ...]:
        """One's own weights, in the order of the spec."""
        return tuple(self.resolve(file) for file in self.spec.model.checkpoints)


def load_spec(path: Path | str) -> LoadedSpec:
    """Read a spec, and check all that can be checked without reading data.

    Args:
        path: A TOML file.

    Raises:
        SpecError: If the file cannot be read, is no TOML, or says something impossible; holds a
            line for every problem.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise SpecError(str(path), ["there is no such file; check the path"]) from None
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8; save the file as UTF-8"
        raise SpecError(str(path), [problem]) from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(str(path), [f"not TOML: {error}"]) from None
    spec = parse_spec(data, source=str(path))
    return LoadedSpec(spec=spec, path=path.resolve(), text=text, digest=spec.digest())


def parse_spec(data: dict[str, Any], *, source: str = "spec") -> CurationSpec:
    """Check a spec that is already a table (what TOML or JSON gave).

    Args:
        data: Keys and values, as TOML has them.
        source: What to call it in an error.

    Raises:
        SpecError: Holds a line for every problem.
    """
    try:
        # As JSON, because pydantic's strict mode takes a JSON list for a tuple but no Python list;
        # strict, so that "5" is no number. A TOML date becomes text, and fails where text fails.
        return CurationSpec.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise SpecError(source, complaints(error, CurationSpec, data)) from None


def schema_text() -> str:
    """The JSON Schema of a spec, as it is checked in."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **CurationSpec.model_json_schema(),
        "title": "winnow curation spec",
    }
    return json.dumps(schema, indent=2) + "\n"


__all__ = [
    "AttributionSpec",
    "BankSpec",
    "ChoiceSpec",
    "ComputeSpec",
    "CurationSpec",
    "DataSpec",
    "DebugSpec",
    "DecisionSpec",
    "LoadedSpec",
    "PoisonSpec",
    "Quota",
    "RunMethodSpec",
    "ScreenSpec",
    "SelectSpec",
    "TraceSpec",
    "TrainSpec",
    "TrakSpec",
    "UnlearnSpec",
    "ValueSpec",
    "attributions_of",
    "load_spec",
    "parse_spec",
    "python_reference",
    "schema_text",
    "target_sets",
]

if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
