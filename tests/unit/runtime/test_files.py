"""Files that are whole, whatever ends the process."""

import pytest

from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.runtime.files import drop_half_line, write_whole


def test_a_file_is_written_whole_with_its_folder_and_nothing_beside_it(tmp_path):
    file = tmp_path / "new" / "page.html"
    for words in ("first", "then \udcff"):
        write_whole(file, words)
    assert file.read_bytes() == rb"then \udcff"
    assert list(file.parent.iterdir()) == [file]


def test_what_cannot_be_written_says_so_and_leaves_the_old_file(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("old")
    (tmp_path / ".page.html.partial").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot be written: Is a directory") as caught:
        write_whole(file, "new")
    assert (caught.value.where, file.read_text()) == (str(file), "old")


@pytest.mark.parametrize(("was", "whole"), [(b"a\nb\nc", b"a\nb\n"), (b"a\n", b"a\n"), (b"a", b""), (b"", b"")])
def test_a_half_line_at_the_end_is_cut_off(tmp_path, was, whole):
    file = tmp_path / "lines.jsonl"
    file.write_bytes(was)
    drop_half_line(file)
    assert file.read_bytes() == whole


def test_a_file_that_is_not_there_stays_so(tmp_path):
    drop_half_line(tmp_path / "lines.jsonl")
    assert list(tmp_path.iterdir()) == []
