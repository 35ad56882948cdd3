"""Warm parents that the driver starts for its local executor, and those that applications share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support.driver import run_driver
from support.environment import OWN_WARM_PARENT, SHARED_BY, TESTS
from support.processes import kill_all, last_json
from support.trainers import shared_warm_parents

from tfspark.node.lending import Process, known_entries, lent_to, modules_found, other_modules, reads_late
from tfspark.node.warm import WantedParent

ENVIRONMENT = {"HOME": "/home/me", "PATH": "/bin", "PYTHONHASHSEED": "0", SHARED_BY: "of the test"}


def wanted(more: dict[str, str] | None = None, before: tuple[str, ...] = ()) -> WantedParent:
    found = lent_to({**ENVIRONMENT, **(more or {})}, [*before, *sys.path], None)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "is_late"),
    [
        pytest.param("SPARK_LOCAL_DIRS", True, id="one for each executor"),
        pytest.param("PYTHON_WORKER_FACTORY_SECRET", True, id="one for each Python daemon"),
        pytest.param("PYSPARK_PYTHON", True, id="read by Spark"),
        pytest.param("PYSPARK_ENABLE_NAMEDTUPLE_PATCH", False, id="read when pyspark is imported"),
        pytest.param("PWD", True, id="the fork changes its directory itself"),
        pytest.param("PYTEST_CURRENT_TEST", True, id="set by the test that starts the program"),
        pytest.param("_", True, id="set by the shell to the last program"),
        pytest.param("PYTHONHASHSEED", False, id="read by the interpreter"),
        pytest.param(
            "PYTHON_GIL", False, id="read by the interpreter, although its name looks like one of Spark's"
        ),
        pytest.param("PYTHON_CPU_COUNT", False, id="read by the interpreter, too"),
        pytest.param("OMP_NUM_THREADS", False, id="read by OpenMP"),
        pytest.param("TF_ENABLE_ONEDNN_OPTS", False, id="read when TensorFlow is imported"),
        pytest.param("HOME", False, id="Keras reads its settings there"),
        pytest.param("LANG", False, id="read by the interpreter"),
        pytest.param("MY_OWN", False, id="nobody knows what reads it"),
        pytest.param(SHARED_BY, False, id="its values keep groups of programs apart"),
    ],
)
def test_variable_may_differ_between_applications_only_if_nothing_reads_it_at_import(
    name: str, is_late: bool
) -> None:
    assert reads_late(name) == is_late
    assert (wanted({name: "another"}).name == wanted().name) == is_late


def test_name_of_a_shared_parent_depends_on_what_a_trainer_can_notice_and_not_on_its_application(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").touch()
    same = [
        wanted({"TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1", "TF_CONFIG": "{}"}),
        wanted(before=(str(tmp_path),)),
        wanted({"PYTHONPATH": str(tmp_path)}),
        wanted({"TF2_BEHAVIOR": "1"}),
    ]
    (tmp_path / "tfspark").mkdir()
    (tmp_path / "tfspark" / "__init__.py").touch()
    others = [
        wanted(before=(str(tmp_path),)),
        wanted({"TF2_BEHAVIOR": "0"}),
        wanted({SHARED_BY: "others"}),
        lent_to({**ENVIRONMENT, SHARED_BY: ""}, sys.path, Process.this()),
    ]
    (tmp_path / "tfspark" / "more.py").touch()
    others.append(wanted(before=(str(tmp_path),)))
    assert {found.name for found in same} == {wanted().name}
    assert len({wanted().name, *(found.name for found in others if found)}) == 6
    assert [found.owner for found in (same[0], others[3]) if found] == [0, os.getpid()]
    assert "TMPDIR" not in same[0].environment
    assert str(tmp_path) not in same[2].environment["PYTHONPATH"]


def test_no_parent_is_lent_without_the_variable_and_without_a_local_driver() -> None:
    assert lent_to({"PATH": "/bin"}, sys.path, None) is None
    assert lent_to({"PATH": "/bin", SHARED_BY: ""}, sys.path, None) is None


def test_known_module_is_different_if_it_is_found_elsewhere_or_was_not_found_before(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, files in ((first, ["known.py", "unknown.py"]), (second, ["known.py", "missed.py"])):
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    (tmp_path / "link").symlink_to(first)
    found = modules_found(["known", "missed"], [str(first)])
    assert found == {"known": [str(first / "known.py")], "missed": []}
    assert other_modules(found, [str(tmp_path / "link"), str(tmp_path)]) == ""
    assert other_modules(found, [str(first), str(second)]) == "missed"
    assert other_modules(found, [str(second), str(first)]) == "known, missed"
    assert known_entries([str(tmp_path / "link"), "/else"], [str(first)]) == [str(first), "/else"]


def test_local_executor_uses_the_parent_that_the_driver_started_and_it_ends_with_the_session(
    tmp_path: Path,
) -> None:
    program = """
        import json
        from pyspark.sql import SparkSession
        from node.warm_programs import look
        from support.processes import wait_until_ended
        from support.trainers import warm_parents
        from tfspark import InputMode, TFCluster

        spark = SparkSession.builder.config("spark.executorEnv.TF_OF_THE_TEST", "given").getOrCreate()
        with TFCluster.run(spark, look, None, 2, input_mode=InputMode.TENSORFLOW) as cluster:
            (started,) = warm_parents()  # No node could have started it yet: the driver did.
            owner = int(started.cmdline()[4])
            seen = list(cluster.shutdown().values())
        (parent,) = warm_parents()
        spark.stop()
        import os
        told = {"is_drivers": owner == os.getpid(), "is_it": started.pid == parent.pid, "seen": seen}
        print(json.dumps({**told, "parent": parent.pid, "left": len(wait_until_ended([parent], 20.0))}))
    """
    done = run_driver("local[3]", program, env=OWN_WARM_PARENT, timeout_s=300, grace_s=5.0).check()
    told = last_json(done.stdout)
    assert [seen["parent"] for seen in told["seen"]] == [told["parent"]] * 2
    assert [seen["variable"] for seen in told["seen"]] == ["given"] * 2
    assert [seen["files"] for seen in told["seen"]] == [[]] * 2
    assert (told["is_drivers"], told["is_it"], told["left"]) == (True, True, 0)


SHARES = """
    import json, sys
    from pyspark.sql import SparkSession
    from cluster.incarnations import Events
    from node.warm_programs import look
    from tfspark import InputMode, TFCluster

    spark, events = SparkSession.builder.getOrCreate(), Events()
    with TFCluster.run(spark, look, None, 2, input_mode=InputMode.TENSORFLOW, observer=events) as cluster:
        seen = list(cluster.shutdown().values())
    logged = [line for told in events.of("log") for line in told["lines"] if "warm parent" in line]
    print(json.dumps({"seen": seen, "logged": logged}))
"""


def shares(master: str, **env: str) -> dict[str, Any]:
    """Run an application that shares a warm parent; return what its trainers saw and logged."""
    env = {SHARED_BY: "test_lending", **env}
    done = run_driver(master, SHARES, env=env, timeout_s=400, grace_s=5.0).check()
    return dict(last_json(done.stdout))


def test_applications_share_a_parent_that_outlives_them_unless_their_modules_differ(
    tmp_path: Path,
) -> None:
    (tmp_path / "h5py.py").write_text("name = 'mine'")
    before = {process.pid for process in shared_warm_parents()}
    other_path = os.pathsep.join([str(tmp_path), str(TESTS.parent), str(TESTS)])
    first = shares("local[3]")
    second = shares("local-cluster[1,2,1024]", SPARK_OF_THE_TEST="second")
    third = shares("local[3]", PYTHONPATH=other_path)
    (parent,) = [process for process in shared_warm_parents() if process.pid not in before]
    kill_all([parent])
    parents = [{seen["parent"] for seen in of_one["seen"]} for of_one in (first, second, third)]
    assert [of_one["logged"] for of_one in (first, second)] == [[], []]
    assert parents[:2] == [{parent.pid}, {parent.pid}]
    assert len(parents[2]) == 1
    assert parents[2] != parents[0]
    assert ["h5py" in line for line in third["logged"]] == [True, True]
    directories = [seen["directory"] for of_one in (first, second) for seen in of_one["seen"]]
    assert [working == first_on_path for working, first_on_path in directories] == [True] * 4
    assert len({working for working, _ in directories}) == 2
