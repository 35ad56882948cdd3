"""A real Spark standalone cluster on this machine: a master and workers on ephemeral ports of loopback.

Hosts may also be network namespaces, which behave like separate machines: see `support.network`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from support.driver import driver_conf, submit_arguments
from support.environment import DRIVER_ID, LOOPBACK, make_spark_home, spark_environment
from support.processes import Finished, describe, kill_all, poll_until, run_to_end, wait_until_ended

START_S = 60.0
STOP_S = 15.0
_MASTER_URL = re.compile(r"Starting Spark master at (spark://\S+)")
_REGISTERED = re.compile(r"Successfully registered with master")
_MASTER_CLASS = "org.apache.spark.deploy.master.Master"
_WORKER_CLASS = "org.apache.spark.deploy.worker.Worker"


@dataclass(frozen=True)
class Host:
    """A host of daemons and drivers.

    Attributes:
        address: the address on which they listen, and at which other hosts reach them.
        enter: prefix that runs a command on the host.
    """

    address: str = LOOPBACK
    enter: tuple[str, ...] = ()


@dataclass(frozen=True)
class Daemon:
    """One daemon of the cluster, and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for_line(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait until the log matches ``pattern``; fail if the daemon ends before, or after `START_S`."""
        found: list[re.Match[str]] = []

        def logged_or_ended() -> bool:
            ended = self.process.poll() is not None
            found.extend(pattern.finditer(self.log.read_text(errors="replace")))
            return bool(found) or ended

        poll_until(logged_or_ended, START_S)
        if not found:
            state = "ended" if self.process.poll() is not None else f"did not say so within {START_S:g} s"
            raise RuntimeError(
                f"expected {self.name} to log {pattern.pattern!r}; it {state}. Its log:\n"
                + self.log.read_text(errors="replace")[-4000:]
            )
        return found[0]


@dataclass
class StandaloneCluster:
    """A context manager: daemons run inside ``with``, and all have ended after it.

    Attributes:
        directory: directory for the daemons' logs, the workers' ``work`` directories and a Spark home.
        hosts: the host of the master and the drivers, then the host of each worker; loopback where the list ends.
        master_url: ``spark://127.0.0.1:<port>``, once started.
        daemons: the master first.
    """

    directory: Path
    num_workers: int = 2
    cores: int = 2
    memory: str = "2g"
    hosts: Sequence[Host] = ()
    master_url: str = ""
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def master_pid(self) -> int:
        """Process id of the master."""
        return self.daemons[0].process.pid

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, in the order of their start."""
        return [daemon.process.pid for daemon in self.daemons[1:]]

    @property
    def spark_home(self) -> Path:
        """The Spark home of the daemons."""
        return self.directory / "spark"

    def __enter__(self) -> StandaloneCluster:
        make_spark_home(self.spark_home)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        master = self._launch("master", _MASTER_CLASS, self._host(0))
        self.master_url = master.wait_for_line(_MASTER_URL).group(1)
        workers = [self._launch_worker(index) for index in range(self.num_workers)]
        for worker in workers:
            worker.wait_for_line(_REGISTERED)

    def start_worker(self) -> None:
        """Start one more worker, and wait until it has registered with the master."""
        self._launch_worker(len(self.worker_pids)).wait_for_line(_REGISTERED)

    def _host(self, index: int) -> Host:
        return self.hosts[index] if index < len(self.hosts) else Host()

    def _launch_worker(self, index: int) -> Daemon:
        return self._launch(
            f"worker-{index}",
            _WORKER_CLASS,
            self._host(index + 1),
            *("--cores", str(self.cores)),
            *("--memory", self.memory),
            *("--work-dir", str(self.directory / f"work-{index}")),
            self.master_url,
        )

    def _launch(self, name: str, daemon_class: str, host: Host, *args: str) -> Daemon:
        log = self.directory / f"{name}.log"
        addresses = ("--host", host.address, "--port", "0", "--webui-port", "0")
        spark_class = str(self.spark_home / "bin" / "spark-class")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*host.enter, spark_class, daemon_class, *addresses, *args],
                env={**self._environment(host), "SPARK_DAEMON_MEMORY": "256m"},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        daemon = Daemon(name, process, log)
        self.daemons.append(daemon)
        return daemon

    def _environment(self, host: Host) -> dict[str, str]:
        environment = spark_environment(self.spark_home, self.directory / "local")
        return {**environment, "SPARK_LOCAL_IP": host.address}

    def submit(
        self,
        script: Path,
        *args: str,
        timeout_s: float,
        conf: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        grace_s: float = 10.0,
    ) -> Finished:
        """Run ``spark-submit --master <this cluster> script args...`` and return its outcome.

        Arguments and result are those of `support.driver.run_driver`; confs are passed on the command line.
        """
        driver_id, host = uuid.uuid4().hex, self._host(0)
        with tempfile.TemporaryDirectory(prefix="submit-") as directory:
            home = Path(directory)
            confs = {
                "spark.executor.memory": "1g",
                **driver_conf(home, driver_id),
                "spark.driver.host": host.address,
                "spark.driver.bindAddress": host.address,
                **(conf or {}),
            }
            command = [
                *host.enter,
                str(self.spark_home / "bin" / "spark-submit"),
                "--master",
                self.master_url,
            ]
            return run_to_end(
                [*command, *submit_arguments(confs, Path(script).resolve(), args)],
                env={**self._environment(host), **(env or {})},
                mark=(DRIVER_ID, driver_id),
                cwd=home,
                timeout_s=timeout_s,
                grace_s=grace_s,
            )

    def stop(self) -> None:
        """Stop the daemons, workers first; fail if an executor outlives its worker. A second call is harmless."""
        executors = [p for daemon in self.daemons for p in _descendants(daemon.process.pid)]
        for daemon in reversed(self.daemons):
            daemon.process.terminate()
        for daemon in self.daemons:
            daemon.process.wait(STOP_S)
        self.daemons.clear()
        left = wait_until_ended(executors, STOP_S)
        names = [describe(p) for p in left]
        kill_all(left)
        if names:
            raise AssertionError(f"the standalone cluster left processes behind: {names}")


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
