"""Drafts: what probably comes next in an answer, so that one pass can verify several tokens.

A draft decides nothing: a drafted token is taken where it is what the model chooses at its place (`rows.Row.take`), so
the worst that a wrong one costs is its share of a pass (speculative decoding, Leviathan et al. 2023; drafts copied from
known text, Saxena 2023).

What is known beforehand of an answer is other answers to the same image: the last one, and the true one as the codec
writes it. Coordinate tokens cut them into chunks, most of whose tokens are structure: of the chunk that stands at the
same place, or of one that begins or goes on as this answer does, the rest is the draft.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from ds_stage2ab.carriers import Sample, Truth
from ds_stage2ab.codec.text import Codec, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import DataError

COORDINATES_PER_OBJECT = 4
LONGEST = 24
"""Tokens of a draft: about what stands between two boxes. Of more few would be taken, and each costs its share."""
SOMETHING = Truth(desc="object", box=(0, 0, 1, 1))
"""Shows the structure of an answer where none is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A known answer, cut at its coordinates: chunk k stands before coordinate k, and one after the last.

    Example: `{"a": [<|coord_1|>, <|coord_2|>]}` has the chunks `{"a": [`, `, ` and `]}`.
    """

    chunks: tuple[tuple[int, ...], ...]
    coordinates: tuple[int, ...]
    # empty: none is worth a guess

    @classmethod
    def cut(cls, ids: Sequence[int], coordinate_ids: Container[int], *, with_coordinates: bool) -> "Guess":
        """Args: ids: without the stop."""
        chunks, coordinates = [[]], []
        for token in ids:
            if token in coordinate_ids:
                coordinates.append(token)
                chunks.append([])
            else:
                chunks[-1].append(token)
        return cls(chunks=tuple(map(tuple, chunks)), coordinates=tuple(coordinates) if with_coordinates else ())

    def beyond(self, place: int) -> list[int]:
        """What follows a chunk, where its coordinate is guessed."""
        following: list[int] = []
        while place < len(self.coordinates) and len(following) < LONGEST:
            following += [self.coordinates[place], *self.chunks[place + 1]]
            place += 1
        return following


def true_answer(sample: Sample, vocabulary: Vocabulary, codec: Codec) -> Guess:
    """Of the objects of a sample, and of one where there is none; boxes are not guessed."""
    try:
        ids = encode_answer(sample.objects or (SOMETHING,), vocabulary, codec).ids[:-1].tolist()
    except DataError:  # a description that cannot be written; the sample is refused where it is taught
        ids = encode_answer((SOMETHING,), vocabulary, codec).ids[:-1].tolist()
    return Guess.cut(ids, vocabulary.coordinate_bins, with_coordinates=False)


class Drafter:
    """Follows one answer.

    Args:
        guesses: the likelier ones first.
        coordinate_ids: the coordinate tokens.
    """

    def __init__(self, guesses: Sequence[Guess], coordinate_ids: Container[int]) -> None:
        self.guesses = guesses
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
        """The next tokens, perhaps; up to the next coordinate, and beyond where that has a guess."""
        longest, found = 0, []
        for guess in self.guesses:
            for place in _places(self.num_coordinates, len(guess.chunks)):
                chunk = guess.chunks[place]
                if chunk[: len(self.since)] == tuple(self.since):
                    return [*chunk[len(self.since) :], *guess.beyond(place)][:LONGEST]
                same, end = _same_end(self.since, chunk)
                if same > longest:
                    longest, found = same, [*chunk[end:], *guess.beyond(place)]
        return found[:LONGEST]


def _places(num_coordinates: int, num_chunks: int) -> list[int]:
    """The chunks that may stand after so many coordinates: the one that does in the known answer, then those alike."""
    first = num_coordinates if num_coordinates < COORDINATES_PER_OBJECT else num_coordinates % COORDINATES_PER_OBJECT
    alike = range(first or COORDINATES_PER_OBJECT, num_chunks, COORDINATES_PER_OBJECT) if num_coordinates else [0]
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
