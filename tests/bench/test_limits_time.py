"""No file, however large, deep or strange, keeps its user waiting."""

import pytest

from tests.limit_cases import CASES, judge

MOST_S = 2.0


@pytest.mark.bench
def test_every_file_beyond_a_limit_is_answered_within_two_seconds(tmp_path, capsys):
    seconds = {}
    for name in CASES:
        folder = tmp_path / name
        folder.mkdir()
        seconds[name] = judge(name, folder).seconds
    slowest = max(seconds, key=seconds.__getitem__)
    with capsys.disabled():
        print(f"\n{len(CASES)} files beyond a limit; slowest: {slowest}, {seconds[slowest]:.2f} s")
    assert seconds[slowest] < MOST_S
