"""From rows of text to tokens: prompt and completion as TRL reads them, and which of the tokens carry a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainables.atomic_lora.config import TextConfig
from trainables.common.errors import InputError
from trainables.texts import TextRow, TextTask


@dataclass(frozen=True)
class TextExample:
    """A row as tokens.

    Attributes:
        ids: Prompt and completion.
        targets: How many of the last ones the loss is summed over, at least one and at most all but the first.
        prompt: How many of the first ones are the prompt.
        row: The row.
    """

    ids: tuple[int, ...]
    targets: int
    prompt: int
    row: TextRow


@dataclass(frozen=True)
class TaskTokens:
    """A task as tokens, and how many of its rows are not as they were.

    Attributes:
        train, validation, test: The examples of each set.
        cut: Rows that were cut at their end.
        left_out: Rows that were left out, because they are too long.
    """

    train: tuple[TextExample, ...]
    validation: tuple[TextExample, ...]
    test: tuple[TextExample, ...]
    cut: int
    left_out: int


def task_tokens(task: TextTask, tokenizer: Any, eos: int, limit: int, config: TextConfig) -> TaskTokens:
    """Return a task's rows as tokens.

    Args:
        task: The task.
        tokenizer: The base's.
        eos: The id that ends a sequence.
        limit: Tokens that the base reads.
        config: ``loss``, ``max_tokens`` and ``too_long``.

    Raises:
        InputError: If a row cannot be written by the chat template, or a set is empty once rows are left out.
    """
    most = min(limit, config.max_tokens)
    sets: list[tuple[TextExample, ...]] = []
    cut = left_out = 0
    for name, rows in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        kept = []
        for row, (prompt, completion) in zip(rows, _tokens(task.id, rows, tokenizer, eos), strict=True):
            ids = prompt + completion
            too_long = len(ids) > most
            # a row without a prompt begins with a token that is given
            targets = min(len(ids), most) - (1 if config.loss == "all" or not prompt else len(prompt))
            if targets < 1 or (too_long and config.too_long == "leave_out"):
                left_out += 1
                continue
            cut += too_long
            kept.append(TextExample(tuple(ids[:most]), targets, len(prompt), row))
        if not kept:
            raise InputError(
                f"The task {task.id} has no {name} row that fits into {most} tokens; raise max_tokens, choose a base "
                "that reads more, or give shorter rows."
            )
        sets.append(tuple(kept))
    train, validation, test = sets
    return TaskTokens(train, validation, test, cut, left_out)


def _tokens(task_id: str, rows: Sequence[TextRow], tokenizer: Any, eos: int) -> list[tuple[list[int], list[int]]]:
    """Return prompt and completion of each row as tokens, the completion ended by ``eos``.

    A completion's tokens are those of the whole text behind the prompt's, where the prompt's are its beginning; else
    those of the completion alone, as a server would find the prompt.
    """
    texts = [_texts(task_id, row, tokenizer) for row in rows]
    # a template writes the beginning of a sequence itself
    special = [isinstance(row.prompt, str) for row in rows]
    prompts = _encoded([prompt for prompt, _ in texts], special, tokenizer)
    wholes = _encoded([prompt + completion for prompt, completion in texts], special, tokenizer)
    found = []
    for (prompt_text, completion_text), prompt, whole in zip(texts, prompts, wholes, strict=True):
        prompt = prompt if prompt_text else []
        if whole[: len(prompt)] == prompt:
            completion = whole[len(prompt) :]
        else:
            completion = tokenizer(completion_text, add_special_tokens=False).input_ids
        # what a template writes behind the end is never generated
        completion = completion[: completion.index(eos)] if eos in completion else completion
        found.append((prompt, [*completion, eos]))
    return found


def _encoded(texts: Sequence[str], special: Sequence[bool], tokenizer: Any) -> list[list[int]]:
    encoded: list[list[int]] = [[]] * len(texts)
    for kind in (True, False):
        places = [place for place, own in enumerate(special) if own is kind]
        if places:
            ids = tokenizer([texts[place] for place in places], add_special_tokens=kind).input_ids
            for place, row in zip(places, ids, strict=True):
                encoded[place] = row
    return encoded


def _texts(task_id: str, row: TextRow, tokenizer: Any) -> tuple[str, str]:
    """Return prompt and completion as text; a conversation's through the chat template."""
    if isinstance(row.prompt, str):
        return row.prompt, row.completion
    if not tokenizer.chat_template:
        raise InputError(
            f"The task {task_id} has messages, and the base's tokenizer no chat template; choose an instruction-tuned "
            'base, or give {"prompt", "completion"}.'
        )
    before = [dict(message) for message in row.prompt]
    try:
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(
            [*before, {"role": "assistant", "content": row.completion}], tokenize=False
        )
    except Exception as error:  # templates raise what they like
        raise InputError(f"The task {task_id}: the chat template refuses a row ({error}).") from error
    if not whole.startswith(prompt):
        # some templates write an empty thought, or leave out the mark of the answer
        whole = prompt + row.completion
    return prompt, whole[len(prompt) :]
