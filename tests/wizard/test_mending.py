"""What the doctor finds missing is installed by the commands that it names: a real pip, a wheel made here."""

from __future__ import annotations

import zipfile

import pytest
from click.testing import CliRunner

from wizard import doctor
from wizard.library_checks import pip
from wizard.mending import install, installs
from wizard.patient import Line

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def command(tmp_path):
    """Installs a package of one line into a folder of its own, from no index."""
    wheel = tmp_path / "tiny_backend-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny_backend.py", "here = True\n")
        file.writestr(
            "tiny_backend-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-backend\nVersion: 1.0\n"
        )
        file.writestr("tiny_backend-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("tiny_backend-1.0.dist-info/RECORD", "")
    return f'{pip()} install --no-index --no-deps --target "{tmp_path / "a place"}" "{wheel}"'


def test_only_what_is_in_the_way_and_pip_can_mend_is_installed(command):
    lines = [
        Line("libraries", "missing", "problem", "", command),
        Line("tagger", "missing", "note", "", f"{pip()} install onnxruntime"),
        Line("disk", "full", "problem", "", f"{pip()} cache purge; hf cache prune"),
        Line("driver", "old", "problem", "", "apt install driver"),
    ]
    assert installs(lines) == [command]


def test_a_command_is_run_as_it_is_shown_and_the_first_that_fails_is_the_last(command, tmp_path, capfd):
    assert not install([f"{pip()} install --no-index gone-for-good", command])
    assert not (tmp_path / "a place").exists()
    said = capfd.readouterr().out
    assert "gone-for-good" in said
    assert "did not succeed" in said
    assert install([command])
    assert (tmp_path / "a place" / "tiny_backend.py").is_file()


def test_the_command_installs_and_looks_again(command, tmp_path, monkeypatch):
    looks = []

    def examined(patient):
        looks.append(patient)
        there = (tmp_path / "a place" / "tiny_backend.py").is_file()
        yield Line("libraries", "all there") if there else Line("libraries", "missing", "problem", "", command)

    monkeypatch.setattr(doctor, "examine", examined)
    monkeypatch.setattr(doctor, "patient_for", lambda answers: None)
    assert CliRunner().invoke(doctor.doctor, ["--install"]).exit_code == 2
    assert CliRunner().invoke(doctor.doctor, [], standalone_mode=False).return_value == 1
    done = CliRunner().invoke(doctor.doctor, ["--install", "--yes"], standalone_mode=False)
    assert done.return_value == 0
    assert "Nothing is in the way of training." in done.output
    assert len(looks) == 3
