"""The scenes that Channel B's tests answer; a file with other ones has its own."""

from dataclasses import replace

import pytest

from tests.unit.channels.answers import CAT, DOG
from tests.unit.parts import load_bench


@pytest.fixture(scope="module")
def bench(quickstart):
    loaded = load_bench(quickstart, num_samples=4)
    return replace(loaded, samples=[replace(sample, objects=(CAT, DOG)) for sample in loaded.samples])
