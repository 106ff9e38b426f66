"""The last words of a server, as its log holds them."""

import subprocess
import sys

from ds_stage2ab.launch.processes import ManagedProcess

# What a server of vLLM 0.32 on the CPU writes when its engine has been killed, shortened.
DIED = """\
(APIServer pid=7) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
INFO:     127.0.0.1:35610 - "POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error
INFO:     Finished server process [7]
"""
LEAKED = ' - leaked instance 0x7febe5bb8b28 of type "triton._C.libtriton.ir.attribute"\n'
NANOBIND = f"""\
nanobind: leaked 514 instances!
{LEAKED * 30} - ... skipped remainder
nanobind: this is likely caused by a reference counting issue in the binding code.
See https://nanobind.readthedocs.io/en/latest/refleaks.html
"""


def last_words(tmp_path, text):
    log = tmp_path / "server.log"
    log.write_text(text)
    with subprocess.Popen([sys.executable, "-c", ""]) as supervisor:
        shown = ManagedProcess(name="server", supervisor=supervisor, log=log).last_words().splitlines()
    assert shown[:2] == ["", f"  the last lines of {log}:"]
    return shown[2:]


def test_the_last_twenty_lines_that_say_something(tmp_path):
    said = [f"line {i}" for i in range(30)]
    assert last_words(tmp_path, "\n\n".join(said)) == [f"    line {i}" for i in range(10, 30)]


def test_a_log_that_holds_nothing(tmp_path):
    assert last_words(tmp_path, "\n \n") == ["    (nothing)"]


def test_why_a_server_ended_is_not_hidden_by_what_nanobind_says_then(tmp_path):
    assert last_words(tmp_path, DIED + NANOBIND) == [f"    {line}" for line in DIED.splitlines()]
    assert last_words(tmp_path, NANOBIND) == ["    (nothing)"]


def test_a_list_that_is_not_of_nanobind_is_shown(tmp_path):
    said = [" - out of memory", "leaked type nothing", "See https://docs.vllm.ai"]
    assert last_words(tmp_path, "\n".join(said)) == [f"    {line}" for line in said]
