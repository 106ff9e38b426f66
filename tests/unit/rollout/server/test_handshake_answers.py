"""What the handshake says of a server's answers: none, strange ones, another prompt, other ids, ends or pixels."""

from dataclasses import replace

import pytest
import torch

from ds_stage2ab.rollout.server import http_client
from ds_stage2ab.rollout.server.handshake import Requirements, check_servers
from tests.fakes import CHAT, Fault, Settings
from tests.unit.handshakes import api, good_server, lines, only_line, page, seen
from tests.unit.parts import load_bench
from tests.unit.serving import LONG, needs_of


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.005)


@pytest.fixture(scope="module")
def requirements(quickstart) -> Requirements:
    return needs_of(load_bench(quickstart, num_samples=1))


# --- none, or a strange one -------------------------------------------------------------------------------------


ROUTES = {
    "/version": "version",
    "/server_info": "settings",
    "/tokenize": "coordinate ids",
    CHAT: "an answer",
    f"{CHAT}/render": "pixel values",
    "/get_world_size": "devices",  # answers behind a redirect: a second one is another fault
}
LOOK = "look at the server's own log"
FAILS = {  # (what was seen, the remedy)
    "500": ("answered 500 to {path}", f"{LOOK}, and start it again"),
    "half": ("the connection failed in {path}", f"{LOOK}, and start it again"),
    "hang": ("no answer to {path} within 0.3 s", f"{LOOK}; where it is only slow, set custom.extra.rollout_matching."),
    "huge": ("the answer to {path} is larger than 1 MiB", "use a vLLM of the supported range"),
    "redirect": ("sends us from {path} to another origin", "use a vLLM of the supported range, and name the server"),
}


@pytest.mark.parametrize("kind", FAILS)
@pytest.mark.parametrize("path", ROUTES)
def test_a_route_that_fails(requirements, monkeypatch, path: str, kind: str):
    """Named by what it would have told; the remedy is for what was seen."""
    monkeypatch.setattr(http_client, "MOST_BYTES", 2**20)
    limit = 0.3 if kind == "hang" else LONG
    with good_server(requirements, faults=(Fault(kind, path=path),)) as server:
        text = page(replace(requirements, infer_timeout_s=limit), server, timeout_s=limit)
    (saw, fix), *_ = ((saw, fix) for saw, fix in lines(text) if saw.startswith(f"{ROUTES[path]}: "))
    expected, remedy = FAILS[kind]
    if (path, kind) == ("/get_world_size", "redirect"):
        expected = "answered 307 to {path}/"
    assert expected.format(path=path) in saw and fix.startswith(remedy)
    key = "infer_timeout_s" if path.startswith(CHAT) else "server.timeout_s"
    assert kind != "hang" or f"{key} higher" in fix


def test_it_cannot_say_whether_it_is_paused(requirements):
    with good_server(requirements, faults=(Fault("500", path="/is_paused"),)) as server:
        saw, fix = only_line(requirements, server)
    assert saw.startswith("paused: answered 500 to /is_paused") and fix == "start it again"


def test_a_real_prompt_is_refused(requirements):
    """Above the server's limits, say."""
    with good_server(requirements, faults=(Fault("400"),)) as server:
        saw, fix = only_line(requirements, server)
    assert saw.startswith(f"an answer: refused {CHAT} with 400: ")
    assert fix.startswith("serve the folder of model.path: ") and "--mm-processor-kwargs" in fix


@pytest.mark.parametrize(
    ("change", "saw"),
    [
        (lambda ids: [*ids[:7], ids[7] + 1, *ids[8:]], "1000 ids of 1000 tokens, {first} <|coord_7|>"),
        (lambda ids: ids[:-1], "999 ids of 1000 tokens, {first} <|coord_999|>"),
        (lambda ids: [5, *ids], "1001 ids of 1000 tokens, {first} <|coord_0|>"),
        (lambda ids: [], "0 ids of 1000 tokens, {first} <|coord_999|>"),
    ],
)
def test_other_coordinate_ids(requirements, change, saw: str):
    """The prompt has none of them: its ids are right."""
    with good_server(requirements, tokenize=lambda text: change(requirements.vocabulary.encode(text))) as server:
        line = only_line(requirements, server)
    assert line[0] == f"coordinate ids: {saw.format(first='the first that is not the learner' + chr(39) + 's at')}"
    assert line[1].startswith("serve the folder of model.path: ")


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({"added_stop_ids": (7,)}, "{stop} and 7"),
        ({"ignores_eos": False}, "{stop} and what the checkpoint names"),
        ({"added_stop_ids": (7, 8), "ignores_eos": False}, "{stop} and 7 and 8 and what the checkpoint names"),
    ],
)
def test_other_ends_of_an_answer(requirements, changes: dict, ends: str):
    with good_server(requirements, settings=Settings(**changes)) as server:
        saw, fix = only_line(requirements, server)
    stop = requirements.vocabulary.stop_id
    assert saw == f"stop ids: an answer ends at {ends.format(stop=stop)}, the learner's at {stop} alone"
    assert "vLLM of the supported range" in fix


@pytest.mark.parametrize("kind", ["no_ids", "vocabulary", "count", "empty"])
def test_an_answer_of_something_else(requirements, kind: str):
    with good_server(requirements, faults=(Fault(kind),)) as server:
        saw, fix = only_line(requirements, server)
    told = {
        "no_ids": "the answer is malformed at $.prompt_token_ids",
        "vocabulary": f"the answer holds token id {2**31}",
        "count": "the answer is malformed at $.choices",
        "empty": "the answer holds no token",
    }[kind]
    assert saw.startswith(f"an answer: {told}")
    assert fix.startswith("serve the folder of model.path: ") and "use a vLLM of the supported range" in fix


# --- another one than the learner's -----------------------------------------------------------------------------


def test_another_prompt(requirements):
    """The last id differs."""
    with good_server(requirements, faults=(Fault("prompt"),)) as server:
        saw, fix = only_line(requirements, server)
    count = len(requirements.sample.prompt_ids)
    assert saw == (
        f"prompt: the server made other ids of the prompt of sample {requirements.sample.id} than the learner:"
        f" {count} instead of {count}, the first difference at place {count - 1}"
    )
    assert fix.startswith("serve the folder of model.path: ")


def test_a_prompt_with_fewer_image_tokens(requirements):
    ids = list(requirements.sample.prompt_ids)
    first = ids.index(requirements.vocabulary.image_id)
    with good_server(requirements, prompt_ids=lambda body: ids[:first] + ids[first + 1 :]) as server:
        saw, _ = only_line(requirements, server)
    assert f"{len(ids) - 1} instead of {len(ids)}, the first difference at place " in saw


def test_other_pixel_values(requirements):
    """One value in its last bit."""
    with good_server(requirements) as server:
        image = bytearray(server.state.image)
        image[len(b"header") + 4 * 1000] ^= 1
        server.state.image = bytes(image)
        seen, fix = only_line(requirements, server)
    assert seen == f"pixel values: other ones than the learner's for sample {requirements.sample.id}"
    assert "--no-mm-device-do-normalize" in fix and "Pillow" in fix


def test_pixel_values_in_the_precision_of_the_model(requirements):
    asked = replace(requirements, precision="bf16")
    with good_server(requirements, settings=Settings(dtype="torch.bfloat16")) as server:
        server.state.image = requirements.sample.vision.pixel_values.bfloat16().view(torch.uint8).numpy().tobytes()
        assert check_servers([api(server)], (1,), asked) == [seen(world_size=1, replicas=1)]
