import os
import subprocess
import sys

import pytest
from short_runs import ROOT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script copies its process")
def test_a_run_killed_at_random_instants_leaves_only_whole_files_and_resumes_to_the_same_weights():
    command = [sys.executable, ROOT / "tests" / "kills.py", "--kills", "2", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills, each resumed to the same weights" in done.stdout
