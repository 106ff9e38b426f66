"""Record -> Sample: the image's bytes and patches, and the prompt's token ids, computed once."""

from collections.abc import Iterable
from typing import Any

from PIL import Image

from ds_stage2ab.carriers import Record, Sample, Truth, Vision
from ds_stage2ab.codec.bins import MAX_BIN
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.data.images import load_image
from ds_stage2ab.data.prompt import image_place, prompt_text, prompt_warnings
from ds_stage2ab.errors import DataError
from ds_stage2ab.model_folder.images import too_thin

NO_OBJECTS = "object"
"""Describes the object of dummy packs where no record has any."""
BLANK_SIDE = 32  # pixels: one merged patch of a Qwen3-VL
MOST_KEPT = 10_000  # prompts whose ids are kept: a set may have one for each record
Words = tuple[tuple[int, ...], tuple[int, ...]]


class Encoder:
    """Encodes records for one checkpoint.

    Args:
        tokenizer: the checkpoint's, with its chat template.
        image_processor: the checkpoint's; splits an image into patches.
        vocabulary: the checkpoint's ids.
        system_prompt: None leaves the system turn to the template.
        user_prompt: the text after the image, of a record that has none of its own.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        vocabulary: Vocabulary,
        *,
        system_prompt: str | None,
        user_prompt: str,
    ) -> None:
        self.image_processor = image_processor
        self.image_id = vocabulary.image_id
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.user_prompt = user_prompt
        self.warnings = prompt_warnings(prompt_text(tokenizer, system_prompt, user_prompt))
        self._words: dict[str, Words] = {}
        self._around(user_prompt)

    def prompt_length(self, width: int, height: int, prompt: str | None = None) -> int:
        """Tokens of the prompt for an image of this size, in pixels; 0 for one that the image processor refuses.

        Args:
            prompt: of the user; None: that of records without one.
        """
        if too_thin((width, height)):
            return 0
        patches = self.image_processor.get_number_of_image_patches(height, width)
        before, after = self._around(prompt or self.user_prompt)
        return len(before) + patches // self.image_processor.merge_size**2 + len(after)

    def longest_prompt(self, records: Iterable[Record]) -> int:
        """Tokens of the longest prompt for these records; 0 if there are none."""
        asked = {(record.width, record.height, record.prompt) for record in records}
        return max((self.prompt_length(*one) for one in asked), default=0)

    def _around(self, user_prompt: str) -> Words:
        """The prompt's ids before and after the image's."""
        if user_prompt not in self._words:
            if len(self._words) >= MOST_KEPT:
                self._words.clear()
            text = prompt_text(self.tokenizer, self.system_prompt, user_prompt)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            place = image_place(ids, self.image_id, str(self.tokenizer.name_or_path))
            self._words[user_prompt] = (tuple(ids[:place]), tuple(ids[place + 1 :]))
        return self._words[user_prompt]

    def encode(self, record: Record, draw: int) -> Sample:
        """Read the image and expand its placeholder to one token per merged patch.

        Raises:
            DataError: the image cannot be read, is not what the record says, or the image processor refuses it.
        """
        return self.encode_loaded(record, draw, *load_image(record))

    def encode_loaded(self, record: Record, draw: int, content: bytes, image: Image.Image) -> Sample:
        """The same of an image that `load_image` has read.

        Raises:
            DataError: the image processor refuses it.
        """
        prompt = record.prompt or self.user_prompt
        try:
            prompt_ids, vision = self._encode(image, prompt)
        except (ValueError, TypeError, RuntimeError) as error:
            why = f"the image processor refuses image {record.image}: {error}"
            raise DataError(why, where=record.where, fix="leave the image out, or convert it") from error
        return Sample(
            id=record.id,
            draw=draw,
            image=content,
            width=record.width,
            height=record.height,
            objects=record.objects,
            prompt_ids=prompt_ids,
            user_prompt=prompt,
            vision=vision,
        )

    def blank(self, records: Iterable[Record]) -> Sample:
        """A small white image with one object, for dummy packs.

        Args:
            records: the first description in them is the object's: one of ours may be an added token of the tokenizer.
        """
        desc = next((truth.desc for record in records for truth in record.objects), NO_OBJECTS)
        prompt_ids, vision = self._encode(Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), "white"), self.user_prompt)
        return Sample(
            id="the white image of dummy packs",
            draw=0,
            image=b"",
            width=BLANK_SIDE,
            height=BLANK_SIDE,
            objects=(Truth(desc=desc, box=(0, 0, MAX_BIN, MAX_BIN)),),
            prompt_ids=prompt_ids,
            user_prompt=self.user_prompt,
            vision=vision,
        )

    def largest(self, records: Iterable[Record], draw: int, *, skip_bad: bool) -> Sample:
        """The sample with the most pixels.

        Args:
            skip_bad: leave out those whose image cannot be read, as training does.

        Raises:
            DataError: its image cannot be read, or none can.
        """
        for record in sorted(records, key=lambda one: one.width * one.height, reverse=True):
            try:
                return self.encode(record, draw)
            except DataError:
                if not skip_bad:
                    raise
        raise DataError("no record has an image that can be read", where="data.train", fix="correct data.image_root")

    def _encode(self, image: Image.Image, prompt: str) -> tuple[tuple[int, ...], Vision]:
        """(ids of the prompt, the image's patches)."""
        patches = self.image_processor(images=[image], return_tensors="pt")
        grid = patches["image_grid_thw"]
        num_tokens = int(grid.prod()) // self.image_processor.merge_size**2
        before, after = self._around(prompt)
        ids = before + (self.image_id,) * num_tokens + after
        return ids, Vision(pixel_values=patches["pixel_values"], image_grid_thw=grid)
