"""Whatever stands in a JSON of a known format: an import ends with a readable JSONL, or with an error of ours."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_stage2ab.errors import Stage2Error
from tests.unit.formats.sets import image, imported

WORDS = st.sampled_from(["a.png", "cat", "1", "", "../a"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 400), st.floats(-5, 400), WORDS)


def _nested(inner):
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner)


ANY = st.recursive(SCALARS, _nested, max_leaves=6)
RIGHT = st.sampled_from([True] * 8 + [False])
"""Whether a value is as it should be."""
START, END = st.floats(-10, 40), st.floats(50, 120)
FOUR = st.tuples(START, START, END, END).map(list) | st.lists(st.floats(-50, 500), min_size=4, max_size=4)
BOX = RIGHT.flatmap(lambda right: FOUR if right else ANY)


def _some(**fields):
    """A mapping as it should be; at times one whose fields may be missing or anything."""
    wrong = st.fixed_dictionaries({}, optional={key: value | ANY for key, value in fields.items()})
    return RIGHT.flatmap(lambda right: st.fixed_dictionaries(fields) if right else wrong)


IDS = st.sampled_from([1, 2, "1"])
SIZE = {"width": st.just(333), "height": st.just(111)}
NAMED = _some(id=IDS, file_name=st.just("a.png"), coco_url=st.just("http://x/a.png"), **SIZE)
COCO = _some(
    images=st.lists(NAMED, min_size=1, max_size=3),
    annotations=st.lists(
        _some(image_id=IDS, category_id=IDS, bbox=BOX, iscrowd=st.just(0), segmentation=st.lists(BOX, max_size=2)),
        min_size=1,
        max_size=4,
    ),
    categories=st.lists(_some(id=IDS, name=st.just("cat")), min_size=1, max_size=2),
)
ODVG = _some(
    filename=st.just("a.png"),
    detection=_some(instances=st.lists(_some(bbox=BOX, category=st.just("cat"), label=IDS), min_size=1, max_size=3)),
    grounding=_some(regions=st.lists(_some(bbox=BOX | st.lists(BOX, max_size=2), phrase=st.just("cat")), max_size=3)),
    **SIZE,
)
TEXT = st.sampled_from(["<image>find <ref-object>", "<bbox><bbox>", "<ref-object><bbox>"])
SWIFT = _some(
    images=st.just(["a.png"]),
    messages=st.lists(_some(role=st.just("user"), content=TEXT), max_size=3),
    objects=_some(
        ref=st.lists(st.just("cat") | ANY, max_size=3),
        bbox=st.lists(BOX, min_size=1, max_size=3),
        bbox_type=st.sampled_from(["real", "norm1"]),
    ),
)


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "values"), [("coco", COCO), ("lvis", COCO), ("odvg", ODVG), ("swift", SWIFT)])
def test_an_import_ends_well(kind, values, tmp_path):
    image(tmp_path / "images" / "a.png")
    written = []

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values)
    def ends_well(found):
        (tmp_path / "set.json").write_text(json.dumps(found))
        try:
            written.append(imported(kind, tmp_path, "set.json"))
        except Stage2Error:
            assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    ends_well()
    assert sum(bool(lines[0]["objects"]) for lines, _ in written) > 10, "the examples are too wild to test anything"
