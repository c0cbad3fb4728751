"""`lora-wizard dataset scrape`: by flags and JSON, and asked in a terminal, against a Gelbooru on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from booru import KEY, USER, Gelbooru, Upload, picture
from click.testing import CliRunner
from servers import Fault
from terminal import CTRL_C, ENTER, Terminal

from wizard.dataset import dataset
from wizard.scraping import default_folder


@pytest.fixture
def booru(monkeypatch, quick_network):
    monkeypatch.setattr("engine.acquire.booru.PAUSE_SECONDS", 0.0)
    with Gelbooru() as server:
        monkeypatch.setenv("GELBOORU_ENDPOINT", server.address)
        monkeypatch.setenv("GELBOORU_API_KEY", KEY)
        monkeypatch.setenv("GELBOORU_USER_ID", USER)
        yield server


def run(*words, code=0):
    result = CliRunner().invoke(dataset, ["scrape", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert KEY not in result.output
    return result.output


def test_it_says_how_many_and_where_and_then_they_are_there(booru, tmp_path):
    booru.uploads.append(Upload(9, b"", named=".mp4"))
    said = run("1girl", "--to", tmp_path / "new", "--limit", 4, "--trigger", "sks", "--blacklist", "smile", "--yes")
    assert "6 in all; the first 4 that can be trained" in said
    assert "1 of a kind that is not trained (.mp4)" in said
    assert "4 pictures with captions" in said
    assert "4 pictures and 4 captions" in said
    assert (tmp_path / "new" / "gelbooru-2.txt").read_text() == "sks, 1girl, long hair\n"
    again = run("1girl", "--to", tmp_path / "new", "--limit", 5, "--yes")
    assert "4 of them came into this folder before" in again
    assert "1 picture and 1 caption" in again


def test_a_dry_run_looks_and_fetches_nothing(booru, tmp_path):
    document = json.loads(run("1girl", "--to", tmp_path / "new", "--dry-run", "--json"))
    assert (document["to_come"], document["downloaded"]) == (5, False)
    assert booru.asked("/images/") == []
    assert not (tmp_path / "new").exists()


def test_without_a_terminal_it_must_be_said(booru, tmp_path):
    assert "--yes" in run("1girl", code=2)
    assert booru.requests == []


def test_the_document_tells_what_could_not_be_had_and_the_exit_code_too(booru, tmp_path):
    booru.uploads[0].md5 = "0" * 32
    document = json.loads(run("1girl", "--to", tmp_path, "--yes", "--json", code=1))
    assert (document["pictures"], document["captions"], list(document["failed"])) == (4, 4, ["1"])
    booru.faults = [Fault("/images/", status=429, headers={"Retry-After": "999"}, times=9)]
    assert "999 s" in json.loads(run("1girl", "--to", tmp_path, "--yes", "--json", code=1))["interrupted"]


def test_ratings_are_chosen_by_flags(booru, tmp_path):
    for number, rating in enumerate(("general", "sensitive", "questionable", "explicit"), start=20):
        booru.uploads.append(Upload(number, picture(number), rating=rating))

    def found(*flags):
        return json.loads(run("1girl", "--to", tmp_path, "--dry-run", "--json", *flags))["to_come"]

    assert (found(), found("--rating", "any"), found("--rating", "explicit")) == (6, 9, 1)
    assert found("--rating", "general", "--rating", "sensitive") == 7
    assert "without captions" in run("1girl", "--to", tmp_path, "--no-captions", "--yes")
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ("1girl solo -comic rating:general", "1girl-solo"),
        ("../../etc", "etc"),
        ("saber_(fate)", "saber_fate"),
        ("-x", "gelbooru"),
    ],
)
def test_the_folder_is_named_for_what_is_looked_for(tags, name):
    assert default_folder(tags) == Path("datasets") / name


def test_in_a_terminal_it_asks_for_the_key_unseen_and_for_a_yes(booru, tmp_path):
    environment = {"GELBOORU_ENDPOINT": booru.address, "GELBOORU_API_KEY": "", "GELBOORU_USER_ID": ""}
    terminal = Terminal("dataset", "scrape", "1girl", "--limit", "2", here=tmp_path, **environment)
    terminal.sees("API key:")
    terminal.press(f"&api_key={KEY}&user_id={USER}", ENTER)
    terminal.sees("Download 2 pictures into datasets/1girl?")
    assert KEY not in terminal.text
    terminal.press(ENTER)  # no answer is no yes
    terminal.sees("Error: invalid input")
    assert booru.asked("/images/") == []
    terminal.press("y", ENTER)
    assert terminal.ends(within=60) == 0, terminal.text
    assert "2 pictures and 2 captions came into datasets/1girl" in terminal.text
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept


def test_ctrl_c_keeps_what_came(booru, tmp_path):
    booru.faults = [Fault("/images/3", seconds=0.5, slice_bytes=100, times=1)]
    environment = {"GELBOORU_ENDPOINT": booru.address}
    terminal = Terminal("dataset", "scrape", "1girl", "--yes", "--to", "new", here=tmp_path, **environment)
    terminal.sees("2/5")
    terminal.press(CTRL_C)
    assert terminal.ends(within=60) == 130
    pictures = sorted(path.name for path in (tmp_path / "new").glob("*.png"))
    assert pictures == ["gelbooru-4.png", "gelbooru-5.png"]
    booru.faults.clear()
    document = json.loads(run("1girl", "--to", tmp_path / "new", "--yes", "--json"))
    assert (document["here"], document["pictures"]) == (2, 3)
