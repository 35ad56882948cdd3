"""What is checked before anything is launched."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from support.errors import raises

from tfspark.cluster.preflight import (
    ENCRYPTING,
    check_encryption,
    check_settings,
    check_slots,
    driver_addresses,
)
from tfspark.errors import ConfigError, ReservationError


@dataclass
class FakeConf:
    values: dict[str, str]

    def get(self, key: str, default: str | None = None) -> str | None:
        return self.values.get(key, default)


@dataclass
class FakeSpark:
    """A session that has only a configuration."""

    settings: dict[str, str] = field(default_factory=dict)

    @property
    def conf(self) -> FakeConf:
        return FakeConf(self.settings)


@dataclass
class Slots:
    """Count slots as executors arrive: return the next number at each call, and the last one again and again."""

    counts: list[int | None]
    asked: int = 0

    def __call__(self, spark: object) -> int | None:
        del spark
        self.asked += 1
        return self.counts[min(self.asked, len(self.counts)) - 1]


STANDALONE = {"spark.master": "spark://h:7077"}


def test_check_slots_when_enough_asks_once() -> None:
    slots = Slots([3])
    check_slots(FakeSpark(STANDALONE), 2, 1, 60.0, slots)
    assert slots.asked == 1


def test_check_slots_when_they_cannot_be_counted_leaves_it_to_the_reservation() -> None:
    check_slots(FakeSpark(STANDALONE), 2, 1, 60.0, Slots([None]))


def test_check_slots_when_executors_still_start_waits_for_them() -> None:
    slots = Slots([0, 2, 4])
    check_slots(FakeSpark(STANDALONE), 3, 1, 60.0, slots)
    assert slots.asked == 3


LOCAL = {"spark.master": "local[2]"}


@pytest.mark.parametrize(
    ("settings", "nodes", "feed", "slots", "parts"),
    [
        pytest.param(
            LOCAL, 3, 1, 2, ["expected 4 task slots", "3 nodes", "1 more", "Spark has 2", "local[4]"],
            id="local: names a master with enough slots",
        ),
        pytest.param(
            LOCAL, 3, 0, 2, ["expected 3 task slots", "Spark has 2", "local[3]"], id="nothing to feed",
        ),
        pytest.param(
            {**LOCAL, "spark.task.cpus": "2"}, 2, 1, 1, ["expected 3 task slots", "local[6]", "spark.task.cpus=2"],
            id="local: a slot takes several cores",
        ),
        pytest.param(
            STANDALONE, 2, 1, 2, ["expected 3 task slots", "Spark has 2", "spark.executor.cores"],
            id="a cluster: names its settings",
        ),
    ],
)  # fmt: skip
def test_check_slots_when_too_few_says_the_numbers_and_the_setting(
    settings: dict[str, str], nodes: int, feed: int, slots: int, parts: list[str]
) -> None:
    with pytest.raises(ReservationError) as caught:
        check_slots(FakeSpark(settings), nodes, feed, 0.1, Slots([slots]))

    message = str(caught.value)
    assert [part for part in [*parts, "lower num_executors"] if part not in message] == []


def test_check_slots_on_a_local_master_does_not_wait() -> None:
    slots = Slots([2])
    with pytest.raises(ReservationError):
        check_slots(FakeSpark({"spark.master": "local[2]"}), 2, 1, 60.0, slots)
    assert slots.asked == 1


KILL, IDLE_FOR = "spark.python.worker.killOnIdleTimeout", "spark.python.worker.idleTimeoutSeconds"


@pytest.mark.parametrize("true", ["true", "True", "TRUE", " true "])
@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("spark.dynamicAllocation.enabled", {}),
        ("spark.speculation", {}),
        (KILL, {IDLE_FOR: "5"}),
        ("spark.sql.execution.pyspark.udf.killOnIdleTimeout", {IDLE_FOR: "30s"}),
    ],
)
def test_check_settings_refuses_a_setting_that_ends_nodes_and_reads_true_as_scala_does(
    name: str, others: dict[str, str], true: str
) -> None:
    with raises(ConfigError, f"expected {name}=false, it is true", "set it to false"):
        check_settings(FakeSpark({name: true, **others}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"spark.dynamicAllocation.enabled": "false", "spark.speculation": "False"},
        {KILL: "true"},
        {KILL: "true", IDLE_FOR: "0"},
        {KILL: "false", IDLE_FOR: "5"},
    ],
)
def test_check_settings_when_nothing_ends_nodes_passes(settings: dict[str, str]) -> None:
    check_settings(FakeSpark(settings))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("127.0.0.1", "127.0.0.1")),
        ({"spark.driver.host": "10.1.2.3"}, ("10.1.2.3", "10.1.2.3")),
        ({"spark.driver.host": "10.1.2.3", "spark.driver.bindAddress": "0.0.0.0"}, ("0.0.0.0", "10.1.2.3")),
    ],
)
def test_driver_addresses_are_those_spark_uses(settings: dict[str, str], expected: tuple[str, str]) -> None:
    assert driver_addresses(FakeSpark(settings)) == expected


@pytest.mark.parametrize("key", ENCRYPTING)
def test_check_encryption_when_spark_encrypts_refuses_unless_plaintext_is_allowed(key: str) -> None:
    spark = FakeSpark({key: "true"})
    with pytest.raises(ConfigError, match=f"{key} is true.*allow_plaintext=True"):
        check_encryption(spark, allow_plaintext=False)
    check_encryption(spark, allow_plaintext=True)


def test_check_encryption_when_spark_does_not_encrypt_passes() -> None:
    check_encryption(FakeSpark({"spark.network.crypto.enabled": "false"}), allow_plaintext=False)
