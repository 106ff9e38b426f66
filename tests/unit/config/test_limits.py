"""Files beyond every limit, given to the validator as users do: an answer, never a traceback, and little memory."""

import pytest

from tests.limit_cases import CASES, judge

MOST_MIB = 500


@pytest.mark.parametrize("name", CASES)
def test_a_file_beyond_a_limit_gets_an_answer(name, tmp_path):
    _, code, piece = CASES[name]
    answer = judge(name, tmp_path)
    assert (answer.code, answer.errors) == (code, "")
    assert piece in answer.text
    assert "fix: " in answer.text
    assert "Traceback" not in answer.text
    assert answer.text.endswith("1 problem in 1 of 1 file\n")
    assert len(answer.text) < 1000
    assert answer.peak_mib < MOST_MIB
