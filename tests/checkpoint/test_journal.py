"""The journal: what was on the disk is read back, and a torn tail is cut off."""

from __future__ import annotations

import json
import random

import pytest

from eutectic.checkpoint.journal import Journal
from eutectic.checkpoint.storage import Storage

HEADER = {"fingerprint": "f", "inputs": []}
RECORDS = [{"job": i, "digest": f"{i:x}"} for i in range(12)]


def written(path, batches=4):
    journal = Journal(str(path), Storage())
    journal.restart(HEADER)
    size = len(RECORDS) // batches
    for first in range(0, len(RECORDS), size):
        journal.append(RECORDS[first : first + size])
    journal.close()
    return path.read_bytes()


def read(path):
    journal = Journal(str(path), Storage())
    journal.close()
    return journal.header, journal.records


def test_a_new_journal_is_empty(tmp_path):
    assert read(tmp_path / "j") == (None, [])


def test_lines_are_read_back(tmp_path):
    written(tmp_path / "j")
    assert read(tmp_path / "j") == (HEADER, RECORDS)


def test_a_tail_torn_anywhere_is_cut_off(tmp_path):
    whole = written(tmp_path / "j")
    for size in range(len(whole)):
        (tmp_path / "j").write_bytes(whole[:size])
        header, records = read(tmp_path / "j")
        complete = whole[:size].count(b"\n")
        assert header == (HEADER if complete else None)
        assert records == RECORDS[: max(0, complete - 1)]


def test_a_flipped_bit_ends_the_journal_there(tmp_path):
    whole = written(tmp_path / "j")
    rng = random.Random(1)
    for _ in range(300):
        bit = rng.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "j").write_bytes(data)
        header, records = read(tmp_path / "j")
        line = whole[: bit // 8].count(b"\n")
        assert header == (HEADER if line else None)
        assert records == RECORDS[: max(0, line - 1)]


def test_what_is_appended_follows_the_last_whole_line(tmp_path):
    whole = written(tmp_path / "j")
    (tmp_path / "j").write_bytes(whole[:-5])
    journal = Journal(str(tmp_path / "j"), Storage())
    journal.append([{"job": 99}])
    journal.close()
    assert read(tmp_path / "j") == (HEADER, [*RECORDS[:-1], {"job": 99}])


def test_a_restart_forgets(tmp_path):
    written(tmp_path / "j")
    journal = Journal(str(tmp_path / "j"), Storage())
    journal.restart({"fingerprint": "other"})
    assert (journal.header, journal.records) == ({"fingerprint": "other"}, [])
    journal.close()
    assert read(tmp_path / "j") == ({"fingerprint": "other"}, [])


def test_a_line_is_its_checksum_and_plain_json(tmp_path):
    whole = written(tmp_path / "j")
    checksum, _, body = whole.splitlines()[0].partition(b" ")
    assert len(checksum) == 8
    assert json.loads(body) == HEADER


@pytest.mark.parametrize("rubbish", [b"\n", b"00000000 \n", b"zz\n", bytes(100), b"no newline"])
def test_rubbish_is_no_journal(tmp_path, rubbish):
    (tmp_path / "j").write_bytes(rubbish)
    assert read(tmp_path / "j") == (None, [])
