"""Compare the table of calls with the code that makes and answers them, and with the page that shows it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfspark.cluster.control import ControlPlane
from tfspark.protocol.actions import ACTIONS, Action, renew

REPOSITORY = Path(__file__).parents[2]
KNOWN = {action.name: action for action in ACTIONS}
OPTIONS = {"timeout_s", "attempts", "unreached_s"}
"""Arguments of `ActionClient.call` that do not travel."""
OF_THE_FEED = {"acknowledge"}
"""The server of a feed task answers these, not the driver's server."""


def calls() -> Iterator[tuple[str, str, set[str], bool]]:
    """Yield for each call in the package: place, action, keys, and whether a dict adds more keys."""
    for path in sorted((REPOSITORY / "tfspark").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "call"
            )
            if is_call and node.args and isinstance(node.args[0], ast.Constant):
                keys = {keyword.arg for keyword in node.keywords}
                yield f"{path.name}:{node.lineno}", node.args[0].value, keys - {None, *OPTIONS}, None in keys


def test_every_call_has_the_keys_of_its_action() -> None:
    wrong = []
    seen = set()
    for place, name, keys, has_more in calls():
        seen.add(name)
        action = KNOWN.get(name)
        if name in OF_THE_FEED:
            continue
        missing = set() if has_more or action is None else action.required - keys
        if action is None or keys - action.keys or missing:
            wrong.append((place, name, keys))
    assert wrong == []
    assert seen - OF_THE_FEED == set(KNOWN), "every action has a caller"


def test_the_driver_answers_these_actions_and_no_others() -> None:
    handlers = {name.removeprefix("on_") for name in vars(ControlPlane) if name.startswith("on_")}
    assert handlers == set(KNOWN)


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_page_shows_the_table_as_it_is(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert renew(text) == text, f"run: python -m tfspark.protocol.actions {page}"


def test_keys_that_may_be_left_out_are_not_required() -> None:
    action = Action("x", "somebody", {"node": "", "rows?": "so far"})
    assert action.keys == {"node", "rows"}
    assert action.required == {"node"}
