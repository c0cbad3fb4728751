"""Broken network files through every command of `tools`; thousands of them: python tests/broken_networks.py"""

from __future__ import annotations

from broken_networks import BYTEWISE, COMMANDS, PIECES, cases


def test_no_broken_file_gets_past_a_sentence_runs_its_code_or_leaves_something_behind(tmp_path):
    told = list(cases(tmp_path, 130, seed=7, every_command=False))
    assert [(case, said) for case, said in told if said is not None] == []
    ran = " ".join(case for case, _ in told)
    for what in (*(change.__name__ for change in (*PIECES, *BYTEWISE)), "pickle", *(words[0] for words in COMMANDS)):
        assert what in ran, what
