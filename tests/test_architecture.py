"""Rules of the architecture: which module may import which. See docs/architecture.md, section "Folders"."""

from __future__ import annotations

import ast
from pathlib import Path

from support.imports import MODULES, edges, folder, imports, renew

BELOW = {
    "protocol": set[str](),
    "tfrecord": set[str](),
    "feed": {"protocol", "tfrecord"},
    "node": {"protocol"},
    "training": {"protocol", "feed", "node"},
    "cluster": {"protocol", "feed", "node", "tfrecord"},
    "inference": {"protocol", "feed", "training", "cluster"},
    "migrate": {"protocol", "feed", "tfrecord", "inference", "cluster", "training"},
    "ml": {"protocol", "feed", "inference", "cluster", "training", "experiment", "tfrecord"},
    "experiment": {"protocol", "feed", "tfrecord", "inference", "cluster"},
}
"""Folder -> folders it may import from. A module outside these folders is an entry (`cli`, `trainer`), or small."""
ENTRIES = {"tfspark", "tfspark.cli", "tfspark.submit", "tfspark.chaos", "tfspark.pipeline", "tfspark.trainer"}
INTERFACE_OF_CLUSTER = {"tfcluster", "inputs", "layout", "direct", "preflight", "program", "warm_up", "state"}
"""The modules of `cluster/` that other folders may import. `state` is one because ``--resume`` reads checkpoints."""
TENSORFLOW = ("tensorflow", "keras", "tensorflow_io")
MAY_IMPORT_TENSORFLOW = {"tfspark.ml.sparse_dense"}
"""Modules outside `training/`. A Keras layer is a class, so its module must import Keras at module level."""


def test_imports_have_no_cycle() -> None:
    following: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, imported in edges():
        following[module].add(imported)
    while ends := [module for module, others in following.items() if not others]:
        for end in ends:
            del following[end]
        for others in following.values():
            others.difference_update(ends)
    assert sorted(following) == [], "these modules import each other, directly or through others"


def test_folders_import_only_what_is_below_them() -> None:
    wrong = [
        (module, imported)
        for module, imported in edges()
        if (own := folder(module)) in BELOW
        and (other := folder(imported)) != own
        and (other not in BELOW[own] if other else imported in ENTRIES - {"tfspark.trainer"})
    ]
    assert wrong == []


def test_driver_and_trainer_do_not_import_each_other() -> None:
    wrong = [edge for edge in edges() if {folder(edge[0]), folder(edge[1])} == {"cluster", "training"}]
    assert wrong == []


def test_inner_modules_of_the_cluster_are_imported_only_by_the_cluster() -> None:
    wrong = [
        (module, imported)
        for module, imported in edges()
        if folder(imported) == "cluster" != folder(module)
        and imported.split(".")[2] not in INTERFACE_OF_CLUSTER
    ]
    assert wrong == []


def test_only_modules_of_the_trainer_import_tensorflow_at_module_level() -> None:
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


def test_state_of_the_driver_is_used_only_in_functions_that_hold_its_lock() -> None:
    """These functions get a `DriverState` as their argument `state`. They must not keep a part of it."""
    wrong = []
    for module, path in MODULES.items():
        if folder(module) == "cluster" and not module.startswith("tfspark.cluster.state"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            used_at_once = {id(node.value) for node in attributes}
            for node in attributes:
                owner = ast.unparse(node.value)
                is_used = owner == "state" and id(node) in used_at_once
                # A checkpoint store also has an attribute `directory`: a path.
                if node.attr in ("registry", "directory") and not is_used and owner != "store":
                    wrong.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
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


def test_picture_in_the_docs_shows_these_imports() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert renew(page) == page, "run: PYTHONPATH=tests python -m support.imports docs/architecture.md"
