"""An answer that nobody reads ends a light command without a traceback; the real commands, with real pipes."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from ds_stage2ab.runtime.streams import EXIT_UNREAD
from tests.parts import ROOT

MIXED = "configs/quickstart/ab_mixed.yaml"
COMMANDS = {
    "validate": ("-m", "ds_stage2ab", "validate", "--show", MIXED),
    "plan": ("-m", "ds_stage2ab", "plan", MIXED),
    "help": ("-m", "ds_stage2ab", "--help"),
    "validate alone": ("-m", "ds_stage2ab.validate", MIXED, "--format", "json"),
}


@contextmanager
def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        yield pipe


def python(words, **streams):
    return subprocess.run([sys.executable, *words], cwd=ROOT, text=True, timeout=120, check=False, **streams)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_reader_that_has_left(words):
    with closed_pipe() as pipe:
        done = python(words, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (EXIT_UNREAD, "")
    assert EXIT_UNREAD == 141


@pytest.mark.parametrize("name", ["validate", "plan"])
def test_a_full_disk_is_named_in_one_line(name):
    with open("/dev/full", "w") as full:
        done = python(COMMANDS[name], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (
        EXIT_UNREAD,
        "error: the answer cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start(closed):
    line = f'"{sys.executable}" {" ".join(COMMANDS["validate"])} {closed}'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [("plan", "nowhere.yaml"), ("validate",)])
def test_errors_that_nobody_reads_keep_their_code(words):
    with closed_pipe() as pipe:
        done = python(("-m", "ds_stage2ab", *words), stdout=pipe, stderr=pipe)
    assert done.returncode == 2


def test_a_closed_number_is_given_to_no_other_file():
    """Else what is printed to it would be written into that file."""
    program = (
        "import os; from ds_stage2ab.runtime.streams import guard_streams; guard_streams(goes_on=False);"
        "opened = os.open('/dev/null', os.O_RDWR); print('nowhere'); assert opened > 2, opened"
    )
    line = f'"{sys.executable}" -c "{program}" >&-'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_goes_on_says_once_that_it_is_not_read():
    program = (
        "from ds_stage2ab.runtime.streams import guard_streams; guard_streams(goes_on=True)\n"
        "for step in range(3): print(step, flush=True)\n"
        "import sys; print('at work', file=sys.stderr)"
    )
    with closed_pipe() as pipe:
        done = python(("-c", program), stdout=pipe, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stderr == "warning: the output cannot be written (Broken pipe); the work goes on without it\nat work\n"


def test_ctrl_c_of_a_light_command_shows_no_traceback():
    program = (
        "import os, signal, sys; from ds_stage2ab import cli; sys.argv[1:] = ['plan', 'x.yaml']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job has not\n"
        "cli.read_overrides = lambda words: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(cli.main())"
    )
    done = python(("-c", program), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")
