"""The start of a run with 200,000 records: what each of 8 ranks reads and looks for, and the batches of its workers."""

import json
import os
import time
from functools import partial

import pytest
from PIL import Image

from ds_stage2ab.data.images import check_image
from ds_stage2ab.data.records import read_records

RECORDS, RANKS, IMAGES = 200_000, 8, 1_000
OBJECTS = [{"desc": f"cat {k}", "bbox_2d": [10 + k, 20, 300 + k, 400]} for k in range(5)]


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    Image.new("RGB", (64, 48)).save(folder / "0.png")
    for k in range(1, IMAGES):
        os.link(folder / "0.png", folder / f"{k}.png")
    with (folder / "train.jsonl").open("w") as file:
        for number in range(RECORDS):
            record = {"images": [f"{number % IMAGES}.png"], "width": 64, "height": 48, "objects": OBJECTS}
            file.write(json.dumps(record) + "\n")
    return folder / "train.jsonl"


def cpu_seconds(job):
    begun = time.process_time()
    made = job()
    return time.process_time() - begun, made


@pytest.mark.bench
def test_a_share_of_the_images_costs_a_share_of_the_time(jsonl):
    read = partial(read_records, jsonl, image_root=None, box_format="bins")
    alone_s, records = cpu_seconds(read)
    share_s, same = cpu_seconds(partial(read, share=(0, RANKS)))
    looked_s, _ = cpu_seconds(lambda: [check_image(record) for record in records[::RANKS]])
    print(f"{RECORDS:,} records: {alone_s:.1f} CPU s alone, {share_s:.1f} as one of {RANKS}; headers {looked_s:.1f}")
    assert same == records
    assert share_s < 0.8 * alone_s
