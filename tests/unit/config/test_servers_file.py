"""The file that names the servers of a run that goes on."""

import pytest

from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.config.servers_file import named_in, read_servers
from ds_stage2ab.errors import ConfigError


def test_it_holds_what_the_config_holds(tmp_path):
    path = tmp_path / "servers.yaml"
    named = named_in(path)
    assert named() is None and named_in(None)() is None
    path.write_text("servers:\n  - base_url: http://127.0.0.1:8000\n  - {base_url: 'http://[::1]:1', group_port: 2}\n")
    assert named() == (
        ServerSection(base_url="http://127.0.0.1:8000", group_port=None, tensor_parallel_size=1),
        ServerSection(base_url="http://[::1]:1", group_port=2, tensor_parallel_size=1),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("servers: []\n", "one key, servers"),
        ("server: [{base_url: http://a}]\n", "one key, servers"),
        ("servers: [{base_url: http://a}]\nmore: 1\n", "one key, servers"),
        ("servers: [{base_url: a}]\n", "servers[0].base_url: "),
        ("servers: [{base_url: http://a, group_port: 0}]\n", "servers[0].group_port: "),
        ("servers: [{base_url: http://a, group_port: 1.0}]\n", "servers[0].group_port: "),
        ("servers: [{group_port: 1}]\n", "servers[0]: 'base_url' is a required property"),
        ("servers: [{base_url: http://a, url: b}]\n", "servers[0]: "),
        ("servers: [{base_url: http://a}, {base_url: http://a/}]\n", "two entries have the base_url http://a"),
        ("servers: [{base_url: http://a\n", "servers.yaml:"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, said):
    path = tmp_path / "servers.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_servers(path)
    assert said in str(caught.value) and "\n  fix: " in str(caught.value)
