"""Tensors written one file at a time are read by Hugging Face's own rules."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from ds_stage2ab.engine.shards import INDEX, ShardWriter
from ds_stage2ab.engine.tuner import merged_tensors


def written(folder, tensors, shard_bytes):
    writer = ShardWriter(folder, shard_bytes=shard_bytes)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    return sorted(path.name for path in folder.iterdir())


TENSORS = {"a": torch.arange(6.0), "b": torch.ones(2, 2), "c": torch.zeros(9), "d": torch.tensor([7.0])}
"""24, 16, 36 and 4 bytes."""


def test_what_fits_into_one_file_is_one_file(tmp_path):
    assert written(tmp_path, TENSORS, 80) == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == TENSORS.keys()


def test_more_are_several_files_and_an_index(tmp_path):
    """At 40 bytes: a and b, then c alone (d would make 40 of 36 + 4), d with it."""
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert written(tmp_path, TENSORS, 40) == [*names, INDEX]
    assert [sorted(load_file(tmp_path / name)) for name in names] == [["a", "b"], ["c", "d"]]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {"a": names[0], "b": names[0], "c": names[1], "d": names[1]}
    assert index["metadata"]["total_size"] == 80


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path):
    assert len(written(tmp_path, TENSORS, 1)) == 5


@pytest.mark.parametrize("shard_bytes", [2**32, 2**20])
def test_transformers_loads_what_was_written(quickstart, tmp_path, shard_bytes):
    model = Qwen3VLForConditionalGeneration.from_pretrained(quickstart.model)
    model.config.save_pretrained(tmp_path)
    names = written(tmp_path, {one.name: one.make() for one in merged_tensors(model)}, shard_bytes)
    assert (INDEX in names) == (shard_bytes == 2**20)
    loaded, report = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), model.parameters(), strict=True))
