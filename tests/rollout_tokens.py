"""The text of an answer as token ids: as a tokenizer writes it, in single bytes, and cut anywhere."""

from random import Random

from ds_stage2ab.codec.vocabulary import Vocabulary


def special(random: Random, vocabulary: Vocabulary) -> int:
    return random.choice([vocabulary.stop_id, *vocabulary.vision_ids, 10**7])


def split(at: int, ids: list[int], vocabulary: Vocabulary) -> tuple[int, list[int], list[int]]:
    """(where, ids before, ids behind); a token around the cut is spelled in bytes, before a coordinate is cut."""
    end = 0
    for place, token in enumerate(ids):
        first, end = end, end + len(vocabulary.written(token))
        if at < end:
            if at == first or token in vocabulary.coordinate_bins:
                return first, ids[:place], ids[place:]
            before, behind = vocabulary.written(token)[: at - first], vocabulary.written(token)[at - first :]
            spelled = [[vocabulary.byte_ids[byte] for byte in part] for part in (before, behind)]
            return at, [*ids[:place], *spelled[0]], [*spelled[1], *ids[place + 1 :]]
    raise AssertionError("a cut behind the end")


def ids_of(random: Random, text: bytes, coordinates: dict[int, int], vocabulary: Vocabulary) -> list[int]:
    """As the tokenizer writes it, or (sometimes, and where that is another text) in single bytes."""
    ids = vocabulary.encode(text.decode())
    if random.random() < 0.8 and vocabulary.written_all(ids) == text:
        return ids
    spelled, at = [], 0
    while at < len(text):
        if at in coordinates:
            spelled.append(vocabulary.coordinate_ids[coordinates[at]])
            at += len(f"<|coord_{coordinates[at]}|>")
        else:
            spelled.append(vocabulary.byte_ids[text[at]])
            at += 1
    return spelled
