"""The pictures' question: bringing pictures in, looking closely, tagging and captioning without leaving the wizard."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from booru import KEY, USER, Gelbooru
from taggers import make_tagger
from terminal import ENTER, ESCAPE, Terminal

from wizard.picture_sources import Fetch, fetch_in, free


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def at_the_pictures(here, **environment):
    terminal = Terminal("new", here=here, **environment)
    terminal.sees("What do you want to teach?")
    terminal.press(ENTER)
    terminal.sees("Where are your pictures?", "Gelbooru among them")
    return terminal


def test_a_typed_line_is_told_apart(here, photos):
    with zipfile.ZipFile(here / "my set.zip", "w") as archive:
        archive.write(photos / "0.png", "0.png")
    zipped = fetch_in(f"'{here / 'my set.zip'}'")
    assert zipped is not None
    assert zipped.words == ("dataset", "import", str(here / "my set.zip"), "--to", "datasets/my set")
    loose = fetch_in(f"{photos / '0.png'} {photos / '1.png'}")
    assert loose is not None
    assert loose.command[2:] == (str(photos / "0.png"), str(photos / "1.png"))
    assert fetch_in("https://huggingface.co/datasets/diffusers/dog-example") == Fetch(
        ("dataset", "import", "https://huggingface.co/datasets/diffusers/dog-example"), Path("datasets/dog-example")
    )
    for text in (str(photos), "", "nowhere", "owner/name", "two words"):
        assert fetch_in(text) is None
    (here / "datasets" / "my set").mkdir(parents=True)
    assert free(here / "datasets" / "my set").name == "my set-2"


def test_an_archive_is_imported_and_used(here, photos):
    with zipfile.ZipFile(here / "set.zip", "w") as archive:
        for file in photos.iterdir():
            archive.write(file, file.name)
    terminal = at_the_pictures(here)
    terminal.press("set.zip", ENTER)
    terminal.sees("Into which new folder shall they go?", "datasets/set")
    terminal.press(ENTER)
    terminal.sees("6 pictures and 4 captions are now in datasets/set.", "Enter goes on.")
    terminal.press(ENTER)
    terminal.sees("Are these the right pictures?", "6 pictures", "in place 0")
    assert (here / "datasets" / "set" / "0.png").is_file()


def test_loose_files_are_imported_into_a_folder_of_ones_choice(here, photos):
    (here / "full").mkdir()
    (here / "full" / "a.txt").write_text("")
    strange = here / "two 'cats' & ünï (1).png"
    (photos / "0.png").rename(strange)
    terminal = at_the_pictures(here)
    terminal.press(f'"{strange}" {photos / "1.png"}', ENTER)
    terminal.sees("Into which new folder shall they go?")
    terminal.press("\x15", "full", ENTER)
    terminal.sees("full is there already.")
    terminal.press("\x15", "my pictures/ünï", ENTER)
    terminal.sees("2 pictures and 1 caption are now in my pictures/ünï.", "Enter goes on.")
    terminal.press(ENTER)
    terminal.sees("Are these the right pictures?", "2 pictures")
    assert sorted(path.name for path in (here / "my pictures" / "ünï").iterdir()) == ["1.png", "1.txt", strange.name]


def test_pictures_from_gelbooru_are_asked_for_and_used(here, quick_network):
    with Gelbooru() as server:
        terminal = at_the_pictures(here, GELBOORU_ENDPOINT=server.address, GELBOORU_API_KEY=KEY, GELBOORU_USER_ID=USER)
        terminal.press(ENTER)
        terminal.sees("How shall the pictures come?")
        terminal.looks_on_gelbooru("1girl", at_most="3")
        terminal.sees("datasets/1girl")
        terminal.press(ENTER)
        terminal.sees("Download 3 pictures into datasets/1girl?")
        terminal.press("y", ENTER)
        terminal.sees("3 pictures and 3 captions", "Enter goes on.")
        terminal.press(ENTER)
        terminal.sees("Are these the right pictures?", "3 pictures", "1girl, long hair")


def test_a_no_leads_back_to_the_question(here, quick_network):
    with Gelbooru() as server:
        terminal = at_the_pictures(here, GELBOORU_ENDPOINT=server.address, GELBOORU_API_KEY=KEY, GELBOORU_USER_ID=USER)
        terminal.press(ENTER)
        terminal.sees("How shall the pictures come?")
        terminal.press(ESCAPE)
        terminal.sees("Where are your pictures?")
        terminal.press(ENTER)
        terminal.looks_on_gelbooru("1girl")
        terminal.press(ENTER)
        terminal.sees("Download 5 pictures")
        terminal.press("n", ENTER)
        terminal.sees("Enter goes on.")
        terminal.press(ENTER)
        terminal.sees("Where are your pictures?", "No pictures have come.")


def test_pictures_are_looked_at_tagged_and_captioned_without_leaving(here, photos, tmp_path):
    tagger = make_tagger(tmp_path / "tagger")
    terminal = at_the_pictures(here)
    terminal.press(str(photos), ENTER)
    terminal.sees("Are these the right pictures?", "2 of 6 pictures have none")
    terminal.point_at("Look closely, tag, write captions")
    terminal.press(ENTER)
    terminal.sees("What shall be done with them?", "Ctrl-C leave")
    terminal.press(ENTER)
    terminal.sees("6 PNG", "Enter close")
    terminal.press(ENTER)

    terminal.sees("What shall be done with them?")
    terminal.point_at("Write captions by a model")
    terminal.press(ENTER)
    terminal.sees("Which model shall write them?", "wd-vit-v3")
    terminal.press("\x1b[A", ENTER)  # the last of the list
    terminal.sees("In which folder?")
    terminal.press(str(tagger), ENTER)
    terminal.sees("How sure must it be")
    terminal.press("\x15", "0.39", ENTER)
    terminal.sees("never write?")
    terminal.press("somebody (series)", ENTER)
    terminal.sees("And where there is a caption already?")
    terminal.press(ENTER)
    terminal.sees("Write 2 captions?")
    terminal.press("y", ENTER)
    terminal.sees("2 captions written.", "Enter goes on.")
    assert "^_^" in (photos / "4.txt").read_text()
    assert (photos / "0.txt").read_text() == "in place 0"
    terminal.press(ENTER)

    terminal.sees("What shall be done with them?")
    terminal.point_at("Write captions yourself")
    terminal.press(ENTER)
    terminal.sees("1 of 6", "in place 0", "▀▀")
    terminal.press(", by hand", ESCAPE)
    terminal.sees("What shall be done with them?")
    assert (photos / "0.txt").read_text() == "in place 0, by hand\n"
    terminal.press(ESCAPE)
    terminal.sees("Are these the right pictures?", "every picture has one", "in place 0, by hand")
