"""`lora-wizard calc` as people and programs call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from knowledge.answers import PlainError, write_answers
from knowledge.config import TrainingConfig, with_values
from knowledge.gpus import gpus
from wizard.calc import calc
from wizard.views import memory

PICTURES = Path(__file__).parent.parent / "data" / "pictures"


def run(*arguments):
    return CliRunner().invoke(calc, arguments, catch_exceptions=False, terminal_width=100)


def document(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_the_sum_is_told_in_words():
    told = " ".join(
        run("--images", "24", "--repeats", "10", "--batch-size", "4", "--epochs", "5", "--gpu", "3060").output.split()
    )
    assert "24 pictures × 10 repeats in 1 shape make 60 batches of 4 an epoch. 5 epochs are 300 steps" in told
    assert "each picture is seen 50 times" in told
    assert "of 12.0 GB VRAM" in told


def test_one_epoch_is_a_number_in_what_to_type():
    told = run("--images", "24", "--batch-size", "4", "--epochs", "5", "--gpu", "3060", "--steps", "6").output
    assert "--set schedule.epochs=1" in told


def test_a_folder_is_counted_with_its_repeats_and_shapes():
    found = document("--dataset", str(PICTURES), "--family", "sd15", "--batch-size", "2", "--gpu", "3060")
    # as recorded from sd-scripts: 6 pictures × 10 and 3 × 2 in six buckets make 33 batches of two
    assert (found["batches_per_epoch"], len(found["buckets"])) == (33, 6)
    told = " ".join(run("--dataset", str(PICTURES), "--batch-size", "2", "--gpu", "cpu").output.split())
    assert "9 pictures, with their repeats 66 views, in 6 shapes make 33 batches" in told


def test_the_sum_says_why_it_is_not_the_usual_one(tmp_path):
    told = " ".join(
        run("--images", "24", "--batch-size", "5", "--epochs", "2", "--set", "validation.share=0.2").output.split()
    )
    assert (
        "24 pictures, 5 of them only to measure by. The other 19 in 1 shape make 4 batches of 5 an epoch, 1 of" in told
    )
    assert (
        "them part-filled. 2 epochs are 8 steps; each picture is seen 2 times. The usual sum" not in told
    )  # 7.6, so 8
    for number, name in enumerate(("img/3_zkw cat", "img/1_zkw house", "reg/1_cat")):
        (tmp_path / name).mkdir(parents=True)
        for picture in range(3 + number):
            Image.new("RGB", (512, 512)).save(tmp_path / name / f"{picture}.png")
    # 3 × 3 + 4 × 1 = 13 views, and as many of the 5 regularisation pictures
    told = " ".join(
        run("--dataset", str(tmp_path), "--batch-size", "1", "--accumulation", "3", "--epochs", "5").output.split()
    )
    assert "7 pictures, with their repeats 13 views, and 13 views of regularisation pictures in 1 shape make" in told
    assert (
        "26 batches an epoch, 3 to a step: 9 steps an epoch. 5 epochs are 45 steps; a picture is seen 9 times on"
        in told
    )
    assert "The usual sum says 22: it forgets regularisation pictures and part-filled steps." in told


def test_the_document_has_the_numbers_of_the_page():
    found = document("--images", "24", "--repeats", "10", "--batch-size", "4", "--accumulation", "2", "--gpu", "4090")
    assert found["dataset"] == {
        "pictures": 24,
        "regularisation_pictures": 0,
        "held_out": 0,
        "folders": [{"pictures": 24, "repeats": 10, "regularisation": False}],
    }
    assert (found["batch_size"], found["gradient_accumulation_steps"], found["file_precision"]) == (4, 2, "fp16")
    assert found["cost_currency"] == "USD"


def test_every_change_comes_with_what_it_does():
    ask = ("--family", "sdxl", "--rank", "64", "--gpu", "3060", "--fit", "4GB")
    found = document(*ask)["proposal"]
    assert len(found["moves"]) > 1
    needs = [move["vram_likely_bytes"] for move in found["moves"]]
    assert needs == sorted(needs, reverse=True)
    assert needs[-1] == found["plan"]["vram"]["likely_bytes"]
    told = " ".join(run(*ask).output.split())
    for move in found["moves"]:
        assert f"{move['effect']} · memory" in told
        assert f"→ {move['vram_likely_bytes'] / 2**30:.1f} GB" in told


def test_what_was_not_said_is_supposed_aloud():
    found = document("--gpu", "RTX 4090")
    assert found["supposed"]["base_model.family"] == "sd15"
    assert found["supposed"]["images"] == 20
    found = document("--gpu", "RTX 4090", "--family", "sdxl", "--images", "30", "--rank", "32", "--precision", "fp16")
    assert {"images", "base_model.family", "network.rank", "memory.precision"}.isdisjoint(found["supposed"])


def test_every_option_changes_the_figure_it_names():
    plain = (
        "--images",
        "10",
        "--epochs",
        "4",
        "--batch-size",
        "1",
        "--rank",
        "8",
        "--gpu",
        "3060",
        "--resolution",
        "512",
    )
    before = document(*plain, "--optimizer", "adamw", "--precision", "fp32")
    assert before["total_steps"] == 40
    assert document(*plain, "--accumulation", "5")["total_steps"] == 8
    assert document(*plain, "--repeats", "3")["total_steps"] == 120
    assert document(*plain, "--algorithm", "loha")["trainable_parameters"] > before["trainable_parameters"]
    assert document(*plain, "--set", "saving.precision=fp32")["file_bytes"] > before["file_bytes"]
    assert document(*plain, "--size", "1920x1080")["buckets"][0]["width"] == 640
    assert document(*plain, "--precision", "bf16")["vram"]["likely_bytes"] < before["vram"]["likely_bytes"]
    assert document(*plain, "--curve")["learning_rate"][0] >= 0
    assert document(*plain, "--price", "2")["cost"] == pytest.approx(
        before["duration"]["likely_seconds"] / 1800, rel=0.7
    )


def test_an_answers_file_is_taken_as_it_is(tmp_path):
    config = with_values(TrainingConfig(), {"network.rank": 7, "schedule.epochs": 3, "schedule.batch_size": 2})
    write_answers(config, tmp_path / "answers.toml")
    found = document("--answers", str(tmp_path / "answers.toml"), "--images", "9", "--gpu", "3060")
    assert (found["total_steps"], found["supposed"]) == (15, {})
    assert document("--answers", str(tmp_path / "answers.toml"), "--images", "9", "--epochs", "1")["total_steps"] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dataset", "nowhere"), "There is no folder nowhere"),
        (("--dataset", str(PICTURES), "--images", "3"), "two ways to say the same"),
        (("--size", "5x5"), "--images"),
        (("--rank", "0"), "network.rank is 0"),
        (("--gpu", "Voodoo 2"), "no figures"),
        (("--set", "network.rank"), "NAME=VALUE"),
        (("--answers", "nowhere.toml"), "There is no file nowhere.toml"),
    ],
)
def test_a_wrong_question_is_answered_in_one_sentence(arguments, said):
    with pytest.raises(PlainError, match=said.replace("(", r"\(")):
        run(*arguments)


def test_a_size_that_is_none_is_wrong_use():
    assert run("--images", "3", "--size", "big").exit_code == 2


def test_the_calculator_never_needs_torch():
    program = (
        "import sys; from wizard.cli import main\n"
        "try: main(['calc', '--images', '24', '--gpu', '3060'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers', 'numpy', 'matplotlib', 'lycoris'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    assert "steps" in result.stdout


def test_what_fits_a_size_is_asked_of_a_card_of_that_size_where_there_is_none(monkeypatch):
    monkeypatch.setattr("wizard.hardware.graphics_cards", lambda: [])
    asked = ("--images", "20", "--family", "sdxl", "--resolution", "1024")
    found = document(*asked, "--fit", "8GB")
    assert found["hardware"]["vram_bytes"] == 8 * 2**30
    assert found["supposed"]["gpu"] == found["hardware"]["name"]
    assert found["proposal"]["reached"]
    assert found["proposal"]["plan"]["vram"]["likely_bytes"] <= 8 * 2**30
    assert document(*asked)["hardware"]["name"] == "CPU"


ORDINARY = ("--images", "20", "--repeats", "5", "--family", "sd15", "--gpu", "3060", "--batch-size", "2")


def test_every_figure_is_judged_with_a_reason_and_what_to_change():
    judged = {one["measure"]: one for one in document(*ORDINARY, "--epochs", "2")["assessment"]}
    assert set(judged) == {"steps", "views", "time", "memory"}
    assert judged["steps"]["verdict"] == "too low"  # 2 × 50 steps
    assert "Raise schedule.epochs to about 8." in judged["steps"]["change"]
    told = " ".join(run(*ORDINARY, "--epochs", "2").output.split())
    assert "too low: a character usually takes 400 to 3,000 steps. Raise schedule.epochs to about 8." in told


def test_it_says_when_files_and_samples_come():
    arguments = (*ORDINARY, "--epochs", "4", "--set", "saving.every_epochs=1", "--set", "sampling.every_epochs=2")
    found = document(*arguments, "--set", "sampling.prompts=['a cat']")
    assert found["saving_steps"] == [50, 100, 150, 200]
    assert found["sampling_steps"] == [0, 100, 200]
    told = " ".join(run(*arguments, "--set", "sampling.prompts=['a cat']").output.split())
    assert "after step 50, 100, 150, 200" in told
    assert "after the start, 100, 200" in told


def test_cards_that_share_the_batches_make_fewer_steps_in_less_time():
    one, four = document(*ORDINARY, "--epochs", "4"), document(*ORDINARY, "--epochs", "4", "--processes", "4")
    # 50 batches an epoch: 13 each, the last of them with two batches only
    assert (one["total_steps"], four["total_steps"]) == (200, 52)
    assert four["duration"]["parts"]["steps"] == pytest.approx(one["duration"]["parts"]["steps"] * 52 * 4 / 200 / 4)
    assert four["views_per_image"] == one["views_per_image"] == 20


def test_money_is_the_price_that_was_named_or_that_of_a_dated_table():
    rented = document("--images", "20", "--gpu", "RTX 4090")
    assert rented["cost"] == pytest.approx(rented["duration"]["likely_seconds"] / 3600 * 0.34)
    assert "2026" in rented["cost_basis"]
    assert "cost" not in document("--images", "20", "--gpu", "RTX 2060")
    own = document("--images", "20", "--gpu", "RTX 2060", "--price", "1.5")
    assert own["cost"] == pytest.approx(own["duration"]["likely_seconds"] / 3600 * 1.5)


def test_it_says_what_another_card_would_allow():
    small, large = (document(*ORDINARY, "--allow", size)["allowed"] for size in ("6GB", "24GB"))
    assert [one["resolution"] for one in small] == [512, 512, 768, 768, 1024, 1024]
    assert all(a["batch_size"] <= b["batch_size"] for a, b in zip(small, large, strict=True))
    assert small[1]["batch_size"] > small[0]["batch_size"]  # checkpointing makes room
    assert "What 6.0 GB would allow" in run(*ORDINARY, "--allow", "6GB").output


def test_the_plan_is_drawn(tmp_path):
    from PIL import Image

    arguments = ("--dataset", str(PICTURES), "--gpu", "3060", "--charts", str(tmp_path / "charts"))
    found = document(*arguments)
    assert [Path(path).name for path in found["charts"]] == ["memory.png", "learning-rate.png", "steps-by-shape.png"]
    for path in found["charts"]:
        with Image.open(path) as chart:
            assert chart.size == (1350, 690)
            assert len(chart.convert("RGB").getcolors(1_000_000)) > 20
    (tmp_path / "file").write_text("")
    with pytest.raises(PlainError, match="cannot be written"):
        run("--gpu", "3060", "--charts", str(tmp_path / "file"))


def test_every_phase_has_its_memory():
    phases = document(*ORDINARY, "--set", "sampling.prompts=['a cat']")["vram"]["phases"]
    assert list(phases) == ["caching", "training", "sampling", "saving"]
    assert sum(phases["saving"].values()) < sum(phases["training"].values())
    told = run(*ORDINARY).output
    assert "Memory while" in told


def test_all_cards_are_listed_and_one_picture_makes_one_batch():
    listed = run("--gpu", "list").output.splitlines()
    assert len(listed) == len(gpus())
    assert "RTX 3060 12GB" in listed
    page = " ".join(run("--images", "1", "--epochs", "2", "--batch-size", "4", "--gpu", "RTX 3060").output.split())
    assert "1 picture in 1 shape makes 1 batch of 4 an epoch, part-filled." in page
    assert (memory(0), memory(2**19), memory(2**21)) == ("0 MB", "less than 1 MB", "2 MB")
