"""The sizes of a Qwen3-VL-4B with coordinate tokens, as its `config.json` gives them."""

import json
from pathlib import Path

CONFIG = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 152936,
        "attention_bias": False,
        "max_position_embeddings": 262144,
    },
    "vision_config": {
        "hidden_size": 1024,
        "depth": 24,
        "num_heads": 16,
        "intermediate_size": 4096,
        "in_channels": 3,
        "temporal_patch_size": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "out_hidden_size": 2560,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}


def write_config(folder: Path) -> Path:
    """A folder with that file alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
