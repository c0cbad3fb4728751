"""Text of any encoding, and the document in it."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from knowledge.answers import PlainError
from knowledge.formats.reader import read_foreign
from knowledge.formats.text import Written, parsed_json, parsed_toml, parsed_yaml, read_text, without_comments

CONFIG = 'network_dim = 8\noutput_name = "Bär"\n'


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (CONFIG.encode(), ""),
        (codecs.BOM_UTF8 + CONFIG.encode(), ""),
        (codecs.BOM_UTF16_LE + CONFIG.encode("utf-16-le"), ""),
        (codecs.BOM_UTF16_BE + CONFIG.encode("utf-16-be"), ""),
        ((CONFIG + " " * (len(CONFIG) % 2)).encode("utf-16-le"), ""),
        (codecs.BOM_UTF32_LE + CONFIG.encode("utf-32-le"), ""),
        (CONFIG.encode("cp1252"), "cp1252"),
    ],
)
def test_a_file_is_read_in_the_encoding_that_it_has(data, remark, tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(data)
    written = read_text(path)
    assert written.text.strip() == CONFIG.strip()
    assert [remark in said for said in written.remarks] == ([True] if remark else [])
    imported = read_foreign(path)
    assert imported.config is not None
    assert imported.config.network.rank == 8
    assert imported.warnings[-1:] == (written.remarks or imported.warnings[-1:])


def test_letters_of_chinese_windows_are_told_from_accents(tmp_path):
    path = tmp_path / "x.ps1"
    path.write_bytes(
        '# 训练参数设置\n$dir = "数据"\naccelerate launch train_network.py --train_data_dir=$dir'.encode("gbk")
    )
    imported = read_foreign(path)
    assert imported.config is not None
    assert imported.config.dataset.folders[0].path == "数据"
    assert "gbk" in imported.warnings[-1]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.toml", b"", "is empty"),
        ("x.json", b"\n \t\n", "is empty"),
        ("x.yaml", codecs.BOM_UTF8, "is empty"),
        ("x.sh", codecs.BOM_UTF16_LE, "is empty"),
        ("x.json", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
        ("x.toml", bytes(20_000_001), "too large"),
        ("x.json", b"[" * 5000, "nested too deeply"),
        ("x.toml", b"a = " + b"[" * 5000, "nested too deeply"),
        ("x.yaml", b"a: " + b"[" * 5000, "nested too deeply"),
        ("x.json", b'{"network_dim": ' + b"9" * 30 + b"}", "beyond 64 bits"),
        ("x.toml", b"network_dim = " + b"9" * 5000, "is not valid TOML"),
        ("x.json", b"[" + b"1," * 200_000 + b"1]", "more than any config"),
        ("x.yaml", b"a: &a [1,2,3]\n" + b"".join(b"b%d: &b%d [%s]\n" % (n, n, b",".join([b"*%s" % (
            b"a" if n == 0 else b"b%d" % (n - 1))] * 9)) for n in range(9)), "more than any config"),
        ("x.json", b'{"a": 1', "is not valid JSON: "),
        ("x.yaml", b"a: [1\nb: 2", "is not valid YAML: "),
    ],
)  # fmt: skip
def test_what_cannot_be_a_config_gets_one_sentence(name, data, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(PlainError, match=said) as refused:
        read_foreign(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    assert refused.value.exit_code == 2


LENIENT = """{
  // the form
  "output_name": "a // b, }", /* two
  lines */
  "network_dim": 8, # rank
  "optimizer_args": [1, 2,],
}"""


def test_comments_and_commas_too_many_are_read_over_and_told():
    written = parsed_json(Written(LENIENT), Path("x.json"))
    assert written.document == {"output_name": "a // b, }", "network_dim": 8, "optimizer_args": [1, 2]}
    assert "its trainer stops" in written.remarks[0]
    assert parsed_json(Written('{"a": 1}'), Path("x.json")).remarks == ()


@pytest.mark.parametrize("text", ['{"url": "http://a", "b": "# no"}', '{"a": "\\\\"}', '{"path": "C:\\\\x,]"}'])
def test_valid_json_is_left_as_it_is(text):
    assert json.loads(without_comments(text)) == json.loads(text)


@pytest.mark.parametrize(
    ("parsed", "text"),
    [(parsed_json, '{"a": {"rank": 4, "rank": 8}}'), (parsed_yaml, "a:\n  rank: 4\n  rank: 8\n")],
)
def test_of_a_key_that_stands_twice_the_last_counts_and_it_is_told(parsed, text):
    written = parsed(Written(text), Path("x"))
    assert written.document == {"a": {"rank": 8}}
    assert written.remarks == ("rank stands twice in one place; the last one counts.",)


def test_keys_are_text_whatever_yaml_makes_of_them():
    assert parsed_yaml(Written("on: 1\n2: {3.5: x}"), Path("x")).document == {"True": 1, "2": {"3.5": "x"}}
    assert parsed_toml(Written("1 = 2"), Path("x")).document == {"1": 2}
