"""`ds-stage2ab launch --drafts`: servers that decode ahead, and where that is refused."""

import json

import pytest

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.errors import ConfigError
from ds_stage2ab.launch.server_command import refuse_drafts_of_draws, server_command
from ds_stage2ab.rollout.server.vllm_drafts import Drafts
from tests.unit.launch.test_command import PROD, PYTHON, pairs, servers


def test_servers_that_draft_ahead():
    config = load_config(PROD, read_overrides(["custom.extra.rollout_matching.decoding.temperature=0"])).config
    words, _ = server_command(config, servers(1)[0], python=PYTHON, devices=("0",), drafts=8)
    ahead = json.loads(pairs(words)["--speculative-config"])
    assert (ahead.pop("method"), ahead.pop("num_speculative_tokens")) == ("custom_class", 8)
    assert ahead == {"model": f"{Drafts.__module__}.{Drafts.__qualname__}"}
    refuse_drafts_of_draws(config, serves=True)
    with pytest.raises(ConfigError, match="this config has none"):
        refuse_drafts_of_draws(config, serves=False)


@pytest.mark.parametrize("section", ["custom.extra.rollout_matching.decoding", "evaluation.decoding"])
def test_drafts_are_refused_where_answers_are_drawn(section):
    words = ["custom.extra.rollout_matching.decoding.temperature=0", f"{section}.temperature=0.7"]
    config = load_config(PROD, read_overrides(words)).config
    with pytest.raises(ConfigError, match="draws answers, and a server with --drafts would") as raised:
        refuse_drafts_of_draws(config, serves=True)
    assert raised.value.where == f"{section}.temperature"
