"""`ds-stage2ab init`: a config for one's own model and data, each choice with its reason beside it.

Its first line names the schema of this installation by its whole address, so editors complete keys and show their
meaning wherever the file lies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ds_stage2ab.codec.bins import coordinate_token
from ds_stage2ab.config.schema import ROOT_FILE, schema_folder
from ds_stage2ab.detector_file import read_detector_file
from ds_stage2ab.errors import ConfigError, DataError, unwritable
from ds_stage2ab.model_folder.checks import check_folder

TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
NO_MODEL = "path/to/with-coordinates"
NO_DATA = "path/to/data"
MOST_SAMPLES = 32  # of a step; a power of two divides by the usual numbers of GPUs
NUM_EPOCHS = 3
MOST_WARMUP, MOST_BETWEEN = 50, 500  # steps
WARMUP_SHARE, EVALUATIONS = 0.05, 5

TEXT = Template("""\
# yaml-language-server: $$schema=$schema
# Channel A on your data, $kind.
# Made for a Qwen3-VL of 4B parameters on one GPU of 80 GB, and right on more of them.
# Paths start at the folder in which you run the command. `ds-stage2ab plan` says what a value costs in memory.
model:
  path: $model   # with coordinate tokens: ds-stage2ab add-coord-tokens
  precision: bf16                  # half the memory of fp32; the loss is computed in fp32 all the same
  freeze: [vision, aligner]        # what an image looks like is known; boxes are learned in the language model
  gradient_checkpointing: true     # else a pack of 8,192 tokens keeps 80 GB of activations; a third more time
$tuner
data:
  train: $train
  validation: $validation
  box_format: bins                 # what `ds-stage2ab import` writes
$prompts
  max_pixels: 1048576              # 1,024 tokens for the largest image; more shows smaller objects

training:
  effective_batch_size: $samples # samples of a step over all GPUs; their number must divide it
  per_device_train_batch_size: 1   # changes neither the result nor the memory of a step
  global_max_length: 8192          # tokens of the longest sample and of a pack: `ds-stage2ab data` counts yours
  num_epochs: $epochs
  learning_rate: $rate
  warmup_steps: $warmup
  lr_scheduler: cosine

stage2_ab:
  schedule:
    b_ratio: 0                     # Channel A alone, which needs no rollouts; 0.5 once its F1 no longer rises

custom:
  extra:
    rollout_matching:
      decode_batch_size: 4         # answers that a GPU generates at once: as many as memory holds
      max_new_tokens: 2048         # above the longest answer: `ds-stage2ab data` counts yours

$deepspeed
checkpoint:
  every_steps: $between
  keep_last: 2                     # the newest, and one before it should that be damaged

evaluation:
  every_steps: $evaluated
  max_samples: 500                 # an evaluation generates an answer for each
""")
LORA = """
tuner:
  type: lora                       # trains 66 million parameters instead of 4 billion: 21 GB instead of 87
  lora_rank: 32
  lora_alpha: 64                   # twice the rank: the product is scaled by 2
  trainable_token_rows: coordinates   # LoRA leaves the embedding table as it is; these are the rows that boxes need
"""
PROMPTS = """\
  system_prompt: null              # both prompts: those of the stage-1 training, character by character
  user_prompt: Detect every object in the image and give its box."""
OWN_PROMPTS = Template("""\
  system_prompt: $system   # both prompts and the codec: as the checkpoint's detector.json has them
  user_prompt: $user
  codec: $codec""")
NO_EVALUATION = "null                # as often as a checkpoint, once data.validation is set"
LORA_RATE = "1e-4              # LoRA's usual one, ten times that of full training"
FULL_RATE = "1e-5"
LORA_ENGINE = """\
deepspeed:
  zero_stage: 1                    # the optimizer's state is small: gradients are exchanged once per step
"""
FULL_ENGINE = """\
deepspeed:
  zero_stage: 2                    # GPUs share out optimizer state and gradients
  offload_optimizer: cpu           # one GPU has no room for 45 GB of it; set none on two or more: it is faster
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    train: Path
    validation: Path | None
    num_records: int | None
    # None: not known


def init_config(file: Path, *, lora: bool, model: Path | None, data: Path | None) -> list[str]:
    """Write a config to a file that does not exist yet.

    Args:
        lora: train adapters; else the whole language model.
        model: the checkpoint folder; None: to be filled in.
        data: a folder with `train.jsonl`, and with `validation.jsonl` if there is one; None: to be filled in.

    Returns: what to do next, a line each.

    Raises:
        ConfigError: the file exists.
        DataError: there is no data in the folder.
        EnvironmentFault: parts of the checkpoint folder contradict each other, or the file cannot be written.
    """
    found = _find(data)
    hints = _hints(file, model)
    samples, steps = _batch(found.num_records)
    between = MOST_BETWEEN if steps is None else min(MOST_BETWEEN, max(1, steps // EVALUATIONS))
    warmup = MOST_WARMUP if steps is None else min(MOST_WARMUP, round(WARMUP_SHARE * steps))
    text = TEXT.substitute(
        schema=(schema_folder() / ROOT_FILE).as_uri(),
        kind="with LoRA" if lora else "every weight of the language model",
        model=_quoted(NO_MODEL if model is None else model),
        tuner=LORA if lora else "",
        prompts=_prompts(model),
        train=_quoted(found.train),
        validation="null" if found.validation is None else _quoted(found.validation),
        samples=f"{samples:<10}",
        epochs=NUM_EPOCHS,
        rate=LORA_RATE if lora else FULL_RATE,
        warmup=warmup,
        deepspeed=LORA_ENGINE if lora else FULL_ENGINE,
        between=between,
        evaluated=between if found.validation else NO_EVALUATION,
    )
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        fix = "give a file that does not exist yet"
        raise ConfigError("exists already", where=str(file), fix=fix) from None
    except OSError as error:
        raise unwritable(file, error) from None
    return hints


def _prompts(model: Path | None) -> str:
    """Those that the checkpoint was trained with, if it says so."""
    own = None if model is None else read_detector_file(model)
    if own is None:
        return PROMPTS
    system = "null" if own.system_prompt is None else _quoted(own.system_prompt)
    return OWN_PROMPTS.substitute(system=system, user=_quoted(own.user_prompt), codec=own.codec)


def _quoted(value: object) -> str:
    """A path or a text as a YAML value: in double quotes, whatever it holds."""
    return json.dumps(str(value), ensure_ascii=False)


def _find(folder: Path | None) -> _Data:
    if folder is None:
        return _Data(train=Path(NO_DATA) / TRAIN, validation=Path(NO_DATA) / VALIDATION, num_records=None)
    train, validation = folder / TRAIN, folder / VALIDATION
    if not train.is_file():
        others = sorted(set(folder.glob("*.jsonl")) - {validation}) if folder.is_dir() else []
        if len(others) != 1:
            names = ", ".join(path.name for path in others)
            why = f"holds {names}, and which one is for training is not clear" if names else "holds no JSONL"
            fix = f"name a folder with {TRAIN}, as `ds-stage2ab import ... --split train` makes it"
            raise DataError(why, where=str(folder), fix=fix)
        train = others[0]
    with train.open("rb") as lines:
        count = sum(1 for line in lines if line.strip())
    return _Data(train=train, validation=validation if validation.is_file() else None, num_records=count)


def _batch(num_records: int | None) -> tuple[int, int | None]:
    """(samples of a step: a power of two that the records fill, steps of the run)"""
    if num_records is None:
        return MOST_SAMPLES, None
    samples = min(MOST_SAMPLES, 1 << (max(1, num_records).bit_length() - 1))
    return samples, NUM_EPOCHS * (num_records // samples)


def _hints(file: Path, model: Path | None) -> list[str]:
    """The next commands."""
    steps = [f"ds-stage2ab data {file}", f"ds-stage2ab plan {file} --gpu-memory 80"]
    if model is not None:
        folder = check_folder(model, whole=False)
        if folder.added_tokens and coordinate_token(0) not in folder.added_tokens:
            why = f"{model} has no coordinate tokens"
            steps.insert(0, f"ds-stage2ab add-coord-tokens {model} DST, and set model.path to DST: {why}")
    return steps
