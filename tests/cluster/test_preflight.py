"""What is checked before anything is launched."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

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
    """A session of which only the configuration is asked."""

    settings: dict[str, str] = field(default_factory=dict)

    @property
    def conf(self) -> FakeConf:
        return FakeConf(self.settings)


@dataclass
class Slots:
    """Counts slots as executors arrive: one number per question, the last for ever."""

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
            id="local: the master that would do",
        ),
        pytest.param(
            LOCAL, 3, 0, 2, ["expected 3 task slots", "Spark has 2", "local[3]"], id="nothing to feed",
        ),
        pytest.param(
            STANDALONE, 2, 1, 2, ["expected 3 task slots", "Spark has 2", "spark.executor.cores"],
            id="a cluster: its settings",
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


def test_check_settings_when_allocation_is_dynamic_refuses_it() -> None:
    with pytest.raises(
        ConfigError, match=r"expected spark\.dynamicAllocation\.enabled=false.*set it to false"
    ):
        check_settings(FakeSpark({"spark.dynamicAllocation.enabled": "true"}))


def test_check_settings_when_allocation_is_fixed_passes() -> None:
    check_settings(FakeSpark())


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


def test_check_settings_when_speculation_is_on_says_to_set_it_to_false() -> None:
    with pytest.raises(ConfigError, match=r"expected spark\.speculation=false"):
        check_settings(FakeSpark({"spark.speculation": "true"}))


@pytest.mark.parametrize("key", ENCRYPTING)
def test_check_encryption_when_spark_encrypts_refuses_unless_plaintext_is_allowed(key: str) -> None:
    spark = FakeSpark({key: "true"})
    with pytest.raises(ConfigError, match=f"{key} is true.*allow_plaintext=True"):
        check_encryption(spark, allow_plaintext=False)
    check_encryption(spark, allow_plaintext=True)


def test_check_encryption_when_spark_does_not_encrypt_passes() -> None:
    check_encryption(FakeSpark({"spark.network.crypto.enabled": "false"}), allow_plaintext=False)
