"""Runs inside the tests' vLLM server, as vLLM's worker extension: what a test may spoil there.

Reached by `/collective_rpc`, which only servers in development mode have.
"""

from unittest import mock

from ds_stage2ab.rollout import vllm_plugin


class Tools:
    """Mixed into the worker's class by vLLM."""

    def keep_old_heads(self, *, spoil: bool) -> None:
        """Leave out what renews the head's packed copy after an update, or put it back."""
        mock.patch.stopall()
        if spoil:
            mock.patch.object(vllm_plugin, "renew_heads", return_value=None).start()
