"""Drafts: what probably comes next in an answer, so that one pass can verify several tokens.

A draft decides nothing: a drafted token is taken where it is what the model chooses at its place (`rows.Row.take`), so
the worst that a wrong one costs is its share of a pass (speculative decoding, Leviathan et al. 2023; drafts copied from
known text, Saxena 2023).

What is known beforehand of an answer is the true one, as the codec writes it. Coordinate tokens cut it into chunks,
most of whose tokens are structure: of the chunk that stands at the same place, or of one that begins or goes on as
this answer does, the rest is the draft. Earlier answers to the same image are not used: what a run has decoded before
would shape the passes of the next steps, and with them the rounding of bf16, which a resumed run must repeat.
"""

from collections.abc import Container, Sequence

from ds_stage2ab.carriers import Sample, Truth
from ds_stage2ab.codec.text import Codec, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import DataError

LONGEST = 24
"""Tokens of a draft: about what stands between two boxes. Of more few would be taken, and each costs its share."""
SOMETHING = Truth(desc="object", box=(0, 0, 1, 1))
"""Shows the structure of an answer where none is known."""


Chunks = tuple[tuple[int, ...], ...]
"""A known answer, cut at its coordinates: chunk k stands before coordinate k, and one after the last.

Example: `{"a": [<|coord_1|>, <|coord_2|>]}` has the chunks `{"a": [`, `, ` and `]}`.
"""


def cut(ids: Sequence[int], coordinate_ids: Container[int]) -> Chunks:
    """Args: ids: of an answer without the stop."""
    chunks: list[list[int]] = [[]]
    for token in ids:
        if token in coordinate_ids:
            chunks.append([])
        else:
            chunks[-1].append(token)
    return tuple(map(tuple, chunks))


def true_answer(sample: Sample, vocabulary: Vocabulary, codec: Codec) -> Chunks:
    """Of the objects of a sample, and of one where there is none."""
    try:
        ids = encode_answer(sample.objects or (SOMETHING,), vocabulary, codec).ids[:-1].tolist()
    except DataError:  # a description that cannot be written; the sample is refused where it is taught
        ids = encode_answer((SOMETHING,), vocabulary, codec).ids[:-1].tolist()
    return cut(ids, vocabulary.coordinate_bins)


class Drafter:
    """Follows one answer.

    Args:
        chunks: of an answer that is likely; boxes are not guessed.
        coordinate_ids: the coordinate tokens.
        num_per_object: coordinate tokens of an object, its score included.
    """

    def __init__(self, chunks: Chunks, coordinate_ids: Container[int], num_per_object: int) -> None:
        self.num_per_object = num_per_object
        self.chunks = chunks
        self.coordinate_ids = coordinate_ids
        self.num_coordinates = 0
        self.since: list[int] = []
        # tokens after the last coordinate

    def read(self, tokens: Sequence[int]) -> None:
        """Take the next tokens of the answer."""
        for token in tokens:
            if token in self.coordinate_ids:
                self.num_coordinates += 1
                self.since = []
            else:
                self.since.append(token)

    def propose(self) -> list[int]:
        """The next tokens, perhaps; up to the next coordinate."""
        longest, found = 0, []
        for place in _places(self.num_coordinates, len(self.chunks), self.num_per_object):
            chunk = self.chunks[place]
            if chunk[: len(self.since)] == tuple(self.since):
                return list(chunk[len(self.since) :])[:LONGEST]
            same, end = _same_end(self.since, chunk)
            if same > longest:
                longest, found = same, list(chunk[end:])
        return found[:LONGEST]


def _places(num_coordinates: int, num_chunks: int, per_object: int) -> list[int]:
    """The chunks that may stand after so many coordinates: the one that does in the known answer, then those alike."""
    first = num_coordinates if num_coordinates < per_object else num_coordinates % per_object
    alike = range(first or per_object, num_chunks, per_object) if num_coordinates else [0]
    return [*[num_coordinates] * (num_coordinates < num_chunks), *(one for one in alike if one != num_coordinates)]


def _same_end(ids: Sequence[int], chunk: Sequence[int]) -> tuple[int, int]:
    """Where a chunk has the last tokens of `ids`: how many of them at most, and the place after them; else (0, 0)."""
    best = (0, 0)
    for end in range(1, len(chunk) + 1):
        same = 0
        while same < min(end, len(ids)) and chunk[end - 1 - same] == ids[-1 - same]:
            same += 1
        best = max(best, (same, end), key=lambda one: one[0])
    return best
