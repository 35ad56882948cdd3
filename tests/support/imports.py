"""Find the imports within the package, and draw them.

``PYTHONPATH=tests python -m support.imports docs/architecture.md`` updates the picture of that page.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tfspark.doc_parts import renew_pages, renewed

PACKAGE = Path(__file__).parents[2] / "tfspark"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
BEGIN, END = "<!-- folders: made by tests/support/imports.py -->", "<!-- folders end -->"


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Yield the imports of a module, and whether they run when the module is imported; skip imports only for mypy."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    yield from _imports_below(tree, at_once=True)


def _imports_below(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield (full if full in MODULES else child.module), at_once
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports_below(child, at_once and not is_function)


def folder(module: str) -> str:
    """Return the folder of a module; empty for a module beside the folders."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and MODULES[module].name == "__init__.py") else ""


def edges() -> Iterator[tuple[str, str]]:
    """Yield (module, module it imports), within the package."""
    for module in MODULES:
        for imported, _ in imports(module):
            if imported in MODULES and imported != module:
                yield module, imported


def picture() -> str:
    """Return the folders and the number of imports between them, as a Mermaid flowchart."""
    counted = Counter(
        (folder(module), folder(imported))
        for module, imported in set(edges())
        if folder(module) and folder(imported) and folder(module) != folder(imported)
    )
    arrows = [
        f"  {start} -->|{count}| {end}"
        for (start, end), count in sorted(counted.items())
        if not start.startswith("_")
    ]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```"])


def renew(page: str) -> str:
    """Return a page with an updated picture between its two marks."""
    return renewed(page, BEGIN, END, picture())


if __name__ == "__main__":
    renew_pages(renew)
