"""Errors of a user: the form of the message, the way to another rank, the exit codes."""

import pickle
import subprocess
import sys

import pytest

from ds_stage2ab.errors import ConfigError, DataError, EnvironmentFault, Stage2Error, TrainingFault, exit_code

CLASSES = (Stage2Error, ConfigError, DataError, EnvironmentFault, TrainingFault)


@pytest.mark.parametrize(
    ("where", "fix", "message"),
    [
        ("", "", "the box is empty"),
        ("train.jsonl:3", "", "train.jsonl:3: the box is empty"),
        ("", "correct it", "the box is empty\n  fix: correct it"),
        ("train.jsonl:3", "correct it", "train.jsonl:3: the box is empty\n  fix: correct it"),
    ],
)
def test_the_message_is_place_reason_and_remedy(where, fix, message):
    assert str(DataError("the box is empty", where=where, fix=fix)) == message


@pytest.mark.parametrize("kind", CLASSES)
def test_a_pickle_keeps_everything(kind):
    error = pickle.loads(pickle.dumps(kind("too long", where="sample-7", fix="cut it")))
    assert type(error) is kind
    assert (error.why, error.where, error.fix) == ("too long", "sample-7", "cut it")
    assert str(error) == "sample-7: too long\n  fix: cut it"


def test_each_class_has_its_exit_code():
    # as the documents promise them to scripts: 1 uncaught, 2 config, 3 data, 4 environment, 5 training
    assert [exit_code(kind("")) for kind in CLASSES] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("error", [ValueError("a"), AssertionError("b"), KeyError("c")])
def test_what_is_not_ours_is_uncaught(error):
    assert exit_code(error) == 1


def test_an_uncaught_error_of_ours_ends_python_with_its_message():
    program = "from ds_stage2ab.errors import DataError; raise DataError('no box', where='a:1', fix='add one')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("DataError: a:1: no box\n  fix: add one\n")
