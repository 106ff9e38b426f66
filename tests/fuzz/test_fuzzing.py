"""The corpus that fuzzing found worth keeping, replayed; in `make soak` five minutes of fuzzing from it.

`corpus.txt` holds one input per line, in hexadecimal. What a run of the fuzzer finds belongs there: its message names
the file that it wrote.
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.matching.parse import REASONS, STATES, parse_rollout
from tests.fuzz.parser import one_input, response_of, vocabulary
from tests.parts import ROOT

CORPUS = Path(__file__).with_name("corpus.txt")
SECONDS = 300
MISSING = "the fuzzer is missing; install it: pip install atheris"


def corpus() -> Iterator[bytes]:
    return map(bytes.fromhex, CORPUS.read_text().split())


def test_the_corpus():
    for data in corpus():
        try:
            one_input(data)
        except Exception as error:
            error.add_note(f"input {data.hex()}")
            raise


def test_the_corpus_reaches_everything():
    """Every state and every reason that a form has, in each: the inputs are more than noise."""
    responses = [response_of(data) for data in corpus()]
    for codec in CODECS.values():
        parsed = [parse_rollout(ids, vocabulary(), its) for its, ids in responses if its is codec]
        never = {"no_json", "trailing_garbage"} if codec.in_lines else set()
        assert {one.state for one in parsed} == set(STATES) - never
        reasons = {"missing_desc", "bbox_invalid"} if codec.in_lines else set(REASONS)
        reasons -= set() if codec.scored else {"missing_score"}
        assert {reason for one in parsed for reason in one.dropped} == reasons


@pytest.mark.soak
def test_five_minutes_find_nothing(tmp_path, capsys):
    assert find_spec("atheris"), MISSING
    for place, data in enumerate(corpus()):
        (tmp_path / f"{place:04d}").write_bytes(data)
    # The fuzzer's own memory grows with what it has seen; a crash, a failed check or a second for one input ends it.
    limits = [f"-max_total_time={SECONDS}", "-max_len=600", "-rss_limit_mb=0", "-timeout=5"]
    artifacts = [f"-artifact_prefix={tmp_path.parent}/found-"]
    command = [sys.executable, "-m", "tests.fuzz", str(tmp_path), *limits, *artifacts]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "errors": "replace", "timeout": SECONDS + 300}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    closing = done.stderr.strip().splitlines()[-1]
    assert closing.startswith("Done ")
    with capsys.disabled():
        print(f"\nfuzzing the parser: {closing}")
