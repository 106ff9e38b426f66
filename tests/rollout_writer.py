"""The text of an answer as it grows, with white space wherever JSON allows it."""

import json
from dataclasses import dataclass, field
from random import Random

from ds_stage2ab.codec.text import Codec

WORDS = (
    *("cat", "red fox", "\u4e2d\u6587", "caf\u00e9", "\U0001f600 face", 'say "hi"', "a\\b", "]}", '", "', "x\ty"),
    *("\u00a0y", "{[", "e\u0301"),
)
SPACES = ("", "", "", " ", "\n", " \t", "\r\n  ")


@dataclass
class Writer:
    """The answer as it grows: bytes, and coordinate tokens at their places."""

    random: Random
    codec: Codec
    text: bytearray = field(default_factory=bytearray)
    coordinates: dict[int, int] = field(default_factory=dict)
    # offset -> bin

    def put(self, text: str) -> None:
        self.text += text.encode()

    def space(self) -> None:
        self.put(self.random.choice(SPACES))

    def coordinate(self, k: int) -> tuple[int, int]:
        first = len(self.text)
        self.coordinates[first] = k
        self.put(f"<|coord_{k}|>")
        return first, len(self.text)

    def lexemes(self, words: str) -> None:
        for word in words.split():
            self.space()
            self.put(word)

    def corner(self, k: int) -> tuple[int, int]:
        """A coordinate as a value of this form."""
        self.put(self.codec.quote)
        span = self.coordinate(k)
        self.put(self.codec.quote)
        return span

    def several(self, opening: str, closing: str, parts: list) -> list:
        """A container: each part writes itself; returns what the parts return."""
        self.put(opening)
        results = []
        for place, part in enumerate(parts):
            if place:
                self.space()
                self.put(",")
            self.space()
            results.append(part())
        self.space()
        self.put(closing)
        return results

    def member(self, key: str, part) -> object:
        self.put(json.dumps(key))
        self.space()
        self.put(":")
        self.space()
        return part()

    def members(self, parts: dict) -> dict:
        """An object; the order is the dictionary's."""
        writers = [lambda key=key, part=part: self.member(key, part) for key, part in parts.items()]
        return dict(zip(parts, self.several("{", "}", writers), strict=True))

    def string(self, value: str) -> tuple[int, int]:
        """[first, last) between the quotes; escapes are a matter of taste."""
        style = self.random.choice(["plain", "plain", "ascii", "needless"])
        inside = json.dumps(value, ensure_ascii=style == "ascii")[1:-1]
        if style == "needless":
            inside = inside.replace("a", "\\u0061").replace("}", "\\u007D")
        self.put('"')
        first = len(self.text)
        self.put(inside)
        last = len(self.text)
        self.put('"')
        return first, last

    def anything(self, depth: int) -> str:
        """Any JSON value of at most this depth; returns its kind."""
        kinds = ["string", "number", "literal", "coordinate", *(["array", "object"] if depth else [])]
        kind = self.random.choice(kinds)
        if kind == "string":
            self.string(self.random.choice(WORDS))
        elif kind == "number":
            self.put(self.random.choice(["0", "-1", "12", "1.50", "2e5", "-0.1E-3"]))
        elif kind == "literal":
            self.put(self.random.choice(["true", "false", "null"]))
        elif kind == "coordinate":
            self.corner(self.random.randrange(1000))
        elif kind == "array":
            self.several("[", "]", [lambda: self.anything(depth - 1)] * self.random.randrange(4))
        else:
            keys = self.random.sample(["a", "b", "desc", "\u4e2d"], self.random.randrange(4))
            self.members({key: lambda: self.anything(depth - 1) for key in keys})
        return kind
