"""Framing of records and reading of blocks: checksums, damage, truncation, splits."""

from __future__ import annotations

import gzip
import io
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.errors import ConfigError, DataError
from tfspark.tfrecord import count_records, records
from tfspark.tfrecord.damage import Damage
from tfspark.tfrecord.framing import Stop, find_record, frame, masked_crc, scan
from tfspark.tfrecord.records import read_blocks

tf = pytest.importorskip("tensorflow")


def read(data: bytes, damage: Damage | None = None, start: int = 0, end: int | None = None) -> list[bytes]:
    stream = io.BytesIO(data)
    stream.seek(start)
    blocks = read_blocks(stream, damage or Damage("f"), start, end)
    return [block.record(row) for block in blocks for row in range(len(block))]


def framed(payloads: list[bytes]) -> bytes:
    return b"".join(frame(payload) for payload in payloads)


def test_masked_crc_of_known_bytes_matches_the_published_value() -> None:
    # crc32c("123456789") = 0xe3069283, the check value of the polynomial (RFC 3720, appendix B.4).
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"", b"same", b"other"]), max_size=40))
def test_read_returns_the_framed_records(payloads: list[bytes]) -> None:
    assert read(framed(payloads)) == payloads


def test_read_returns_the_records_of_a_file_that_tensorflow_wrote(tmp_path: Path) -> None:
    payloads = [b"x" * size for size in (0, 1, 5, 5, 5, 5, 5, 1000, 7)]
    with tf.io.TFRecordWriter(str(tmp_path / "f")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert read((tmp_path / "f").read_bytes()) == payloads
    assert (tmp_path / "f").read_bytes() == framed(payloads)
    assert count_records(str(tmp_path / "f")) == 9


@pytest.mark.parametrize("chunk", [1, 20, 64, 1000])
def test_read_in_small_chunks_returns_all_records(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "CHUNK_BYTES", chunk)
    payloads = [bytes([place]) * (place * 7 % 50) for place in range(60)]
    assert read(framed(payloads)) == payloads


@pytest.mark.parametrize("split", [1, 7, 16, 50, 333, 5000])
def test_read_of_splits_returns_every_record_once(split: int) -> None:
    rng = np.random.default_rng(split)
    payloads = [rng.bytes(int(size)) for size in rng.integers(0, 120, 40)] + [b"\0" * 100] * 5
    data = framed(payloads)
    came = [
        record for start in range(0, len(data), split) for record in read(data, None, start, start + split)
    ]
    assert came == payloads


def test_bad_header_at_the_start_of_a_split_is_an_error_of_the_split_before_it() -> None:
    data = bytearray(framed([b"a" * 20] * 3))
    data[36] ^= 1  # The header of the second record, where the second split begins.
    assert read(bytes(data), None, 36, None) == [b"a" * 20]
    with pytest.raises(DataError, match="f, byte 36: "):
        read(bytes(data), None, 0, 36)


@pytest.mark.parametrize("cut", range(1, 36))
def test_error_of_a_truncated_file_names_the_offset(cut: int) -> None:
    data = framed([b"a" * 20] * 4)[:-cut]
    with pytest.raises(DataError, match=r"f, byte 108: expected a record of at least .*truncated"):
        read(data)
    damage = Damage("f", "DROPMALFORMED")
    assert read(data, damage) == [b"a" * 20] * 3
    assert damage.num_records == 1


DAMAGE = [
    (0, [1, 2, 3], "length of the first record"),
    (8, [1, 2, 3], "checksum of the length"),
    (12, [1, 2, 3], "data of the first record"),
    (32, [1, 2, 3], "checksum of the data"),
    (72, [0, 1, 3], "length of the third record"),
    (72 + 7, [0, 1, 3], "high byte of the length: an impossible size"),
    (72 + 20, [0, 1, 3], "data of the third record"),
]


@pytest.mark.parametrize(("at", "left", "why"), DAMAGE)
def test_read_of_a_damaged_record_fails_or_drops_it(at: int, left: list[int], why: str) -> None:
    payloads = [bytes([65 + place]) * 20 for place in range(4)]
    data = bytearray(framed(payloads))
    data[at] ^= 0x55
    with pytest.raises(DataError, match=f"f, byte {at // 36 * 36}: expected .*=DROPMALFORMED"):
        read(bytes(data))
    damage = Damage("f", "DROPMALFORMED")
    assert read(bytes(data), damage) == [payloads[place] for place in left]
    assert damage.num_records == 1


def test_damage_reports_the_number_of_dropped_records(caplog: pytest.LogCaptureFixture) -> None:
    damage = Damage("f", "DROPMALFORMED")
    damage.hit(5, "broken", 3)
    with caplog.at_level(logging.WARNING):
        damage.report()
    assert caplog.messages == ["dropped 3 malformed TFRecords; the first: f, byte 5: broken"]


def test_damage_with_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 'PERMISSIVE'"):
        Damage("f", "PERMISSIVE")


def test_read_of_a_file_of_another_format_fails_at_its_first_byte() -> None:
    with pytest.raises(DataError, match=r"f, byte 0: .*set option compression"):
        read(b"PAR1" + b"parquet?" * 10)


def test_scan_stops_at_the_first_record_that_begins_after_the_limit() -> None:
    found = scan(framed([b"a" * 20] * 9), 100)
    assert (len(found.starts), found.next, found.stop) == (3, 108, Stop.LIMIT)


def test_find_record_skips_zeros() -> None:
    assert find_record(b"\0" * 50 + frame(b"abc")) == 50
    assert find_record(b"\0" * 50) is None
    assert find_record(b"") is None


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_count_of_an_uncompressed_file_detects_truncation(tmp_path: Path, cut: int) -> None:
    data = framed([b"a" * 20, b"b" * 3, b""])
    (tmp_path / "f").write_bytes(data[: len(data) - cut])
    if not cut:
        assert count_records(str(tmp_path / "f")) == 3
        return
    with pytest.raises(DataError, match="truncated"):
        count_records(str(tmp_path / "f"))


def test_count_decompresses_gzip_without_a_suffix(tmp_path: Path) -> None:
    half = framed([b"a" * 20] * 50)
    (tmp_path / "f").write_bytes(gzip.compress(half) + gzip.compress(half))
    assert count_records(str(tmp_path / "f")) == 100


def test_error_of_the_count_of_a_truncated_gzip_file_names_it(tmp_path: Path) -> None:
    data = gzip.compress(framed([np.random.default_rng(place).bytes(2000) for place in range(50)]))
    (tmp_path / "f.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"f\.gz, byte \d+: "):
        count_records(str(tmp_path / "f.gz"))
