"""Paths that a file system refuses, in every place where a command takes one: a message with its code, no traceback."""

import json
import shutil

import pytest

from ds_stage2ab import cli
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_DATA, EXIT_ENVIRONMENT
from tests.parts import ROOT, config_values, write_config
from tests.unit.formats.sets import image

LONG = "x" * 300  # more than a file system takes
UNDER_A_FILE = "file/x"
AT_NOBODY = "~nobody-of-this-name/x"
ODD = (LONG, UNDER_A_FILE, AT_NOBODY)
PLACES = {
    "validate": "validate {}",
    "plan": "plan {}",
    "launch": "launch --cpu --train-ranks 1 --config {}",
    "launch --resume": "launch --cpu --train-ranks 1 --config good.yaml --resume {}",
    "add-coord-tokens SRC": "add-coord-tokens {} made",
    "add-coord-tokens DST": "add-coord-tokens model {}",
    "checkpoints": "checkpoints {}",
    "data": "data {}.jsonl",
    "data of a config": "data {}",
    "data --image-root": "data set.jsonl --image-root {}",
    "data --html": "data set.jsonl --html {}",
    "init": "init {}",
    "init --model": "init made.yaml --model {}",
    "init --data": "init made.yaml --data {}",
    "import": "import coco {} --images images --out made",
    "import yolo": "import yolo {} --images images --out made",
    "import voc": "import voc {} --images images --out made",
    "import --split": "import voc images --images images --out made --split {}",
    "import --images": "import coco set.json --images {} --out made",
    "import --out": "import coco set.json --images images --out {}",
    "import --class-names": "import coco set.json --images images --out made --class-names {}",
    "export": "export coco {} --out made.json",
    "export --out": "export coco set.jsonl --out {}",
    "export --annotations": "export coco set.jsonl --out made.json --annotations {}",
    "report": "report {}",
}
TAKEN = {("init --model", AT_NOBODY), ("add-coord-tokens DST", AT_NOBODY), ("export --out", AT_NOBODY)}
TAKEN |= {("data --html", AT_NOBODY), ("import --out", AT_NOBODY)}
"""A shell leaves `~` as it is where nobody has that name: a folder of that name is made."""


@pytest.fixture
def folder(quickstart, tmp_path, monkeypatch):
    """What each command needs beside the odd path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    shutil.copytree(quickstart.plain, tmp_path / "model")
    image(tmp_path / "images" / "a.png")
    listed = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    (tmp_path / "set.json").write_text(json.dumps(listed))
    line = {"images": ["images/a.png"], "width": 333, "height": 111, "objects": []}
    (tmp_path / "set.jsonl").write_text(json.dumps(line) + "\n")
    write_config(tmp_path / "good.yaml", config_values(quickstart, tmp_path / "runs", "none"))
    return tmp_path


@pytest.mark.parametrize("path", ODD, ids=["long", "under a file", "of nobody"])
@pytest.mark.parametrize("place", PLACES)
def test_an_odd_path_is_a_message(folder, capsys, place, path):
    words = [word.format(path) for word in PLACES[place].split()]
    code = cli.main(words)
    said = capsys.readouterr()
    if (place, path) in TAKEN:
        assert code == 0
        return
    assert code in (EXIT_CONFIG, EXIT_DATA, EXIT_ENVIRONMENT), said
    told = said.out if place == "validate" else said.err
    assert path in told and "fix: " in told
    assert place == "validate" or told.count("error: ") == 1


def test_what_is_no_matter_of_a_path_stays_what_it_is(monkeypatch):
    """A mistake of ours must not be told as one of the user's."""

    def broken(words):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(cli, "read_overrides", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["plan", str(ROOT / "configs" / "quickstart" / "ab_mixed.yaml")])
