"""What every description in winnow has in common: it is frozen, closed and addressable.

Frozen: nothing changes after validation. Closed: an unknown key is an error. Addressable: the
digest covers the values, not the text that spelled them, so comments, order and spelt-out
defaults do not change it.
"""

import hashlib
import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

REFUSAL = "refused"
"""The pydantic error type of our own sentences."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]*$"
MEMORY = r"^\d+(\.\d+)? ?(MB|GB|MiB|GiB)$"
PATTERN_IN_WORDS = {
    NAME: "letters, digits, '.', '_' and '-', with a letter or digit first",
    IDENTIFIER: "letters, digits and '_', with no digit first",
    MEMORY: "a size as in '4 GiB'",
}

Name = Annotated[str, Field(pattern=NAME, max_length=80)]
"""Safe in tables, file names and MLflow."""


class Frozen(BaseModel):
    """Base of everything that is written down: frozen, closed, with a digest."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    def digest(self) -> str:
        """Sixteen hex characters that name these values."""
        return digest_of(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: Any) -> str:
    """Sixteen hex characters of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def refusal(sentence: str) -> PydanticCustomError:
    """One of our own sentences as the error that a validator raises."""
    return PydanticCustomError(REFUSAL, "{sentence}", {"sentence": sentence})


def refuse(problems: Iterable[tuple[tuple[str | int, ...], str]]) -> None:
    """Raise every problem found by a cross-check at once; return when there is none.

    Pydantic merges a `ValidationError` that a validator raises into its own, so several problems,
    each at its own place, reach the reader together.

    Args:
        problems: Pairs of a place (relative to the validated value) and a sentence.

    Raises:
        ValidationError: If there is at least one problem.
    """
    details = [
        InitErrorDetails(type=refusal(sentence), loc=place, input=None)
        for place, sentence in problems
    ]
    if details:
        raise ValidationError.from_exception_data("winnow", details)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A validator that refuses a value given twice."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise refusal(f"{shown(value)} is given twice; leave one out")
    return values


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'this'?`` for the closest known word, else ``; choose 'a' or 'b'``."""
    words = sorted(known)
    close = get_close_matches(word, words, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose {either(words)}" if words else ""


def either(words: Iterable[str]) -> str:
    """``'a', 'b' or 'c'``."""
    *most, last = [f"'{word}'" for word in words]
    return f"{', '.join(most)} or {last}" if most else last


def shown(value: Any, *, limit: int = 60) -> str:
    """A value as TOML would spell it, shortened."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
