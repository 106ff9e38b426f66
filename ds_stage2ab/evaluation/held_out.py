"""The held-out samples of one rank, each encoded when its turn has come: not all of their images fit in memory."""

from collections.abc import Callable, Sequence
from threading import Lock

from ds_stage2ab.carriers import Record, Sample
from ds_stage2ab.data.stream import evaluation_draw


class HeldOut(Sequence[Sample]):
    """The samples of some records. Any thread may ask for one; one at a time is encoded, since tokenizers are not safe
    to share between threads.

    Args:
        records: the held-out set.
        encode: record and draw -> sample.
        indices: of the records of this rank, in the order of their samples.
    """

    def __init__(
        self, records: Sequence[Record], encode: Callable[[Record, int], Sample], indices: Sequence[int]
    ) -> None:
        self.records = records
        self.encode = encode
        self.indices = indices
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Sample:
        return self.sample(self.indices[place])

    def sample(self, index: int) -> Sample:
        """That of one record, whether it is of this rank or not.

        Raises:
            DataError: its image cannot be read.
        """
        with self._lock:
            return self.encode(self.records[index], evaluation_draw(index))
