"""What is drafted in a server, by hand, and on real answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.rollout.server.vllm_drafts import BETWEEN, COORDINATE, Drafts, draft
from tests.unit.parts import load_bench

C = COORDINATE


@pytest.mark.parametrize(
    ("seen", "drafted"),
    [
        ([9, 1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),
        ([1, 2, 5, 8, 2, 6, 1, 2], [5, 8, 2, 6]),  # the longest match, not the last
        ([7, 3, C, 4, C, 4, C, 5, 6, 8, 3, C], [4]),  # a first coordinate, as the first was
        ([7, 3, C, 4, C, 4, C, 5, 6, 8, 3, C, 4, C, 4, C], [5, 6, 8, 3]),  # a third
        ([1, 2, 3, 4, C, 5, 1, 2, 6], [4]),  # a name that was not there: behind it stands what stood behind the other
        ([1, 2, 3, C, 5, 1, 2, 6], []),  # a coordinate is not guessed
        ([2, 3, 1, 2], []),  # one token alone is no match
        ([1, 2, BETWEEN, 4, 1, 2, 6], []),  # a border is no name
        ([*range(20), *range(20)], [0, 1, 2, 3]),  # longer than is compared
        ([1, 2, 3, BETWEEN, 5, 1, 2], [3]),  # of another answer, not beyond its end
        ([1, 2, 3], []),
        ([], []),
        ([C], []),
    ],
)
def test_what_followed_the_same_tokens_follows_again(seen, drafted):
    assert draft(np.array(seen, dtype=np.int64), 4) == drafted
    assert draft(np.array(seen, dtype=np.int64), 1) == drafted[:1]


def test_most_of_what_stands_between_boxes_is_drafted(quickstart):
    """Counted as a server does: a pass takes the drafted tokens that are right, and one more."""
    bench = load_bench(quickstart, num_samples=1)
    settings = {"tokenizer": str(quickstart.model)}
    made = Drafts(SimpleNamespace(model_config=SimpleNamespace(**settings), speculative_config=SimpleNamespace(
        num_speculative_tokens=8
    )))  # fmt: skip
    passes, rows, length = served(made, bench, 1, 2, 3, 4, 5)
    assert passes < 0.5 * length and rows < 1.6 * length, (passes, rows, length)
    # the second answer's first object too, now that one has been seen; the names are others
    passes, rows, length = served(made, bench, 6, 7)
    assert passes < 0.45 * length and rows < 1.6 * length, (passes, rows, length)


def served(made, bench, *names):
    """(passes, rows of them, tokens) of an answer with these objects."""
    objects = [Truth(desc=str(k), box=(100 * k, 10 * k, 100 * k + 50 + k, 300 + k)) for k in names]
    answer = encode_answer(objects, bench.vocabulary, get_codec("array")).ids.tolist()
    whole = [*bench.samples[0].prompt_ids, *answer]
    done, passes, rows = len(bench.samples[0].prompt_ids) + 1, 1, 1
    table = np.array([whole, whole], dtype=np.int32)
    assert made.propose([[1]], np.array([len(whole) - 1]), table, slot_mappings=None) == [[]], "no room"
    while done < len(whole):
        drafted, nothing = made.propose([whole[done - 1 : done], []], np.array([done, done]), table, slot_mappings=None)
        assert nothing == [] and len(drafted) <= 8 and not {*drafted} & {*bench.vocabulary.coordinate_ids}
        right = 0
        while right < len(drafted) and drafted[right] == whole[done + right]:
            right += 1
        done, passes, rows = done + right + 1, passes + 1, rows + len(drafted) + 1
    return passes, rows, len(answer)
