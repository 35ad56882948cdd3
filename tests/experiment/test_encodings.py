"""tfspark names an encoding wherever it opens a text file, so the locale does not matter."""

from __future__ import annotations

import ast
from pathlib import Path

import tfspark

PACKAGE = Path(tfspark.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_shipped" not in path.parts)


def opens_text(call: ast.Call) -> bool:
    """Return whether a call reads or writes a text file."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in ("read_text", "write_text"):
        return len(call.args) < 2  # A second argument is the encoding, or the call is one of `RunDirectory`.
    if name != "open":
        return False
    is_builtin = isinstance(call.func, ast.Name)
    if not is_builtin and (call.args or call.keywords) and not isinstance(call.args[0], ast.Constant):
        return False  # Not a text file: for example `tarfile.open(path)`, or a stream of the cluster.
    mode = call.args[int(is_builtin) :][:1]
    return not (mode and isinstance(mode[0], ast.Constant) and "b" in str(mode[0].value))


def test_text_files_are_opened_with_an_encoding() -> None:
    silent = [
        f"{module.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)[:80]}"
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and opens_text(node)
        and not any(keyword.arg == "encoding" for keyword in node.keywords)
    ]
    assert silent == []
