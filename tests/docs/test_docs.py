"""The documentation agrees with the code, as far as a test can check this without Spark."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pages import REPOSITORY, Page, all_pages, command_lines, is_said, messages_in_source
from pydantic import BaseModel

from tfspark import TFCluster
from tfspark.cli import app
from tfspark.experiment.config_problems import section_of, yaml_name
from tfspark.experiment.config_schema import Experiment, Optimizer

PAGES = all_pages()
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(page.blocks("python"), start=1)
]
PROGRAMS = [*SNIPPETS, *(pytest.param(path.read_text(encoding="utf-8"), id=path.name) for path in EXAMPLES)]
# Keras's `model.fit` and files such as `model.keras` look like keys of the section `model`.
NO_KEYS = {"model.fit", "model.save", "model.compile", "model.evaluate", "model.predict", "model.keras"}
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def page_called(name: str) -> Page:
    return Page(REPOSITORY / "docs" / name)


@EACH_PAGE
def test_relative_links_have_a_target(page: Page) -> None:
    missing = [link for link in page.links() if not has_target(page, link)]

    assert not missing


def has_target(page: Page, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (page.path.parent / file).resolve() if file else page.path
    if not target.exists():
        return False
    return not anchor or anchor in Page(target).anchors()


@EACH_PAGE
def test_command_lines_use_options_that_exist(page: Page) -> None:
    commands = typer.main.get_command(app).commands
    for line in command_lines(page):
        command = commands[line[0]]
        known = {
            option for parameter in command.params for option in parameter.opts + parameter.secondary_opts
        }
        options = {word.partition("=")[0] for word in line[1:] if word.startswith("--")}
        assert options <= known, line


@pytest.mark.parametrize("code", PROGRAMS)
def test_python_code_compiles_and_imports_names_that_exist(code: str) -> None:
    for module, name in imports_of_tfspark(compile(code, "<docs>", "exec", ast.PyCF_ONLY_AST)):
        assert name_exists(module, name), f"from {module} import {name}"


def imports_of_tfspark(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tfspark":
            yield from ((str(node.module), alias.name) for alias in node.names)


def name_exists(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("code", PROGRAMS)
def test_cluster_calls_use_arguments_that_exist(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner in ("TFCluster", "cluster"):
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert given <= parameters_of(node.func.attr), ast.unparse(node)


def parameters_of(method: str) -> set[str]:
    return set(inspect.signature(getattr(TFCluster, method)).parameters) - {"self"}


@pytest.mark.parametrize("method", ["run", "train"])
def test_arguments_of_a_cluster_are_all_in_the_table_of_the_python_api(method: str) -> None:
    documented = set(re.findall(r"`(\w+)`", " ".join(page_called("python-api.md").first_cells("argument"))))

    assert parameters_of(method) <= documented
    assert documented <= parameters_of("run") | parameters_of("train")


@EACH_PAGE
def test_keys_of_an_experiment_are_in_the_schema(page: Page) -> None:
    sections = "|".join(Experiment.model_fields)
    named = {span for span in page.spans() if re.fullmatch(rf"(?:{sections})(?:\.[a-z_]+)+", span)}
    set_ = {
        key for line in command_lines(page) for key in re.findall(r"([a-z_.]+)=", " ".join(set_values(line)))
    }

    unknown = [key for key in sorted((named - NO_KEYS) | set_) if not is_key(key)]
    assert not unknown


def set_values(line: list[str]) -> list[str]:
    return [line[place + 1] for place, word in enumerate(line[:-1]) if word == "--set"]


def is_key(key: str) -> bool:
    section: Any = Experiment
    for part in key.split("."):
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return True  # below a mapping whose keys the user chooses
        if section is Optimizer and part not in section.model_fields:
            return True  # an argument of the optimizer
        fields = {yaml_name(name, field): field for name, field in section.model_fields.items()}
        if part not in fields:
            return False
        section = section_of(fields[part])
    return True


def test_messages_in_troubleshooting_are_in_the_source() -> None:
    messages = messages_in_source()
    cells = page_called("troubleshooting.md").first_cells("message")
    quotes = [re.findall(r"`([^`]+)`", cell)[0] for cell in cells]

    assert len(quotes) > 30
    assert [quote for quote in quotes if not is_said(quote, messages)] == []


def test_is_said_notices_a_quote_that_is_in_no_message() -> None:
    messages = messages_in_source()

    assert is_said("expected ... task slots (... nodes hold one each", messages)
    assert not is_said("expected ... task slots (... nodes hold two each", messages)


@EACH_PAGE
def test_code_fences_are_closed(page: Page) -> None:
    assert len(re.findall(r"^```", page.text, re.MULTILINE)) % 2 == 0


def test_examples_that_the_docs_list_exist() -> None:
    named = {Path(link).name for page in PAGES for link in page.links() if "/examples/" in link}

    assert named <= {path.name for path in EXAMPLES}
