"""Pydantic's errors in our words: one line for each, ``path: what was found; what to do``.

Knows how a path is spelled, which keys and examples a model has at a path, and what to write for
each kind of error. A union reports one error for each of its members; here they become one line.
"""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from schemas.frozen import PATTERN_IN_WORDS, REFUSAL, nearest, shown

Place = tuple[str | int, ...]

ADVICE = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "model_type": "a table",
    "string_too_long": "at most {max_length} characters",
    "string_type": "text in quotes",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length}",
    "tuple_type": "a list",
}
"""What to write, for each pydantic error type that a spec can meet."""


TAG_ERRORS = ("union_tag_invalid", "union_tag_not_found")
"""Pydantic's types for the key that chooses one of several tables: `method`, `kind`."""


def complaints(error: ValidationError, model: type[BaseModel], data: Any) -> tuple[str, ...]:
    """Every problem of `error`, as pydantic orders them: by key, unknown keys last.

    Args:
        error: What pydantic raised for `data`.
        model: The model that `data` was to become.
        data: The plain value (dicts and lists) that was validated.

    Returns:
        One line for each place: ``bank.modles: unknown key; did you mean 'models'?``.
    """
    by_place: dict[Place, list[Any]] = {}
    for details in error.errors(include_url=False):
        place = _place(details["loc"], data, model)
        if details["type"] in TAG_ERRORS:  # said of the table, meant of its key
            place = (*place, details["ctx"]["discriminator"].strip("'"))
        by_place.setdefault(place, []).append(details)
    for place in [place for place, found in by_place.items() if _is_outer(found)]:
        # Pydantic counts the valid entries only: a list of one bad entry is not short as well. And
        # a table that a union takes is not wrong for being no number.
        if any(other[: len(place)] == place for other in by_place if other != place):
            del by_place[place]
    return tuple(
        f"{spelled(place)}: {_sentence(place, found, model)}" for place, found in by_place.items()
    )


def _is_outer(found: list[Any]) -> bool:
    """Whether errors of a value may stem from what is inside it."""
    kinds = [details["type"] for details in found]
    return all(kind in ("too_short", "literal_error") or kind.endswith("_type") for kind in kinds)


def spelled(place: Place) -> str:
    """``('problem', 0, 'size')`` as ``problem[0].size``."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the spec"


def _place(loc: Place, data: Any, model: type[BaseModel]) -> Place:
    """The part of `loc` that the writer knows: without pydantic's names of union members."""
    place: Place = ()
    for step in loc:
        match data:
            case dict() if step in data:
                data = data[step]
            case list() if isinstance(step, int) and step < len(data):
                data = data[step]
            case dict() if _field((*place, step), model):  # left out, or filled by its default
                data = {}
            case _:
                continue
        place = (*place, step)
    return place


def _sentence(place: Place, found: list[Any], model: type[BaseModel]) -> str:
    first = found[0]
    match first["type"]:
        case "extra_forbidden":
            owners = _chosen(_models(place[:-1], model), first["loc"])
            known = set().union(*(owner.model_fields for owner in owners))
            return f"unknown key{nearest(str(place[-1]), known)}"
        case "missing" if isinstance(first["loc"][-1], int):
            return f"found {shown(first['input'])}; write {first['loc'][-1] + 1} values"
        case "missing":
            return _how_to_add(str(place[-1]), _field(place, model))
        case "union_tag_not_found":
            return _how_to_add(str(place[-1]), _field(place, model))
        case "union_tag_invalid":
            known = {tag.strip(" '") for tag in first["ctx"]["expected_tags"].split(",")}
            # Which keys there are depends on it.
            hint = nearest(first["ctx"]["tag"], known)
            return (
                f"found {shown(first['ctx']['tag'])}, so no other key of its table was read{hint}"
            )
        case kind if kind == REFUSAL:
            return str(first["msg"])
    advice = " or ".join(dict.fromkeys(_advice(details) for details in found))
    return f"found {shown(first['input'])}; write {advice}"


def _advice(details: dict[str, Any]) -> str:
    context = details.get("ctx", {})
    if details["type"] == "literal_error":
        return str(context["expected"])
    if details["type"] == "string_pattern_mismatch":
        return PATTERN_IN_WORDS.get(context["pattern"], f"text that matches {context['pattern']}")
    if details["type"] in ADVICE:
        return ADVICE[details["type"]].format(**context)
    # Pydantic has about a hundred types; its own words are better than none.
    return str(details["msg"]).removeprefix("Input should be ")


def _how_to_add(key: str, field: FieldInfo | None) -> str:
    if field is None:
        return "missing; add it"
    if not field.examples and any(_members(field.annotation)):
        listed = get_origin(field.annotation) is tuple
        return f"missing; add a table [[{key}]]" if listed else f"missing; add a table [{key}]"
    example = f" = {_toml(field.examples[0])}" if field.examples else ""
    return f"missing; add it, as in {key}{example}" if example else "missing; add it"


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else shown(value)


def _field(place: Place, model: type[BaseModel]) -> FieldInfo | None:
    for owner in _models(place[:-1], model):
        if place[-1] in owner.model_fields:
            return owner.model_fields[str(place[-1])]
    return None


def _models(place: Place, model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that may stand at `place`; several where a union offers a choice."""
    here = [model]
    for step in place:
        if isinstance(step, int):
            continue
        fields = [owner.model_fields[step] for owner in here if step in owner.model_fields]
        # A step that is no field is a key of a dict of models, such as a class of `quotas`.
        here = [m for field in fields for m in _members(field.annotation)] or here
    return here


def _chosen(owners: list[type[BaseModel]], loc: Place) -> list[type[BaseModel]]:
    """Of the members of a union, the one that its tag in `loc` chose."""
    tagged = [
        owner
        for owner in owners
        for field in owner.model_fields.values()
        if get_origin(field.annotation) is Literal and get_args(field.annotation)[0] in loc
    ]
    return tagged or owners


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (tuple, list, dict, Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _members(argument)
