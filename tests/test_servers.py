"""The servers of the tests do what real ones do: parts of files, and faults on order."""

from __future__ import annotations

import time

import pytest
import requests
from servers import Fault, LocalServer, Reply


class Files(LocalServer):
    def reply(self, request):
        return Reply(body=b"0123456789", headers={"ETag": '"ten"'}, ranges=True)


@pytest.fixture
def files():
    with Files() as server:
        yield server


def test_a_part_is_sent_as_a_part_while_the_file_is_the_same(files):
    part = requests.get(files.address, headers={"Range": "bytes=4-", "If-Range": '"ten"'}, timeout=5)
    assert (part.status_code, part.content) == (206, b"456789")
    assert part.headers["Content-Range"] == "bytes 4-9/10"
    whole = requests.get(files.address, headers={"Range": "bytes=4-", "If-Range": '"eleven"'}, timeout=5)
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert requests.get(files.address, headers={"Range": "bytes=10-"}, timeout=5).status_code == 416


def test_faults_come_as_often_as_they_were_ordered(files):
    files.faults = [Fault(status=429, headers={"Retry-After": "1"}), Fault(cut_after=3), Fault(seconds=0.2)]
    assert requests.get(files.address, timeout=5).headers["Retry-After"] == "1"
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = requests.get(files.address, timeout=5).content
    began = time.monotonic()
    assert requests.get(files.address, timeout=5).content == b"0123456789"
    assert time.monotonic() - began >= 0.2
    assert len(files.asked("/")) == 3
