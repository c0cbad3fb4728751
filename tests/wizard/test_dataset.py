from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner
from hubs import Repository
from PIL import Image, ImageDraw
from servers import Fault

from wizard.cli import main
from wizard.dataset import dataset


def drawing(seed: int) -> Image.Image:
    draw_from = random.Random(seed)
    picture = Image.new("RGB", (256, 256), tuple(draw_from.choices(range(256), k=3)))
    for _ in range(12):
        x, y = draw_from.randrange(256), draw_from.randrange(256)
        ImageDraw.Draw(picture).rectangle((x, y, x + 60, y + 40), tuple(draw_from.choices(range(256), k=3)))
    return picture


def ended(*words):
    """The exit code of the whole program."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        drawing(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"sks, red ball, place {number}")
    return folder


def run(*words, code=0, **how):
    result = CliRunner().invoke(dataset, [str(word) for word in words], catch_exceptions=False, **how)
    assert result.exit_code == code, result.output
    return result.output


def test_inspect_says_that_good_pictures_are_good(pictures):
    said = run("inspect", pictures, "--resolution", 256, "--trigger", "sks")
    assert "4 pictures" in said
    assert "Nothing stands out." in said
    assert "It can be trained as it is." in said
    assert "256 × 256" in said


def test_inspect_names_broken_files_and_ends_with_three(pictures):
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:300])
    said = run("inspect", pictures, "--resolution", 256, code=3)
    assert "1.png" in said
    assert "Mend first: One picture is damaged" in said.replace("\n", " ")


def test_inspect_as_json_is_one_document(pictures):
    document = json.loads(run("inspect", pictures, "--json", "--family", "pocket"))
    assert document["pictures"] == 4
    assert document["resolution"] == 64
    assert document["tag_frequency"]["sks"] == 4


def test_the_sheet_and_the_page_show_every_picture(pictures, tmp_path):
    (pictures / "<b>&.png").write_bytes(b"no picture")
    (pictures / "2.txt").write_text("<script>alert(1)</script>, Zoë")
    run("inspect", pictures, "--sheet", tmp_path / "s.png", "--html", tmp_path / "p.html", code=3)
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 500
        assert sheet.height > 200
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 4
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, Zoë" in page
    assert "&lt;b&gt;&amp;.png" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere


def test_captions_are_changed_and_taken_back(pictures):
    said = run("captions", pictures, "--remove", "red ball", "--trigger", "new", "--yes")
    assert "4 captions changed." in said
    assert (pictures / "0.txt").read_text() == "new, sks, place 0\n"
    assert "Taken back" in run("captions", pictures, "--undo")
    assert (pictures / "0.txt").read_text() == "sks, red ball, place 0\n"
    assert "No edit" in str(CliRunner().invoke(dataset, ["captions", str(pictures), "--undo"]).exception)


def test_a_dry_run_shows_and_writes_nothing(pictures):
    said = run("captions", pictures, "--sort", "--dry-run")
    assert "4 captions to change" in said
    assert (pictures / "0.txt").read_text() == "sks, red ball, place 0"


def test_what_goes_and_what_comes_is_told_apart_without_colours(pictures):
    said = run("captions", pictures, "--find", "red ball", "--replace", "cube", "--dry-run")
    assert "0.txt  sks, -red ball, +cube, place 0" in said


def test_without_a_terminal_writing_must_be_asked_for(pictures):
    assert "--yes" in run("captions", pictures, "--sort", code=2)
    assert "Say what to change" in run("captions", pictures, "--yes", code=2)


def test_captions_as_json_tell_each_change(pictures):
    document = json.loads(run("captions", pictures, "--find", "ball", "--replace", "cube", "--yes", "--json"))
    assert document["written"] is True
    assert document["changes"][0]["after"] == "sks, red cube, place 0"


def test_pictures_are_imported_into_a_folder_of_their_own(pictures, tmp_path):
    said = run("import", pictures, "--to", tmp_path / "new")
    assert "4 pictures and 4 captions" in said
    assert json.loads(run("import", pictures, "--to", tmp_path / "other", "--json"))["pictures"] == 4


def test_inspect_can_look_at_the_dataset_of_an_answers_file(pictures, tmp_path):
    from knowledge.answers import write_answers
    from knowledge.config import DatasetFolder, DatasetSettings, TrainingConfig

    chosen = DatasetSettings(
        folders=(DatasetFolder(path=str(pictures), repeats=3),), trigger_word="sks", resolution=256
    )
    write_answers(TrainingConfig(dataset=chosen), tmp_path / "answers.toml")
    document = json.loads(run("inspect", "--answers", tmp_path / "answers.toml", "--json"))
    assert document["trigger_captions"] == 4
    assert sum(row["views"] for row in document["buckets"]) == 12
    assert "Name a folder" in run("inspect", code=2)


@pytest.fixture
def tagger(tmp_path):
    """A tagger of the real interface that calls everything "long_hair" and, if red, "red_theme"."""
    import numpy as np
    from onnx import TensorProto, helper, save

    spread = np.zeros((3, 3), np.float32)
    spread[2, 2] = 1 / 255
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "spread"], ["placed"]),
            helper.make_node("Add", ["placed", "fixed"], ["output"]),
        ],
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 16, 16, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("spread", TensorProto.FLOAT, [3, 3], spread.ravel()),
            helper.make_tensor("fixed", TensorProto.FLOAT, [3], [0.9, 0.5, 0.0]),
        ],
    )
    folder = tmp_path / "tagger"
    folder.mkdir()
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    (folder / "selected_tags.csv").write_text(
        "tag_id,name,category,count\n1,safe,9,1\n2,long_hair,0,1\n3,red_theme,0,1"
    )
    return folder


def test_pictures_without_captions_are_tagged_and_it_can_be_taken_back(pictures, tagger):
    Image.new("RGB", (32, 32), "red").save(pictures / "red.png")
    said = run("tag", pictures, "--tagger", tagger, "--trigger", "sks", "--yes")
    assert "1 caption written." in said
    assert (pictures / "red.txt").read_text() == "sks, red theme, long hair\n"
    assert (pictures / "0.txt").read_text() == "sks, red ball, place 0"
    run("captions", pictures, "--undo")
    assert not (pictures / "red.txt").exists()


def test_tags_are_appended_or_replace_what_is_there(pictures, tagger):
    run("tag", pictures, "--tagger", tagger, "--append", "--threshold", 0.5, "--blacklist", "red theme", "--yes")
    assert (pictures / "0.txt").read_text() == "sks, red ball, place 0, long hair\n"
    run("tag", pictures, "--tagger", tagger, "--replace", "--threshold", 0.99, "--rating", "--yes")
    assert (pictures / "0.txt").read_text() == "safe\n"
    assert "caption for every picture" in str(CliRunner().invoke(dataset, ["tag", str(pictures), "--yes"]).exception)


def test_the_pictures_own_gap_can_stand_for_the_threshold(pictures, tagger):
    words = ("tag", pictures, "--tagger", tagger, "--replace", "--threshold", 0.99, "--dry-run", "--json")
    assert {row["after"] for row in json.loads(run(*words))["changes"]} == {""}
    assert all("long hair" in row["after"] for row in json.loads(run(*words, "--own-gap"))["changes"])


def test_a_tagger_comes_from_the_hub_once_and_without_it_one_is_told_what_to_do(
    pictures, tagger, hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("LORA_WIZARD_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    words = ("dataset", "tag", str(pictures), "--tagger", "wd-vit-v3", "--append", "--yes")
    hub.faults.append(Fault(times=3, status=503))
    assert ended(*words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "put model.onnx, selected_tags.csv of SmilingWolf/wd-vit-tagger-v3 into a folder, and name it" in said
    hub.faults.clear()
    files = {path.name: path.read_bytes() for path in tagger.iterdir()}
    hub.repositories["SmilingWolf/wd-vit-tagger-v3"] = Repository(files)
    assert ended(*words) == 0
    assert "long hair" in (pictures / "0.txt").read_text()
    asked = len(hub.requests)
    assert ended(*words[:-2], "--replace", "--yes") == 0
    assert len(hub.requests) == asked
