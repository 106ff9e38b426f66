"""What contradicts what in a checkpoint folder: one small function for each kind, and all of them before any load.

A folder is one thing: config, tokenizer, image processor, chat template, generation config and one set of weights.
Libraries read each part alone and take what they find, so parts of two checkpoints make a wrong model in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.model_folder.places import EXPORT, export_in
from ds_stage2ab.model_folder.read import (
    ADAPTERS,
    CONFIG,
    GENERATION,
    QUANTISATION,
    TEMPLATE,
    TOKENIZER,
    WEIGHT_SETS,
    WHOLE,
    ModelFolder,
    Problem,
    read_folder,
)
from ds_stage2ab.model_folder.sizes import wrong_sizes

MODEL_TYPE = "qwen3_vl"
SECTIONS = ("text_config", "vision_config")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
TOKENS_OF_CONFIG = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
SIZES_OF_PATCHES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Setting of the image processor -> key of `vision_config`."""
SWITCHES = ("do_resize", "do_rescale", "do_normalize")
FAMILY_MEAN = FAMILY_STD = [0.5, 0.5, 0.5]
"""Of every release of Qwen3-VL."""
COLOURS = ("image_mean", "image_std")
MERGED = (
    f"set model.path to a checkpoint with its adapters merged: {EXPORT}/ beside adapter/ in a run, or what peft's"
    " merge_and_unload() makes of the base model with these"
)
STOP = "<|im_end|>"
COORDINATE = "<|coord_"


def check_folder(path: Path, *, whole: bool = True) -> ModelFolder:
    """Read a folder, and refuse what contradicts itself.

    Args:
        whole: also refuse a folder in which something is missing. Without it, only what is there is judged.

    Raises:
        EnvironmentFault: with every problem that was found.
    """
    try:
        folder = read_folder(path)
    except OSError as error:
        fix = "correct the path, or make the folder readable"
        raise EnvironmentFault(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    lacks = _missing(folder) if whole else []
    if lacks and (export := export_in(path)) is not None:
        why = "this is a folder of a run, not a checkpoint"
        raise EnvironmentFault(why, where=str(path), fix=f"set model.path to {export}")
    if folder.adapters and not folder.has(CONFIG):
        why = f"these are adapters ({' and '.join(folder.adapters)}), not a checkpoint"
        raise EnvironmentFault(why, where=str(path), fix=MERGED)
    problems = [*folder.unreadable, *lacks, *chain.from_iterable(check(folder) for check in CHECKS)]
    if problems:
        told = [f"{problem.file} {problem.why}".strip() for problem in problems]
        fixes = dict.fromkeys(problem.fix for problem in problems)
        raise EnvironmentFault("; ".join(told), where=str(path), fix="; ".join(fixes))
    return folder


def _missing(folder: ModelFolder) -> list[Problem]:
    """What a run cannot do without."""
    lacks = [name for name in (CONFIG, TOKENIZER) if not folder.has(name)]
    if not lacks and not folder.image_settings:
        lacks.append("preprocessor_config.json or processor_config.json")
    if not lacks and not any(map(folder.has, WEIGHT_SETS)):
        lacks.append("model.safetensors")
    if lacks:
        return [Problem("", f"no Hugging Face checkpoint of a Qwen3-VL here ({lacks[0]} is missing)", WHOLE)]
    if empty := [name for name in SECTIONS if not folder.section(name)]:
        return [Problem(CONFIG, f"has no {' and no '.join(empty)}", WHOLE)]
    if not folder.has_template:
        fix = f"copy {TEMPLATE} from the folder that the checkpoint was trained from"
        return [Problem("", f"there is no chat template ({TEMPLATE} is missing)", fix)]
    return []


def warnings_of(folder: ModelFolder) -> tuple[str, ...]:
    """What is odd, and may be meant."""
    found = []
    settings = folder.image_settings
    if settings and (settings["image_mean"], settings["image_std"]) != (FAMILY_MEAN, FAMILY_STD):
        found.append(
            f"{folder.path}: the image processor's image_mean and image_std are {settings['image_mean']} and"
            f" {settings['image_std']}, those of Qwen3-VL are {FAMILY_MEAN} and {FAMILY_STD}: is it another model's?"
        )
    stop = folder.added_tokens.get(STOP)
    if folder.stop_ids and stop is not None and stop not in folder.stop_ids:
        found.append(f"{folder.path / GENERATION}: eos_token_id is not that of {STOP}: plain `generate` would not stop")
    return tuple(found)


def _other_model(folder: ModelFolder) -> Iterator[Problem]:
    if "model_type" in folder.config and folder.config["model_type"] != MODEL_TYPE:
        kind = folder.config["model_type"]
        yield Problem(CONFIG, f"is that of a {kind}, not of a {MODEL_TYPE}", WHOLE)


def _adapters(folder: ModelFolder) -> Iterator[Problem]:
    found = folder.adapters
    if found:
        names = " and ".join(found)
        why = f"lie beside the weights: from_pretrained applies the adapters of {names} once more"
        yield Problem(names, why, f"move {names} to another folder if the weights are merged; else merge them first")


def _quantised(folder: ModelFolder) -> Iterator[Problem]:
    found = [name for name in QUANTISATION if folder.has(name)]
    sections = (folder.config, folder.section("text_config"))
    found += [CONFIG] if any("quantization_config" in section for section in sections) else []
    if found:
        names = " and ".join(found)
        fix = f"take the folder that was not quantised; if its weights are plain, take that out of {names}"
        yield Problem(names, "says that the weights are quantised, which cannot be trained", fix)


def _sets_of_weights(folder: ModelFolder) -> Iterator[Problem]:
    sets = [name for name in WEIGHT_SETS if folder.has(name)]
    if len(sets) > 1:
        why = f"are two sets of weights: {sets[0]} would be loaded, whichever is newer"
        yield Problem(" and ".join(sets), why, "move the set that is not the model's to another folder")
        return
    files = {file.name for file in folder.path.glob("*.safetensors")} - set(ADAPTERS)
    named = files & {"model.safetensors"}
    if sets and sets[0].endswith(".index.json"):
        named = set(folder.indexed)
        gone = sorted(name for name in named if not folder.has(name))
        if gone:
            yield Problem(sets[0], f"names {gone[0]}, which is missing ({len(gone)} of {len(named)} files)", WHOLE)
    others = sorted(files - named)
    if named and others:
        why = f"belongs to no set of weights that {sets[0]} names ({len(others)} such files)"
        yield Problem(others[0], why, "move what is not the model's to another folder")


def _rows(folder: ModelFolder) -> Iterator[Problem]:
    """Tokenizer, `vocab_size` and embedding table speak of one vocabulary."""
    said = folder.section("text_config").get("vocab_size")
    tables = {name: shape[0] for name, shape in folder.shapes.items() if name.endswith((EMBEDDING, HEAD)) and shape}
    for name, rows in tables.items():
        if isinstance(said, int) and rows != said:
            yield Problem(CONFIG, f"says vocab_size {said}, and {name} has {rows} rows", WHOLE)
            return
    rows = min(tables.values(), default=said)
    if not isinstance(rows, int) or folder.last_token < rows:
        return
    beyond = min([(token, text) for text, token in folder.added_tokens.items() if token >= rows], default=(rows, ""))
    fix = "take tokenizer and weights from one checkpoint"
    if beyond[1].startswith(COORDINATE):
        fix = "run `ds-stage2ab add-coord-tokens SRC DST` on the checkpoint without them, and set model.path to DST"
    why = f"has ids up to {folder.last_token} and the embedding {rows} rows: none for {beyond[0]} {beyond[1]}"
    yield Problem(TOKENIZER, why.strip(), fix)


def _head(folder: ModelFolder) -> Iterator[Problem]:
    has_table = any(name.endswith(EMBEDDING) for name in folder.shapes)
    has_head = any(name.endswith(HEAD) for name in folder.shapes)
    if has_table and folder.config and not folder.is_tied and not has_head:
        why = f"does not say that head and embedding are tied, and the weights have no {HEAD}"
        yield Problem(CONFIG, why, f"set tie_word_embeddings to true in {CONFIG}, or take the whole set of weights")


def _token_ids(folder: ModelFolder) -> Iterator[Problem]:
    for key, text in TOKENS_OF_CONFIG.items():
        said, has = folder.config.get(key), folder.added_tokens.get(text)
        if isinstance(said, int) and has is not None and said != has:
            why = f"says {key} {said}, and the id of {text} in {TOKENIZER} is {has}"
            yield Problem(CONFIG, why, "take config and tokenizer from one checkpoint")


def _patches(folder: ModelFolder) -> Iterator[Problem]:
    settings, vision = folder.image_settings, folder.section("vision_config")
    fix = "copy the image processor's file from the folder that the checkpoint was trained from"
    wrong = [
        f"{key} {settings[key]}, where {CONFIG} says {other} {vision[other]}"
        for key, other in SIZES_OF_PATCHES.items()
        if settings and other in vision and settings[key] != vision[other]
    ]
    wrong += [f"{key} {settings[key]}" for key in SWITCHES if settings and settings[key] is not True]
    wrong += [f"{key} {settings[key]}" for key in COLOURS if settings and not _are_three_numbers(settings[key])]
    if wrong:
        yield Problem("", f"the image processor says {', '.join(wrong)}", fix)


def _are_three_numbers(values: object) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) for value in values)


def _sizes(folder: ModelFolder) -> Iterator[Problem]:
    if not folder.image_settings:
        return
    edges = [folder.image_settings["size"].get(name) for name in ("shortest_edge", "longest_edge")]
    if not all(type(edge) is int and edge > 0 for edge in edges) or edges[0] > edges[1]:
        why = f"the image processor's size is {folder.image_settings['size']}, not an area for shortest_edge and"
        yield Problem("", f"{why} a larger one for longest_edge", "copy the image processor's file of the release")


def _two_processors(folder: ModelFolder) -> Iterator[Problem]:
    newer, older = folder.processors
    compared = (*SIZES_OF_PATCHES, "image_mean", "image_std", "size")
    keys = [key for key in compared if key in newer and key in older and newer[key] != older[key]]
    if keys:
        why = f"differ in {', '.join(keys)}"
        fix = "delete the one that is not the model's"
        yield Problem("processor_config.json and preprocessor_config.json", why, fix)


def _generation(folder: ModelFolder) -> Iterator[Problem]:
    beyond = [stop for stop in folder.stop_ids if 0 <= folder.last_token < stop]
    if beyond:
        why = f"stops at id {beyond[0]}, and the last one of {TOKENIZER} is {folder.last_token}"
        yield Problem(GENERATION, why, "take generation config and tokenizer from one checkpoint, or delete the file")


CHECKS = (
    _other_model,
    _adapters,
    _quantised,
    _sets_of_weights,
    _rows,
    wrong_sizes,
    _head,
    _token_ids,
    _patches,
    _sizes,
    _two_processors,
    _generation,
)
