"""Tensor files: sound ones come back exactly, broken ones are named, and nothing in them runs."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine.tools.files import TensorFile, open_tensors
from engine.tools.headers import body_hash, file_hash, read_header
from engine.tools.writing import replace_metadata, save_tensors, write_stream
from knowledge.answers import PlainError

KOHYA = Path(__file__).parent.parent / "data" / "network_fp16.safetensors"


def sample() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4),
        "b.weight": torch.randn(2, 3, 1, 1).half(),
        "c.alpha": torch.tensor(4.0, dtype=torch.bfloat16),
        "d.empty": torch.empty(0, 5),
        "e.flag": torch.tensor([True, False]),
    }


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    tensors = sample()
    save_tensors(tmp_path / "x.safetensors", tensors, {"ss_note": "Grüße"})
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert {name: tensor.dtype for name, tensor in read.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_what_safetensors_writes_is_what_is_read(tmp_path):
    tensors = sample()
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"k": "v"})
    opened = TensorFile(tmp_path / "x.safetensors")
    assert opened.metadata == {"k": "v"}
    assert all(torch.equal(opened[name], tensors[name]) for name in tensors)


def test_hashes_are_those_that_sd_scripts_writes(tmp_path):
    stated = read_header(KOHYA).metadata
    assert body_hash(KOHYA) == stated["sshs_model_hash"]
    opened = TensorFile(KOHYA)
    layout = {name: opened.layout(name) for name in sorted(opened, key=lambda n: opened.header.entries[n].start)}
    write_stream(tmp_path / "x.safetensors", layout, ((n, opened[n]) for n in layout), stated, hashes=True)
    again = read_header(tmp_path / "x.safetensors").metadata
    assert again == stated


def test_legacy_hash_is_over_64_kib_behind_the_first_mebibyte_of_the_file_with_only_ss_metadata(tmp_path):
    import hashlib

    tensors = {"x.lora_up.weight": torch.arange(400_000, dtype=torch.float32)}
    metadata = {"ss_a": "1", "modelspec.title": "t" * 500}
    save_tensors(tmp_path / "x.safetensors", tensors, metadata)
    plain = safetensors.torch.save(tensors, {"ss_a": "1"})
    expected = hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    assert read_header(tmp_path / "x.safetensors").metadata["sshs_legacy_hash"] == expected


def test_editing_metadata_leaves_every_byte_of_the_body_alone(tmp_path):
    replace_metadata(KOHYA, tmp_path / "x.safetensors", {"only": "this"})
    assert body_hash(tmp_path / "x.safetensors") == body_hash(KOHYA)
    assert file_hash(tmp_path / "x.safetensors") != file_hash(KOHYA)
    assert read_header(tmp_path / "x.safetensors").metadata == {"only": "this"}
    one, other = safetensors.torch.load_file(KOHYA), safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def header(document: object, body: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN = {
    "too short": b"abc",
    "huge header": (2**60).to_bytes(8, "little") + b"{}",
    "cut in the header": (5000).to_bytes(8, "little") + b"{}",
    "not JSON": header("x")[:8] + b"{{{",
    "not a mapping": header([1, 2]),
    "nested without end": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "cut in the body": header({"a": tensor([4], 0, 16)}, b"\0" * 8),
    "bytes left over": header({"a": tensor([4], 0, 16)}, b"\0" * 20),
    "overlap": header({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, b"\0" * 24),
    "gap": header({"a": tensor([4], 0, 16), "b": tensor([4], 20, 36)}, b"\0" * 36),
    "shape lies": header({"a": tensor([5], 0, 16)}, b"\0" * 16),
    "negative shape": header({"a": tensor([-4], 0, 16)}, b"\0" * 16),
    "no offsets": header({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "unknown dtype": header({"a": tensor([4], 0, 16, "Q4")}, b"\0" * 16),
    "metadata is no text": header({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_gets_one_sentence(content, tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(PlainError, match=r"broken\.safetensors") as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_wrong_use(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(PlainError) as caught:
            open_tensors(path)
        assert caught.value.exit_code == 2


MARKER = Path(tempfile.gettempdir()) / "lora-wizard-was-here"


class Payload:
    def __reduce__(self):
        return (Path.touch, (MARKER,))


def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    MARKER.unlink(missing_ok=True)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "raw.ckpt"):
        with pytest.raises(PlainError):
            open_tensors(tmp_path / name)
    assert not MARKER.exists()


def test_a_pickle_of_tensors_is_read(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "x.pt")
    assert torch.equal(open_tensors(tmp_path / "x.pt")["a"], torch.ones(2))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"old")

    def stream():
        yield "a", torch.zeros(2)
        raise RuntimeError("the disk is full")

    layout = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    with pytest.raises(RuntimeError):
        write_stream(target, layout, stream())
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
