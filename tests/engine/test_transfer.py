"""Downloads through a real connection: cut, slow, refused, redirected, and wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from servers import Fault, LocalServer, Reply

from engine.acquire.network import NetworkError, Patience, RefusalError, Source, beginning, json_document, safe_name
from engine.acquire.transfer import CHUNK, download
from knowledge.answers import PlainError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(attempts=3, first_wait_seconds=0.01, longest_wait_seconds=5, read_seconds=0.5)


class Files(LocalServer):
    """One file under /file, and redirects to it."""

    content, tag = CONTENT, '"first"'

    def reply(self, request):
        if request.path == "/here":
            return Reply(302, headers={"Location": "/file"})
        if request.path == "/there":
            return Reply(307, headers={"Location": f"{self.elsewhere}/file?Signature=s3cret"})
        if request.path == "/round":
            return Reply(302, headers={"Location": "/round"})
        if request.path != "/file":
            return Reply(404)
        name = "attachment; filename=\"plain.bin\"; filename*=UTF-8''caf%C3%A9.safetensors"
        return Reply(body=self.content, headers={"ETag": self.tag, "Content-Disposition": name}, ranges=True)


@pytest.fixture
def files():
    with Files() as server:
        yield server


def source(server, path="file", **known):
    return Source(f"{server.address}/{path}", **known)


def nothing_is_left(folder):
    return sorted(path.name for path in folder.iterdir()) == []


def test_a_file_arrives_whole_and_checked(files, tmp_path):
    told = []
    got = download(source(files, size_bytes=len(CONTENT), sha256=SHA256), tmp_path / "a.bin", told.append)
    assert (got.size_bytes, got.sha256) == (len(CONTENT), SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert told[-1] == len(CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_cut_connection_goes_on_where_it_stopped(files, tmp_path):
    files.faults = [Fault(cut_after=300_000), Fault(cut_after=200_000)]
    download(source(files, sha256=SHA256, size_bytes=len(CONTENT)), tmp_path / "a.bin", patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    first, second, third = (request.headers.get("Range") for request in files.asked("file"))
    chunks = 300_000 // CHUNK
    assert (first, second) == (None, f"bytes={chunks * CHUNK}-")
    assert third == f"bytes={(chunks + 200_000 // CHUNK) * CHUNK}-"


def test_another_part_than_the_one_asked_for_is_not_taken(files, tmp_path):
    wrong = Fault(status=206, headers={"Content-Range": f"bytes 5-9/{len(CONTENT)}"}, body=b"wrong")
    files.faults = [Fault(cut_after=300_000), wrong]
    download(source(files, sha256=SHA256, size_bytes=len(CONTENT)), tmp_path / "a.bin", patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_an_answer_that_ends_early_without_a_word_is_gone_on_with(files, tmp_path):
    files.faults = [Fault(status=200, body=CONTENT[:300_000])]
    download(source(files, sha256=SHA256, size_bytes=len(CONTENT)), tmp_path / "a.bin", patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert files.asked("file")[-1].headers["Range"] == "bytes=300000-"


def test_another_process_goes_on_where_a_killed_one_stopped(files, tmp_path):
    """The reason for downloading by ourselves: the hub's own downloads begin anew in another process."""
    files.faults = [Fault(seconds=0.05, slice_bytes=64 * 1024)]
    program = (
        "import os, sys; from pathlib import Path\n"
        "from engine.acquire.transfer import *\n"
        "def told(size):\n"
        "    if size >= 1 << 19: os._exit(9)\n"
        f"download(Source({files.address!r} + '/file', sha256={SHA256!r}), Path(sys.argv[1]), told)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.bin")], check=False)
    assert killed.returncode == 9
    assert not (tmp_path / "a.bin").exists()
    part = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < part < len(CONTENT)
    download(source(files, sha256=SHA256), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert files.asked("file")[-1].headers["Range"] == f"bytes={part}-"


def test_without_a_hash_a_part_is_continued_only_while_the_tag_is_the_same(files, tmp_path):
    files.faults = [Fault(cut_after=300_000, times=3), Fault(status=500, times=9)]
    with pytest.raises(NetworkError, match="goes on from there"):
        download(source(files), tmp_path / "a.bin", patience=QUICK)
    files.faults, files.content, files.tag = [], CONTENT[::-1], '"second"'
    download(source(files), tmp_path / "a.bin", patience=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


def test_a_part_of_another_file_is_not_continued(files, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"something else")
    (tmp_path / "a.bin.part.json").write_text(json.dumps({"sha256": "0" * 64, "git_blob": "", "etag": ""}))
    download(source(files, sha256=SHA256), tmp_path / "a.bin")
    assert "Range" not in files.asked("file")[0].headers
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_leaves_nothing(files, tmp_path):
    with pytest.raises(PlainError, match="its hash is another"):
        download(source(files, sha256="0" * 64), tmp_path / "a.bin")
    assert nothing_is_left(tmp_path)
    with pytest.raises(PlainError, match="not the file"):
        download(source(files, git_blob="0" * 40), tmp_path / "a.bin")
    assert nothing_is_left(tmp_path)


def test_a_small_file_is_checked_by_its_name_in_git(files, tmp_path):
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    assert download(source(files, git_blob=blob), tmp_path / "a.bin").size_bytes == len(CONTENT)


@pytest.mark.parametrize(
    ("wrong", "words"), [(len(CONTENT) + 1, "not the file that was announced"), (len(CONTENT) - 1, "should have")]
)
def test_a_file_of_another_size_is_refused_and_leaves_nothing(files, tmp_path, wrong, words):
    with pytest.raises(PlainError, match=words):
        download(source(files, size_bytes=wrong), tmp_path / "a.bin", patience=QUICK)
    assert nothing_is_left(tmp_path)


def test_a_token_stays_with_its_host(files, tmp_path):
    download(source(files, "there", token="s3cret-token"), tmp_path / "a.bin")
    first, second = files.requests
    assert first.token == "s3cret-token"
    assert "Authorization" not in second.headers
    files.requests.clear()
    download(source(files, "here", token="s3cret-token"), tmp_path / "b.bin")
    assert [request.token for request in files.requests] == ["s3cret-token", "s3cret-token"]


def test_a_netrc_file_does_not_speak_for_us(files, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    beginning(source(files, token="mine"), 8)
    beginning(source(files), 8)
    assert [request.headers.get("Authorization") for request in files.requests] == ["Bearer mine", None]


def test_who_sends_round_in_circles_is_left(files, tmp_path):
    with pytest.raises(PlainError, match="on and on"):
        download(source(files, "round"), tmp_path / "a.bin")


def test_a_busy_server_is_asked_again_when_it_says_so(files, tmp_path):
    files.faults = [Fault(status=429, headers={"Retry-After": "1"}), Fault(status=503)]
    said: list[str] = []
    download(source(files), tmp_path / "a.bin", notice=said.append, patience=QUICK)
    assert said[0] == "127.0.0.1 is busy (status 429); trying again in 1 s"
    assert len(files.asked("file")) == 3


def test_a_server_that_asks_for_too_long_a_wait_is_not_waited_for(files, tmp_path):
    files.faults = [Fault(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(NetworkError, match="It asks to wait 3600 s"):
        download(source(files), tmp_path / "a.bin", patience=QUICK)


def test_a_server_that_stays_broken_is_given_up(files, tmp_path):
    files.faults = [Fault(status=500, times=9)]
    with pytest.raises(NetworkError, match="status 500"):
        download(source(files), tmp_path / "a.bin", patience=QUICK)
    assert len(files.asked("file")) == QUICK.attempts


def test_a_server_that_falls_silent_is_asked_again(files, tmp_path):
    files.faults = [Fault(seconds=1.5)]
    said: list[str] = []
    download(source(files), tmp_path / "a.bin", notice=said.append, patience=QUICK)
    assert "stopped answering" in said[0]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_told_once_with_what_the_server_said(files, tmp_path, status):
    files.faults = [Fault(status=status, headers={"X-Error-Code": "GatedRepo"}, body=b'{"error": "no"}')]
    with pytest.raises(RefusalError) as refused:
        download(source(files), tmp_path / "a.bin", patience=QUICK)
    assert (refused.value.status, refused.value.code, refused.value.said) == (status, "GatedRepo", "no")
    assert len(files.requests) == 1
    assert nothing_is_left(tmp_path)


def test_a_host_that_is_not_there_is_told_by_name_and_never_with_a_signature(tmp_path):
    with Files() as gone:
        address = gone.address
    with pytest.raises(NetworkError) as told:
        download(Source(f"{address}/file?Signature=s3cret"), tmp_path / "a.bin", patience=QUICK)
    assert "127.0.0.1" in str(told.value)
    assert "s3cret" not in str(told.value)


def test_what_would_fill_the_disk_is_refused_before_it_is_asked_for(files, tmp_path):
    with pytest.raises(PlainError, match="not room enough"):
        download(source(files, size_bytes=10**18), tmp_path / "a.bin")
    assert files.requests == []


def test_what_would_fill_the_disk_is_refused_when_the_answer_says_so(files, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.acquire.transfer.SPARE_BYTES", 10**18)
    with pytest.raises(PlainError, match="not room enough"):
        download(source(files), tmp_path / "a.bin")


def test_the_beginning_is_had_without_the_rest(files):
    begun = beginning(source(files), 100)
    assert (begun.content, begun.size_bytes) == (CONTENT[:100], len(CONTENT))
    assert begun.name == "café.safetensors"
    assert files.asked("file")[0].headers["Range"] == "bytes=0-99"


def test_what_is_no_json_is_said_in_words(files):
    with pytest.raises(PlainError, match="did not answer in JSON"):
        json_document(source(files))


def test_a_strangers_file_name_leads_nowhere():
    assert safe_name("../../etc/passwd") == "passwd"
    assert safe_name(r"C:\models\a.safetensors") == "a.safetensors"
    assert safe_name("%2e%2e%2fa:b.safetensors") == "a_b.safetensors"
    assert safe_name("..") == ""


def test_a_token_is_not_part_of_what_a_source_shows_of_itself():
    assert "s3cret" not in repr(Source("http://host/file", token="s3cret"))
