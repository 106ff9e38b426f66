"""Runs inside the tests' vLLM server, as vLLM's worker extension: what a test may spoil or measure there.

Reached by `/collective_rpc`, which only servers in development mode have.
"""

import time
from unittest import mock

from safetensors.torch import load_file
from vllm.config import set_current_vllm_config

from ds_stage2ab.rollout.server import vllm_plugin

TABLE = ".embed_tokens.weight"


class Tools:
    """Mixed into the worker's class by vLLM."""

    def keep_old_heads(self, *, spoil: bool) -> None:
        """Leave out what renews the head's packed copy after an update, or put it back."""
        mock.patch.stopall()
        if spoil:
            mock.patch.object(vllm_plugin, "renew_heads", return_value=None).start()

    def spoil_the_table(self) -> None:
        """Change the embeddings in their place."""
        (table,) = (one for name, one in self.get_model().named_parameters() if name.endswith(TABLE))
        table.data.mul_(-1)

    def last_longer(self, *, pass_s: float, row_s: float) -> None:
        """Let each pass take so much longer, and for each of its rows, as on a device that does not share our cores."""
        compute = self.execute_model

        def execute_model(scheduled, *arguments, **named):
            rows = len(scheduled.num_scheduled_tokens)
            time.sleep(rows and pass_s + row_s * rows)
            return compute(scheduled, *arguments, **named)

        self.execute_model = execute_model

    def reload_seconds(self, *, file: str) -> float:
        """What vLLM itself takes to load the tensors of a file, which are in memory before."""
        engine = self.weight_transfer_engine
        tensors = [(name, tensor.clone()) for name, tensor in load_file(file).items()]
        with set_current_vllm_config(self.vllm_config):
            begun = time.perf_counter()
            engine.start_weight_update()
            engine.model.load_weights(iter(tensors))
            engine.finish_weight_update()
            return time.perf_counter() - begun
