"""The prompt before the image is known: a checkpoint's chat template, applied once and checked."""

from __future__ import annotations

from typing import Any

from ds_stage2ab.errors import ConfigError, EnvironmentFault

THOUGHT, THOUGHT_ENDS = "<think>", "</think>"
TEMPLATE = "chat_template.jinja"
COPY = f"copy {TEMPLATE} from the folder that the checkpoint was trained from"


def chat_messages(system_prompt: str | None, user_prompt: str) -> list[dict[str, Any]]:
    """The conversation before the assistant's turn, as chat templates take it."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user_prompt}]}
    if system_prompt is None:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, user]


def prompt_text(tokenizer: Any, system_prompt: str | None, user_prompt: str) -> str:
    """The prompt as text, with one placeholder for the image.

    Raises:
        EnvironmentFault: the chat template is damaged, or leaves out a prompt.
        ConfigError: it takes no system turn.
    """
    where = str(tokenizer.name_or_path)
    try:
        text = _render(tokenizer, system_prompt, user_prompt)
    except EnvironmentFault as fault:
        if system_prompt is None:
            raise
        _render(tokenizer, None, user_prompt)  # raises where the template is at fault, not the turn
        raise ConfigError(
            f"the checkpoint's chat template takes no system turn ({fault.why})",
            where="data.system_prompt",
            fix=f"set data.system_prompt: null, or {COPY}",
        ) from fault
    for key, prompt in (("data.system_prompt", system_prompt), ("data.user_prompt", user_prompt)):
        if prompt is not None and prompt.strip() not in text:
            raise EnvironmentFault(f"the chat template leaves out {key}", where=where, fix=COPY)
    return text


def _render(tokenizer: Any, system_prompt: str | None, user_prompt: str) -> str:
    try:
        messages = chat_messages(system_prompt, user_prompt)
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program: it may raise anything
        raise EnvironmentFault(
            f"the chat template cannot be applied: {type(error).__name__}: {error}",
            where=str(tokenizer.name_or_path),
            fix=COPY,
        ) from error


def image_place(ids: list[int], image_id: int, where: str) -> int:
    """The index of the one image placeholder among the ids of a prompt.

    Raises:
        EnvironmentFault: there is none.
        ConfigError: there are several.
    """
    number = ids.count(image_id)
    if number == 0:
        why = "the chat template is that of a model for text: it writes no image"
        raise EnvironmentFault(why, where=where, fix=COPY)
    if number > 1:
        raise ConfigError(
            f"the prompt holds {number} image placeholders, it must hold exactly one",
            where="data.system_prompt and data.user_prompt",
            fix="remove image tokens from the prompts and check the checkpoint's chat template",
        )
    return ids.index(image_id)


def prompt_warnings(text: str) -> tuple[str, ...]:
    """What is odd about a prompt, and may be meant."""
    if text.rfind(THOUGHT) <= text.rfind(THOUGHT_ENDS):
        return ()
    warning = (
        f"the chat template opens a thought: the prompt ends in {text[-24:]!r}, and the answer is taught right behind"
        " it; if stage 1 was not trained so, take the chat template that it used"
    )
    return (warning,)
