"""The reference of all configuration keys, made from the schema itself.

``python -m tfspark.experiment.config_reference docs/configuration.md`` updates the part of the page between its
two marks; a test fails when the page is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tfspark.doc_parts import renew_pages, renewed
from tfspark.experiment.config_problems import is_mapping_of_sections, section_of, words, yaml_name
from tfspark.experiment.config_schema import Experiment, Source
from tfspark.experiment.yaml_source import Dumper

BEGIN = "<!-- The tables below are made by `python -m tfspark.experiment.config_reference`. -->"
END = "<!-- End of the tables. -->"


def reference() -> str:
    """Return a table of keys for every section, as Markdown."""
    return "\n\n".join(_table(name, section) for name, section in _sections("", Experiment)) + "\n"


def renew(page: str) -> str:
    """Return a page with updated tables between its marks."""
    return renewed(page, BEGIN, END, reference())


def _sections(name: str, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield name, section
    for key, field in section.model_fields.items():
        inner = section_of(field)
        # `validation` and `test` have the keys of `data`, which are described there.
        if inner is not None and inner is not Source:
            path = f"{name}.{key}".lstrip(".")
            yield from _sections(f"{path}.<column>" if is_mapping_of_sections(field) else path, inner)


def _table(name: str, section: type[BaseModel]) -> str:
    rows = [_row(yaml_name(key, field), field) for key, field in section.model_fields.items()]
    title = f"### `{name}`" if name else "### The whole file"
    summary = (section.__doc__ or "").strip()
    return "\n".join(
        [title, "", summary, "", "| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]
    )


def _row(key: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split())
    return f"| `{key}` | {_cell(words(field))} | {_default(field)} | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    if isinstance(field.default, BaseModel):
        return "see below"
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()


if __name__ == "__main__":
    renew_pages(renew)
