"""The clusters that tests use have two executors, and leave nothing behind."""

import socket
import textwrap

import psutil
import pytest
from support.driver import run_driver
from support.processes import last_json
from support.standalone import StandaloneCluster

# Each task waits until all four have started. So one executor cannot run all of them, one after another.
JOB = """
    import json, os, pathlib, sys, time
    import pyarrow as pa
    from pyspark.sql import SparkSession

    started = pathlib.Path(os.environ["MEETING_PLACE"])

    def where(batches):
        rows = sum(batch.num_rows for batch in batches)
        (started / str(os.getpid())).touch()
        deadline = time.monotonic() + 30
        while len(list(started.iterdir())) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        yield pa.RecordBatch.from_pydict(
            {"executor": [os.environ["SPARK_EXECUTOR_DIRS"]], "rows": [rows]}
        )

    spark = SparkSession.builder.getOrCreate()
    found = spark.range(0, 100, 1, 4).mapInArrow(where, "executor string, rows bigint").collect()
    print(json.dumps({"executors": [r.executor for r in found], "rows": sum(r.rows for r in found),
                      "args": sys.argv[1:]}))
    spark.stop()
"""


@pytest.fixture
def meeting_place(tmp_path):
    place = tmp_path / "meeting"
    place.mkdir()
    return place


def test_local_cluster_runs_a_job_on_two_executors(meeting_place):
    result = run_driver(
        "local-cluster[2,2,2048]", JOB, "a b", timeout_s=240, env={"MEETING_PLACE": str(meeting_place)}
    ).check()

    found = last_json(result.stdout)
    assert len(set(found["executors"])) == 2
    assert found["rows"] == 100
    assert found["args"] == ["a b"]


def test_standalone_runs_a_submitted_job_on_two_executors(standalone, meeting_place, tmp_path):
    script = tmp_path / "job with a space.py"
    script.write_text(textwrap.dedent(JOB))

    result = standalone.submit(
        script,
        "a b",
        timeout_s=240,
        conf={"spark.executorEnv.MEETING_PLACE": str(meeting_place)},
        env={"MEETING_PLACE": str(meeting_place)},
    ).check()

    found = last_json(result.stdout)
    assert len(set(found["executors"])) == 2
    assert found["rows"] == 100
    assert found["args"] == ["a b"]


def test_standalone_listens_on_loopback_only(standalone):
    addresses = {
        connection.laddr.ip
        for pid in (standalone.master_pid, *standalone.worker_pids)
        for connection in psutil.Process(pid).net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }

    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_standalone_when_stopped_twice_leaves_nothing(tmp_path):
    cluster = StandaloneCluster(tmp_path, num_workers=1)
    with cluster:
        pids = [cluster.master_pid, *cluster.worker_pids]
    cluster.stop()

    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not is_listening(cluster.master_url)


def is_listening(master_url):
    port = int(master_url.rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_run_driver_when_the_deadline_passes_kills_the_whole_tree():
    result = run_driver(
        "local[1]",
        """
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("begun", flush=True)
        time.sleep(600)
        """,
        timeout_s=3,
    )

    assert (result.timed_out, result.returncode, result.stdout) == (True, -9, "begun\n")
    with pytest.raises(AssertionError, match=r"killed at its deadline after 3\.\d s"):
        result.check()


def test_run_driver_when_a_process_outlives_the_driver_names_it():
    result = run_driver(
        "local[1]",
        """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(601)"], start_new_session=True)
        """,
        timeout_s=30,
        grace_s=0.2,
    )

    assert result.returncode == 0
    assert len(result.survivors) == 1
    with pytest.raises(AssertionError, match=r"left processes behind: pid \d+ .* time\.sleep\(601\)"):
        result.check()
