"""One pack forward and backward in a process of its own; prints the peak of its memory above the loaded model, bytes.

    python -m tests.bench.learner_memory objective|all_positions MODEL DATA
"""

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ds_stage2ab.packs.collate import collate
from tests.parts import Quickstart
from tests.unit.parts import load_bench

TOKENS, VOCABULARY, SUPERVISED = 4096, 152_000, 1024


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def make_pack(bench):
    """Samples over and over, the last one cut: exactly TOKENS tokens, SUPERVISED of them text or coordinates."""
    segments, length = [], 0
    while length < TOKENS:
        for segment in bench.segments():
            if length < TOKENS:
                segments.append(segment)
                length += len(segment.input_ids)
    pack = collate(segments, num_passes=1)
    rest = pack.position_ids[:, :TOKENS]
    kept = pack.slots[pack.slots < TOKENS]
    kept = kept[: len(kept) // 4 * 4]
    is_text = torch.ones(TOKENS)
    is_text[kept] = 0
    is_text[pack.input_ids[:TOKENS] == bench.vocabulary.image_id] = 0
    is_text[0] = 0
    is_text[is_text.nonzero()[SUPERVISED - len(kept) :]] = 0
    assert int(is_text.sum()) + len(kept) == SUPERVISED
    tensors = {name: getattr(pack, name)[:TOKENS] for name in ("input_ids", "is_desc", "segment_of")}
    boundaries = (*(place for place in pack.boundaries if place < TOKENS), TOKENS)
    tensors |= {"position_ids": rest, "weights": is_text, "slots": kept, "bins": pack.bins[: len(kept)]}
    return replace(pack, boundaries=boundaries, **tensors)


def main(mode: str, model: str, data: str) -> None:
    bench = load_bench(Quickstart(model=Path(model), plain=Path(model), data=Path(data)), num_samples=64)
    bench.model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    pack = make_pack(bench)
    image_rows = int((pack.input_ids == bench.vocabulary.image_id).sum())
    assert image_rows * 4 == len(pack.vision.pixel_values), "an image is cut: choose another number of samples"
    for parameter in bench.model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # they are there in every run, and no part of the question
    before = resident()
    if mode == "objective":
        loss, _ = bench.objective()(pack)
    else:
        vision = bench.model.get_image_features(pack.vision.pixel_values, pack.vision.image_grid_thw, return_dict=True)
        logits = bench.model(
            inputs_embeds=bench.model.get_input_embeddings()(pack.input_ids)[None],
            position_ids=pack.position_ids[:, None],
            use_cache=False,
            mm_encoder_outputs={"image": vision},
        ).logits[0]
        loss = F.cross_entropy(logits[:-1].float(), pack.input_ids[1:])
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(peak - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
