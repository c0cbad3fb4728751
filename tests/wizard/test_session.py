"""The guided path from the first question to the answers file, and the same without a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prompt_toolkit.input import PipeInput

from knowledge.answers import PlainError, read_answers
from knowledge.config import fields, sections
from knowledge.parameters import LEVELS, parameters
from wizard import drafts
from wizard.cli import main
from wizard.prompts import Page
from wizard.screen_prompts import ask_on_screen
from wizard.session import Session
from wizard.settings import GENERAL, names_in
from wizard.steps import REVIEW, Draft

pytestmark = pytest.mark.usefixtures("own_home")
ROOT = Path(__file__).parents[2]
LEFT, UP, DOWN, ENTER, CTRL_B, CTRL_C = "\x1b[D", "\x1b[A", "\x1b[B", "\r", "\x02", "\x03"
TO_THE_MODEL = ENTER + "{photos}" + ENTER + ENTER + "zorb" + ENTER
THE_POCKET_MODEL = DOWN + ENTER
AS_RECOMMENDED = ENTER * 11
SAVE = UP + ENTER
ASKED_IN_OTHER_WORDS = {
    "Base model": "Which model do you want to build on?",
    "Picture folders": "Where are your pictures?",
    "Sample prompts": "What shall it draw while it learns?",
    "VAE": "Which VAE shall encode the pictures?",
}
"""Settings that have pages of their own, by title, and what those ask."""


def run(*words: object) -> tuple[int, str]:
    """Exit code of `lora-wizard WORDS`, in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0), ""


@pytest.fixture
def session() -> Session:
    return Session(asker=ask_on_screen)


def walk(session: Session, keyboard: PipeInput, keys: str) -> str:
    keyboard.send_text(keys)
    return session.run()


def test_enter_all_the_way_leads_to_a_config_of_recommendations(session: Session, keyboard: PipeInput, photos: Path):
    keys = TO_THE_MODEL.format(photos=photos) + THE_POCKET_MODEL + AS_RECOMMENDED + SAVE
    assert walk(session, keyboard, keys) == "save"
    config = session.situation().config
    assert config.dataset.goal == "character"
    assert [Path(folder.path).name for folder in config.dataset.folders] == ["photos"]
    assert config.dataset.trigger_word == "zorb"
    assert config.base_model.family == "pocket"
    assert config.output.name == "zorb"
    assert len(config.sampling.prompts) == 3
    assert set(session.draft.values) <= {
        "dataset.goal",
        "dataset.folders",
        "dataset.caption_extension",
        "dataset.trigger_word",
        "base_model.path",
        "base_model.family",
        "base_model.prediction_type",
        "base_model.zero_terminal_snr",
        "sampling.prompts",
        "output.name",
    }  # everything else follows the recommendations


def test_going_back_asks_again_and_keeps_the_rest(session: Session, keyboard: PipeInput, photos: Path):
    keys = ENTER + str(photos) + ENTER + ENTER + CTRL_B + LEFT + DOWN + ENTER  # … trigger, pictures, subject: a style
    keys += ENTER + "zorb" + ENTER + THE_POCKET_MODEL + AS_RECOMMENDED + SAVE
    assert walk(session, keyboard, keys) == "save"
    assert session.situation().config.dataset.goal == "style"
    assert session.situation().config.dataset.trigger_word == "zorb"


def test_a_recommendation_that_was_accepted_follows_when_its_reason_changes(session: Session):
    session.answer({"dataset.goal": "character", "base_model.family": "sd15"})
    session._take("network.rank", {"network.rank": session.bench.advice(session.draft.values, "network.rank").value})
    before = session.situation().config.network.rank
    session.answer({"dataset.goal": "style"})
    assert session.situation().config.network.rank > before


def test_a_choice_of_ones_own_does_not_follow(session: Session):
    session.answer({"dataset.goal": "character", "base_model.family": "sd15"})
    session._take("network.rank", {"network.rank": 12})
    session.answer({"dataset.goal": "style"})
    assert session.situation().config.network.rank == 12
    assert session.situation().config.network.alpha == 12  # and what follows from it does


def test_another_value_can_be_typed_and_is_judged_by_the_field(session: Session, keyboard: PipeInput):
    session.draft = Draft({"dataset.goal": "object"}, "network.rank")
    last = "1" + UP  # the list goes round
    clear = "\x15"
    keyboard.send_text(last + ENTER + clear + "0" + ENTER + clear + "24" + ENTER + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert session.draft.values["network.rank"] == 24


def test_ctrl_c_keeps_a_draft_and_the_next_start_goes_on(session: Session, keyboard: PipeInput, photos: Path):
    keyboard.send_text(TO_THE_MODEL.format(photos=photos) + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    saved = drafts.load()
    assert saved is not None
    assert saved.draft.at == "base_model.path"
    assert saved.draft.values["dataset.trigger_word"] == "zorb"
    later = Session(asker=ask_on_screen, draft=saved.draft)
    assert walk(later, keyboard, THE_POCKET_MODEL + AS_RECOMMENDED + SAVE) == "save"
    assert later.situation().config.dataset.trigger_word == "zorb"


def test_values_that_do_not_go_together_are_refused_where_they_are_asked(session: Session):
    session.answer({"memory.cache_text_encoder_outputs": True})
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        session.answer({"network.train_text_encoder": True})
    assert "network.train_text_encoder" not in session.draft.values


def test_what_a_folder_is_for_can_be_changed(session: Session, keyboard: PipeInput, photos: Path):
    session.draft = Draft({"dataset.goal": "object"}, "dataset.folders")
    to_the_folder = str(photos) + ENTER + UP + ENTER  # the last line of the list
    to_repeats = ENTER + "\x15" + "7" + ENTER
    keyboard.send_text(to_the_folder + to_repeats + ENTER + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    (folder,) = session.draft.values["dataset.folders"]
    assert folder["repeats"] == 7


def test_any_setting_can_be_found_by_any_name_and_changed_from_the_review(
    session: Session, keyboard: PipeInput, photos: Path
):
    from wizard.forms import folders_in

    session.draft = Draft({"dataset.goal": "object", **folders_in(str(photos))}, REVIEW)
    settings_from_the_end = UP * 3 + ENTER
    find = ENTER + "noise_offset" + ENTER + "\x15" + "0.05" + ENTER
    keyboard.send_text("1" + settings_from_the_end + find + LEFT + "1" + SAVE)
    assert session.run() == "save"
    assert session.situation().config.noise.offset == 0.05


def test_more_settings_open_level_by_level_down_to_the_expert_ones(session: Session, keyboard: PipeInput):
    entries = [parameters()[name] for name in names_in("network")]
    listed = [entry.name for level in LEVELS for entry in entries if entry.level == level]
    assert parameters()["network.lokr_factor"].level == "expert"
    session.draft = Draft({"dataset.goal": "object"}, "network.algorithm")
    network_section = "m" + ENTER
    show_more = UP + ENTER  # from the first line up to the last, twice: advanced, then expert
    to_the_factor = "1" + DOWN * listed.index("network.lokr_factor") + ENTER
    keyboard.send_text(network_section + show_more + "1" + show_more + to_the_factor + "\x15" + "4" + ENTER + CTRL_C)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert session.draft.values["network.lokr_factor"] == 4


# Without a terminal


def new(*words: object) -> int:
    return run("new", *words)[0]


def basics(photos: Path) -> tuple[object, ...]:
    return ("--goal", "character", "--pictures", photos, "--base-model", "pocket", "--trigger-word", "zorb")


def test_every_setting_of_the_schema_can_be_opened_from_the_review(keyboard: PipeInput):
    """Key by key: the review, each part, each level of it, and every setting there and back."""
    parts = [*sections(), GENERAL]
    keys = UP * 3 + ENTER + DOWN
    for part in parts:
        levels = [parameters()[name].level for name in names_in(part)]
        shown = next(number for number, level in enumerate(LEVELS, 1) if level in levels)
        show_more = ("1" + UP + ENTER) * (max(map(LEVELS.index, levels)) + 1 - shown)
        keys += ENTER + show_more + "1" + (ENTER + CTRL_B + DOWN) * len(levels) + CTRL_B + DOWN
    titles = []

    def asker(page: Page) -> Any:
        titles.append(page.title)
        return ask_on_screen(page)

    session = Session(asker=asker)
    session.draft = Draft({"dataset.goal": "object"}, REVIEW)
    keyboard.send_text(keys + CTRL_B + "1" + SAVE)
    assert session.run() == "save"
    every = [name for part in parts for name in names_in(part)]
    assert {name for name in fields() if not name.startswith("dataset.folders.")} == set(every)
    assert {parameters()[name].title for name in every} - ASKED_IN_OTHER_WORDS.keys() <= set(titles)
    assert set(ASKED_IN_OTHER_WORDS.values()) <= set(titles)


def test_answers_as_options_are_saved(photos: Path, capsys: pytest.CaptureFixture[str]):
    assert new(*basics(photos), "--rank", "4", "--set", "network.alpha=2", "--yes", "--no-train") == 0
    config = read_answers("zorb.toml")
    assert (config.network.rank, config.network.alpha) == (4, 2.0)
    assert config.dataset.trigger_word == "zorb"
    assert "lora-wizard train zorb.toml" in capsys.readouterr().out


def test_the_file_names_every_answer_of_the_path_with_a_comment(photos: Path):
    new(*basics(photos), "--yes", "--no-train")
    text = Path("zorb.toml").read_text(encoding="utf-8")
    written = tomllib.loads(text)
    for section, key in (("dataset", "goal"), ("base_model", "path"), ("network", "rank"), ("schedule", "epochs")):
        assert key in written[section]
    assert text.count("#") > 10


def test_saved_answers_given_again_make_the_same_config(photos: Path):
    new(*basics(photos), "--yes", "--no-train", "--output", "one.toml", "--epochs", "3", "--set", "noise.offset=0.07")
    new("--answers", "one.toml", "--yes", "--no-train", "--output", "two.toml")
    new("--from", "one.toml", "--yes", "--no-train", "--output", "three.toml")
    assert read_answers("one.toml") == read_answers("two.toml") == read_answers("three.toml")


def test_gaps_in_given_answers_are_filled_with_recommendations(photos: Path):
    Path("mine.toml").write_text(
        f"[dataset]\ntrigger_word = 'zorb'\n[[dataset.folders]]\npath = '{photos.as_posix()}'\n", encoding="utf-8"
    )
    assert new("--answers", "mine.toml", "--yes", "--no-train", "--output", "full.toml") == 0
    assert read_answers("full.toml").dataset.resolution == 64  # the pocket model's, not the schema's 512


def test_a_file_that_exists_is_not_overwritten(photos: Path):
    new(*basics(photos), "--yes", "--no-train")
    new(*basics(photos), "--yes", "--no-train")
    assert Path("zorb.toml").exists()
    assert Path("zorb-2.toml").exists()


def test_missing_answers_without_a_terminal_name_their_options(capsys: pytest.CaptureFixture[str]):
    assert new("--yes") == 2
    said = capsys.readouterr().err
    for flag in ("--goal", "--pictures", "--base-model"):
        assert flag in said
    assert "--rank" not in said


def test_without_terminal_and_yes_nothing_is_asked(photos: Path):
    words = [sys.executable, "-m", "wizard.cli", "new", *(str(word) for word in basics(photos))]
    answer = subprocess.run(words, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "--yes" in answer.stderr
    assert answer.stdout == ""


def test_all_wrong_options_are_told_together(capsys: pytest.CaptureFixture[str]):
    words = ("--rank", "0", "--epochs", "many", "--set", "netwrk.rank=3", "--pictures", "/nowhere", "--yes")
    assert new(*words) == 2
    said = capsys.readouterr().err
    for part in ("--rank", "--epochs", "netwrk.rank", "/nowhere"):
        assert part in said


def test_json_is_one_document_with_config_plan_and_findings(photos: Path, capsys: pytest.CaptureFixture[str]):
    assert new(*basics(photos), "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["config"]["dataset"]["trigger_word"] == "zorb"
    assert document["plan"]["total_steps"] > 0
    assert isinstance(document["findings"], list)
    assert Path(document["answers"]).exists()


def test_a_dry_run_saves_nothing(photos: Path, capsys: pytest.CaptureFixture[str]):
    assert new(*basics(photos), "--dry-run") == 0
    assert "Pocket model" in capsys.readouterr().out
    assert list(Path.cwd().iterdir()) == []


def test_a_draft_of_another_schema_is_not_offered():
    drafts.save(Draft({"network.no_such_thing": 1}, REVIEW))
    session = Session()
    from wizard.new import _usable

    assert not _usable(session, Draft({"network.no_such_thing": 1}, REVIEW))
    assert not _usable(session, Draft({}, "no.such.question"))
    assert _usable(session, Draft({"network.rank": 8}, "network.rank"))


# Pictures


def test_a_folder_gets_the_repeats_that_its_number_of_pictures_asks_for(photos: Path):
    from wizard.forms import folders_in

    (folder,) = folders_in(str(photos))["dataset.folders"]
    assert folder["repeats"] > 1


def test_kohya_names_keep_their_own_repeats(photos: Path):
    from wizard.forms import folders_in

    parent = photos.parent / "set"
    parent.mkdir()
    photos.rename(parent / "3_zorb")
    (folder,) = folders_in(str(parent))["dataset.folders"]
    assert folder["repeats"] == 3


def test_a_dropped_path_loses_its_quotes(photos: Path):
    from wizard.paths import typed_path

    spaced = photos.rename(photos.parent / "my photos")
    assert typed_path(f"'{spaced}'") == str(spaced)
    assert typed_path(str(spaced).replace(" ", "\\ ")) == str(spaced)


def test_a_picture_that_breaks_off_in_the_middle_is_found(photos: Path):
    from engine.dataset.folders import scan
    from knowledge.config import DatasetFolder, DatasetSettings
    from wizard.pictures import unreadable

    whole = photos / "broken.jpg"
    Image.effect_noise((256, 256), 80).save(whole)
    whole.write_bytes(whole.read_bytes()[:6000])
    dataset = scan(DatasetSettings(folders=(DatasetFolder(path=str(photos)),)))
    assert unreadable(dataset.folders[0].pictures) == [str(whole)]


def test_no_folder_is_said_in_plain_words():
    from wizard.forms import folders_in

    with pytest.raises(PlainError, match="There is no folder"):
        folders_in("/nowhere")
