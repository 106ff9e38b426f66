"""Which checkpoint a run goes on from, and what it says of the others."""

import argparse
import io
import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.facts import run_facts
from ds_stage2ab.engine.listing import checkpoints_table
from ds_stage2ab.engine.manifest import MANIFEST, manifest_text
from ds_stage2ab.engine.resume import (
    FORMAT,
    STATE,
    add_resume_options,
    changes,
    check_resume_options,
    choose,
    refuse_changes,
    resume_words,
    saved_steps,
    set_aside,
    step_name,
    unusable,
)
from ds_stage2ab.engine.start import Start
from ds_stage2ab.errors import ConfigError, EnvironmentFault
from ds_stage2ab.runtime.versions import library_versions
from tests.parts import ROOT, config_values, write_config

FILES = ("hf/model.safetensors", "training/model.safetensors", "random.safetensors")


@pytest.fixture
def folder(tmp_path):
    """Of checkpoints after 2, 4 and 6 steps."""
    for steps in (2, 4, 6):
        written(tmp_path / "checkpoints", steps)
    return tmp_path / "checkpoints"


def written(folder, steps, **state):
    place = folder / step_name(steps)
    for name in FILES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(f"{name} {steps}".encode() * 50)
    (place / STATE).write_text(json.dumps({"format": FORMAT, "finished_steps": steps, "updates": steps, **state}))
    (place / MANIFEST).write_text(manifest_text(place))


@pytest.mark.parametrize(("wanted", "steps"), [("auto", 6), ("latest", 6), ("4", 4), ("0000002", 2)])
def test_a_checkpoint_is_found(folder, wanted, steps):
    saved, notes = choose(wanted, folder)
    assert (saved.finished_steps, saved.folder, notes) == (steps, folder / step_name(steps), [])


def test_a_path_is_one_of_any_run(folder, tmp_path):
    shutil.move(folder / "step-000004", tmp_path / "kept")
    saved, _ = choose(str(tmp_path / "kept"), tmp_path / "elsewhere")
    assert saved.finished_steps == 4


def test_auto_starts_a_run_that_has_none_and_latest_does_not(tmp_path):
    assert choose("auto", tmp_path / "checkpoints") == (None, [])
    with pytest.raises(EnvironmentFault, match="there is no complete checkpoint"):
        choose("latest", tmp_path / "checkpoints")


@pytest.mark.parametrize("wanted", ["5", "no/such/folder", "lastest"])
def test_what_is_not_there_is_refused_with_what_is(folder, wanted):
    with pytest.raises(EnvironmentFault) as caught:
        choose(wanted, folder)
    assert "2, 4, 6" in caught.value.fix


def truncated(path):
    path.write_bytes(path.read_bytes()[:-9])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, missing])
@pytest.mark.parametrize("name", [*FILES, STATE, MANIFEST])
def test_a_damaged_file_is_named_and_the_one_before_is_taken(folder, damage, name):
    damage(folder / "step-000006" / name)
    saved, notes = choose("auto", folder)
    assert saved.finished_steps == 4
    assert len(notes) == 1 and notes[0].startswith("step-000006 is passed over: ") and name in notes[0]
    with pytest.raises(EnvironmentFault, match=re.escape(name)):
        choose("6", folder)


def test_an_older_format_and_a_foreign_state_are_told(folder):
    written(folder, 8, format=1)
    assert unusable(folder / "step-000008") == f"it is of format 1, and this version reads format {FORMAT}"
    place = folder / "step-000008"
    (place / STATE).write_text("[]")
    (place / MANIFEST).write_text(manifest_text(place))
    assert unusable(place).startswith(f"its {STATE} cannot be read: ")


@pytest.mark.parametrize("text", ['{"files": {"state.json": {"bytes": SIZE}}}', "[" * 100_000, '{"files": {"a": 1}}'])
def test_a_manifest_of_another_form_is_told(folder, text):
    place = folder / "step-000006"
    (place / MANIFEST).write_text(text.replace("SIZE", str((place / STATE).stat().st_size)))
    assert unusable(place)
    saved, _ = choose("latest", folder)
    assert saved.finished_steps == 4


def test_a_state_that_is_nested_too_deeply_is_told(folder):
    place = folder / "step-000006"
    (place / STATE).write_text("[" * 100_000)
    (place / MANIFEST).write_text(manifest_text(place))
    assert unusable(place).startswith(f"its {STATE} cannot be read: RecursionError")


def test_the_home_of_nobody_holds_no_checkpoint(folder):
    with pytest.raises(EnvironmentFault, match="there is no such checkpoint"):
        choose("~nobody-of-this-name/step-000002", folder)


def test_what_cannot_be_set_aside_is_told(folder):
    (folder / ".step-000008.partial").write_text("a file in the place of a folder")
    with pytest.raises(EnvironmentFault, match="cannot be written: Not a directory") as caught:
        set_aside(folder, choose("2", folder)[0])
    assert caught.value.where == str(folder)


def test_names_that_are_not_ours_are_no_checkpoints(folder):
    for name in ("step-000100-good", "step-0000007", "step-000006.superseded-1", ".step-000009.partial"):
        shutil.copytree(folder / "step-000002", folder / name)
    (folder / "step-000050").write_text("a file")
    (folder / "step-000060").symlink_to("step-000002")
    assert saved_steps(folder) == [2, 4, 6]


def test_newer_ones_are_set_aside_and_none_is_lost(folder):
    shutil.copytree(folder / "step-000006", folder / "step-000006.superseded-1")
    shutil.copytree(folder / "step-000006", folder / ".step-000008.partial")
    (folder / "latest").write_text("step-000006\n")
    (folder / "best").write_text("step-000004\n")
    assert set_aside(folder, choose("2", folder)[0]) == ["step-000004.superseded-1", "step-000006.superseded-2"]
    names = ["step-000002", "step-000004.superseded-1", "step-000006.superseded-1", "step-000006.superseded-2"]
    assert sorted(path.name for path in folder.iterdir()) == ["latest", *names]
    assert (folder / "latest").read_text() == "step-000002\n"


def test_latest_names_a_complete_one_that_it_could_not_name(folder):
    (folder / "latest").write_text("step-000004\n")
    assert set_aside(folder, choose("auto", folder)[0]) == []
    assert (folder / "latest").read_text() == "step-000006\n"


@pytest.mark.parametrize("place", ["other/step-000004", "checkpoints/step-000004.superseded-1"])
def test_the_same_step_of_another_run_or_try_makes_room(folder, tmp_path, place):
    """The run goes on from other weights, and saves that step itself if it is stopped at once."""
    shutil.copytree(folder / "step-000004", tmp_path / place)
    start = Start(resumes=True, saved=choose(str(tmp_path / place), folder)[0])
    assert start.newest_in(folder) == 0
    assert [name[:11] for name in set_aside(folder, start.saved)] == ["step-000004", "step-000006"]
    assert saved_steps(folder) == [2] and (folder / "latest").read_text() == "step-000002\n"
    assert start.saved.folder.is_dir()


def test_a_run_from_its_first_step_leaves_no_latest(folder):
    (folder / "latest").write_text("step-000006\n")
    assert len(set_aside(folder, None)) == 3
    assert saved_steps(folder) == [] and not (folder / "latest").exists()
    assert set_aside(folder / "nowhere", None) == []


BEFORE = {
    "config": {"a": {"b": 1, "c": None}, "logging": {"name": "x"}},
    "records": {"train": "12 lines"},
    "learners": 2,
}


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ({}, []),
        ({"config": {"a": {"b": 1, "c": None}, "logging": {"name": "y"}}}, []),
        ({"config": {"a": {"b": 2.5, "c": None}}}, ["config.a.b: 1 -> 2.5"]),
        ({"config": {"a": {"b": 1}}}, ["config.a.c: null -> (not there)"]),
        ({"config": {"a": {"b": 1, "c": None, "d": "\x1b[0m"}}}, ['config.a.d: (not there) -> "\\u001b[0m"']),
        ({"records": {"train": "13 lines"}}, ['records.train: "12 lines" -> "13 lines"']),
        ({"learners": 1}, ["learners: 2 -> 1"]),
    ],
)
def test_what_has_changed_is_told_by_its_key(now, found):
    assert changes(BEFORE, {**BEFORE, **now}) == found


def test_a_key_that_has_changed_is_told_with_its_place(tmp_path):
    places = {"a.b": "my.yaml:7:5", "records.train": "no key of the config"}
    now = {**BEFORE, "config": {"a": {"b": 2, "c": 0}}, "records": {"train": "13 lines"}}
    assert changes(BEFORE, now, places) == [
        "config.a.b: 1 -> 2 (my.yaml:7:5)",
        "config.a.c: null -> 0",
        'records.train: "12 lines" -> "13 lines"',
    ]


def test_many_changes_are_counted(folder):
    saved, _ = choose("auto", folder)
    with pytest.raises(ConfigError) as caught:
        refuse_changes([f"config.k{number}: 1 -> 2" for number in range(14)], saved)
    assert "config.k11: 1 -> 2" in caught.value.why and "config.k12" not in caught.value.why
    assert "and 2 more" in caught.value.why and "--allow-change" in caught.value.fix
    refuse_changes([], saved)


def shown(table):
    stream = io.StringIO()
    Console(file=stream, width=160).print(table)
    return stream.getvalue()


CHANGED = ["complete", "has changed", "complete"]


@pytest.mark.parametrize(("verify", "seen"), [(False, ["complete"] * 3), (True, CHANGED)])
def test_a_run_is_listed(folder, tmp_path, verify, seen):
    """Sizes alone do not show a bit that is another."""
    flipped(folder / "step-000004" / FILES[0])
    text = shown(checkpoints_table(tmp_path, verify=verify))
    rows = [line for line in text.splitlines() if re.search(r"[246]\s", line)]
    assert [word in row for word, row in zip(seen, rows, strict=True)] == [True] * 3
    (folder / "step-000006" / MANIFEST).unlink()
    assert f"it has no {MANIFEST}" in shown(checkpoints_table(tmp_path, verify=verify))


def test_a_flag_that_says_nothing_is_refused():
    for words, refused in (([], False), (["--resume", "auto", "--allow-change"], False), (["--allow-change"], True)):
        parser = argparse.ArgumentParser()
        add_resume_options(parser)
        options = parser.parse_args(words)
        with pytest.raises(ConfigError, match="without --resume") if refused else nullcontext():
            check_resume_options(options)
            assert resume_words(options) == words


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(EnvironmentFault, match="has no checkpoint"):
        checkpoints_table(tmp_path, verify=False)


def moved(values, folder):
    values["logging"]["root"] = str(folder / "other" / "runs")


def file_renamed(values, folder):
    shutil.copy(values["data"]["train"], folder / "renamed.jsonl")
    values["data"] |= {"train": str(folder / "renamed.jsonl"), "image_root": str(Path(values["data"]["train"]).parent)}


def record_changed(values, folder):
    path = Path(values["data"]["train"])
    path.write_text(path.read_text().replace('"objects"', '"objects" ', 1))


def record_left_out(values, folder):
    path = Path(values["data"]["train"])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (moved, []),
        (file_renamed, ["config.data.image_root", "config.data.train"]),  # names of samples, and so seeds, are others
        (record_changed, ["records.train"]),
        (record_left_out, ["records.train"]),
    ],
)
def test_what_has_happened_to_a_run_and_its_data_is_told(quickstart, tmp_path, change, keys):
    shutil.copytree(quickstart.data, tmp_path / "data")
    values = config_values(replace(quickstart, data=tmp_path / "data"), tmp_path / "runs", "first")
    before = run_facts(load_config(write_config(tmp_path / "c.yaml", values)), 2)
    change(values, tmp_path)
    now = run_facts(load_config(write_config(tmp_path / "c.yaml", values)), 2)
    assert [line.partition(": ")[0] for line in changes(before, now)] == keys


def test_what_is_kept_with_a_checkpoint_names_every_library_that_ranks_compare():
    loaded = load_config(ROOT / "tests" / "examples" / "valid" / "minimal.yaml")
    loaded = replace(loaded, config=replace(loaded.config, data=replace(loaded.config.data, train=Path(__file__))))
    versions = run_facts(loaded, 2)["versions"]
    assert versions == library_versions() and {"ds_stage2ab", "torch", "tokenizers", "numpy", "pillow"} <= {*versions}
