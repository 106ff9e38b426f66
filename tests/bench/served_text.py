"""A vLLM server on the CPU for a language model without a vision tower, and a client that keeps requests open."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests
import torch

from ds_stage2ab.carriers import Sample
from ds_stage2ab.launch.server_command import CPU_VARIABLES
from tests.bench.decoding import Answers, up_to_stop
from tests.parts import free_port
from tests.vllm_process import PYTHON, started

NAME = "text"


@contextmanager
def text_server(model: Path, folder: Path, *, rows: int, longest: int):
    """Decodes so many rows at once, on as many threads as this process."""
    port = free_port()
    options = {
        "--model": str(model),
        "--served-model-name": NAME,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-num-seqs": str(rows),
        "--max-model-len": str(longest),
        "--generation-config": "vllm",
    }
    words = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *(w for pair in options.items() for w in pair)]
    # the same prompts come again, and must be computed again
    words += ["--no-enable-prefix-caching", "--enforce-eager"]
    variables = {
        **CPU_VARIABLES,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    with started(words, variables, f"http://127.0.0.1:{port}", folder) as server:
        yield server


def served(base_url: str, samples: Sequence[Sample], stop_id: int, rows: int, most: int) -> Answers:
    """A window of so many requests that slides over the samples."""

    def ask(sample: Sample) -> tuple[int, ...]:
        body = {
            "model": NAME,
            "prompt": list(sample.prompt_ids),
            "temperature": 0,
            "max_tokens": most,
            "stop_token_ids": [stop_id],
            "return_token_ids": True,
        }
        reply = requests.post(f"{base_url}/v1/completions", json=body, timeout=(5, 300))
        reply.raise_for_status()
        return up_to_stop(reply.json()["choices"][0]["token_ids"], stop_id)

    with ThreadPoolExecutor(rows) as pool:
        return list(pool.map(ask, samples))
