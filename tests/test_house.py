"""Who may import whom. The picture of it is in docs/architecture.md, section "Folders"."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tfspark"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
BELOW = {
    "protocol": set[str](),
    "tfrecord": set[str](),
    "feed": {"protocol", "tfrecord"},
    "node": {"protocol"},
    "training": {"protocol", "feed", "node", "inference"},
    "cluster": {"protocol", "feed", "node", "tfrecord"},
    "inference": {"protocol", "feed", "training", "cluster"},
    "migrate": {"protocol", "feed", "tfrecord", "inference", "cluster", "training"},
    "ml": {"protocol", "feed", "inference", "cluster", "training", "experiment", "tfrecord"},
    "experiment": {"protocol", "feed", "tfrecord", "inference", "cluster"},
}
"""Folder -> folders it may import from. What lies beside the folders is an entry (`cli`, `trainer`), or small."""
ENTRIES = {"tfspark", "tfspark.cli", "tfspark.submit", "tfspark.chaos", "tfspark.pipeline", "tfspark.trainer"}
FRONT = {"tfcluster", "inputs", "layout", "preflight", "program", "warm_up", "state"}
"""What others may use of `cluster/`: the rest is its own. Checkpoints (`state`) are read for ``--resume``, too."""
TENSORFLOW = ("tensorflow", "keras", "tensorflow_io")
MAY_IMPORT_TENSORFLOW = {"tfspark.ml.sparse_dense"}
"""Beside `training/`: a layer is a class, which needs Keras when its module is imported."""


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Yield what a module imports, and whether it does so when it is imported itself; not what only mypy reads."""
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
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and MODULES[module].name == "__init__.py") else ""


def edges() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        for imported, _ in imports(module):
            if imported in MODULES and imported != module:
                yield module, imported


def test_no_import_leads_back() -> None:
    following: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, imported in edges():
        following[module].add(imported)
    while ends := [module for module, others in following.items() if not others]:
        for end in ends:
            del following[end]
        for others in following.values():
            others.difference_update(ends)
    assert sorted(following) == [], "these import each other, perhaps through others"


def test_folders_import_only_what_is_below_them() -> None:
    wrong = [
        (module, imported)
        for module, imported in edges()
        if (own := folder(module)) in BELOW
        and (other := folder(imported)) != own
        and (other not in BELOW[own] if other else imported in ENTRIES - {"tfspark.trainer"})
    ]
    assert wrong == []


def test_driver_and_trainer_know_nothing_of_each_other() -> None:
    wrong = [edge for edge in edges() if {folder(edge[0]), folder(edge[1])} == {"cluster", "training"}]
    assert wrong == []


def test_inner_rooms_of_the_cluster_are_its_own() -> None:
    wrong = [
        (module, imported)
        for module, imported in edges()
        if folder(imported) == "cluster" != folder(module) and imported.split(".")[2] not in FRONT
    ]
    assert wrong == []


def test_tensorflow_is_imported_at_once_in_trainers_only() -> None:
    wrong = [
        module
        for module in MODULES
        if folder(module) != "training" and module not in MAY_IMPORT_TENSORFLOW
        for imported, at_once in imports(module)
        if at_once and imported.split(".")[0] in TENSORFLOW
    ]
    assert wrong == []


def test_node_tasks_and_feed_tasks_never_import_tensorflow() -> None:
    wrong = [
        (module, imported)
        for module in MODULES
        if folder(module) in ("cluster", "feed", "node", "protocol", "tfrecord")
        for imported, _ in imports(module)
        if imported.split(".")[0] in TENSORFLOW
    ]
    assert wrong == []


def test_no_test_module_imports_another() -> None:
    tests = Path(__file__).parent
    names = {path.stem for path in tests.rglob("test_*.py")}
    wrong = []
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[-1] in names:
                wrong.append((path.name, node.module))
    assert wrong == []
