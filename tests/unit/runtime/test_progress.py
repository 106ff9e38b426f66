"""A bar is for eyes alone: the things pass through in their order, seen or not."""

import io
import sys

import pytest

from ds_stage2ab.runtime.progress import with_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("total", [3, None])
def test_a_terminal_sees_a_bar(monkeypatch, total):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert list(with_bar(iter("abc"), total, "import")) == ["a", "b", "c"]
    assert "import" in sys.stderr.getvalue()


def test_a_file_sees_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(with_bar("abc", 3, "import")) == ["a", "b", "c"]
    assert sys.stderr.getvalue() == ""
