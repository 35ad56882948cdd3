"""Convert pydantic's errors to messages for users: the line, the key, the expected value, the actual value.

Called by `tfspark.experiment.config` on the driver. Pure.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tfspark.experiment.config_rules import BrokenRulesError, broken_rules
from tfspark.experiment.config_schema import Experiment, Words
from tfspark.experiment.yaml_source import Document, Key, dotted


def yaml_name(name: str, field: FieldInfo) -> str:
    """Return the key of a field in YAML."""
    return field.alias or name


def words(field: FieldInfo) -> str:
    """Return the description of a field's expected values."""
    return next(item.text for item in field.metadata if isinstance(item, Words))


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section of a field, or of each of its keys; None: the field holds a plain value."""
    return next(_sections_in(field.annotation), None)


def report_errors(error: ValidationError, document: Document) -> None:
    """Add pydantic's errors to the document's problems, each key once, in the order of the file."""
    found: dict[Key, ErrorDetails] = {}
    for detail in error.errors():
        key = _raw_key(detail["loc"], document.values)
        field_key = key if detail["type"] == "extra_forbidden" else _field_key(key)
        if field_key not in found or len(key) > len(_raw_key(found[field_key]["loc"], document.values)):
            found[field_key] = detail
    for detail in found.values():
        _report(detail, document)
    _report_rules(found, document)


def _report(detail: ErrorDetails, document: Document) -> None:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, BrokenRulesError):
        for broken_key, text in cause.broken:
            document.report(broken_key, text)
        return
    key = _raw_key(detail["loc"], document.values)
    if detail["type"] == "extra_forbidden":
        document.report(key, _unknown(key, document.values))
    elif detail["type"] == "missing":
        document.report(key, f"missing: expected {_expected(key)}")
    else:
        document.report(key, f"expected {_expected(key)}; got {_came(detail['input'])}")


def _report_rules(found: Mapping[Key, ErrorDetails], document: Document) -> None:
    """Check the rules between the sections that have no errors of their own."""
    wrong = {key[0] for key in found if key}
    if not wrong:
        return
    sections = {}
    for name, field in Experiment.model_fields.items():
        section = section_of(field)
        if section is not None and name not in wrong:
            sections[name] = section.model_validate(document.values.get(name) or {})
    for broken_key, text in broken_rules(sections):
        document.report(broken_key, text)


def _raw_key(loc: tuple[int | str, ...], values: Any) -> Key:
    """Return pydantic's location without the parts that name a branch of a type instead of a key of the document."""
    key: list[str | int] = []
    for position, part in enumerate(loc):
        is_last = position == len(loc) - 1
        if _holds(values, part):
            values = values[part]
        elif not (is_last and isinstance(values, dict) and _fields_at(tuple(key), part)):
            continue
        key.append(part)
    return tuple(key)


def _holds(values: Any, part: int | str) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _fields_at(key: Key, part: str | int) -> bool:
    """Whether `part` is a known key of the section at `key`: a missing key is not in the document."""
    section = _section_at(key)
    return section is not None and part in _names(section)


def _field_key(key: Key) -> Key:
    """Return the key of the field that contains `key`: for an item of a list, the key of the list."""
    while key and _field_at(key) is None:
        key = key[:-1]
    return key


def _expected(key: Key) -> str:
    field = _field_at(_field_key(key))
    return "a mapping" if field is None else words(field)


def _field_at(key: Key) -> FieldInfo | None:
    if not key:
        return None
    section = _section_at(key[:-1])
    return _names(section).get(str(key[-1])) if section is not None else None


def _section_at(key: Key) -> type[BaseModel] | None:
    """Return the section at `key`; None: there is a plain value, or a mapping with free keys."""
    section: type[BaseModel] | None = Experiment
    parts = iter(key)
    for part in parts:
        field = _names(section).get(str(part)) if section is not None else None
        if field is None:
            return None
        section = section_of(field)
        if section is not None and is_mapping_of_sections(field) and next(parts, None) is None:
            return None
    return section


def is_mapping_of_sections(field: FieldInfo) -> bool:
    """Whether a field is a mapping with free keys, whose values are sections."""
    return getattr(field.annotation, "__origin__", None) is dict


def _names(section: type[BaseModel]) -> dict[str, FieldInfo]:
    return {yaml_name(name, field): field for name, field in section.model_fields.items()}


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def _unknown(key: Key, values: Mapping[Any, Any]) -> str:
    section = _section_at(key[:-1])
    known = list(_names(section)) if section is not None else []
    given = functools.reduce(lambda inner, part: inner[part], key[:-1], values)
    near = difflib.get_close_matches(str(key[-1]), [name for name in known if name not in given], n=1)
    if near:
        return f"unknown key; did you mean {dotted((*key[:-1], near[0]))}?"
    elsewhere = [dotted(other) for other in _all_keys(Experiment) if other[-1] == key[-1]]
    if elsewhere:
        return f"unknown key; did you mean {elsewhere[0]}?"
    return f"unknown key; expected one of {', '.join(known)}"


def _all_keys(section: type[BaseModel], inside: Key = ()) -> Iterator[Key]:
    for name, field in _names(section).items():
        yield (*inside, name)
        inner = section_of(field)
        if inner is not None and not is_mapping_of_sections(field):
            yield from _all_keys(inner, (*inside, name))


def _came(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, dict | list | tuple) and not value:
        return "an empty mapping" if isinstance(value, dict) else "an empty list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
