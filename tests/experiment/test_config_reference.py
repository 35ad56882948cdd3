"""``docs/configuration.md`` agrees with the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tfspark.experiment.config import load_config
from tfspark.experiment.config_problems import section_of, words, yaml_name
from tfspark.experiment.config_reference import renew
from tfspark.experiment.config_schema import Experiment

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def fields(section: type[BaseModel] = Experiment) -> Iterator[tuple[type[BaseModel], str]]:
    for name, field in section.model_fields.items():
        yield section, name
        inner = section_of(field)
        if inner is not None:
            yield from fields(inner)


def test_page_is_up_to_date_with_the_schema() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == renew(page), "run: python -m tfspark.experiment.config_reference docs/configuration.md"


@pytest.mark.parametrize(("section", "name"), sorted(set(fields()), key=str))
def test_every_field_has_expected_values_a_description_and_a_row_on_the_page(
    section: type[BaseModel], name: str
) -> None:
    field = section.model_fields[name]
    assert words(field)
    assert field.description
    assert f"| `{yaml_name(name, field)}` |" in PAGE.read_text(encoding="utf-8")


def test_example_on_the_page_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example)
    assert load_config(path).local_batch_size == 32
