"""Text tasks on a Hugging Face causal LM, for the pack engine: loss on completions, and answers before and after.

Whether a completion is written exactly is measured without decoding: where each of its tokens is the likeliest behind
the true ones before it, greedy decoding writes exactly it, but where two tokens are as likely up to rounding. Where
answers are asked for they are generated as well, and compared as text: the same text may be written in other tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from trainables.atomic_lora.causal_lm import (
    CPU_BATCH_OVERHEAD,
    REFERENCE_LR,
    context_length,
    end_of_sequence,
    fingerprint,
    kind_of_layer,
    left_padded,
    load_model,
    load_tokenizer,
    location,
    read_config,
    usual_dtype,
)
from trainables.atomic_lora.config import TextConfig
from trainables.atomic_lora.family import TEXT
from trainables.atomic_lora.text_tokens import TaskTokens, TextExample, task_tokens
from trainables.atomic_lora.token_losses import decoder_output, require_separable_head, token_losses
from trainables.atomic_lora.workload import LoRAWorkload
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.jobs import Job
from trainables.pack.bank import to_device
from trainables.pack.batching import group
from trainables.pack.plan import AdapterPlan, Evaluation, Size
from trainables.texts import TaskFiles, TextTask, load_task
from trainables.texts import fingerprint as text_fingerprint

# rows that are decoded together
DECODED_ROWS = 32
# tokens of a batch of several rows on a CPU: a token's activations take 1.2 MB in SmolLM2 in float32, and 0.7 MB in
# bfloat16; batches twice as large are estimated to save 0.2 % of the time (docs/log.md)
CPU_TEXT_TOKENS = 1_000


@dataclass(frozen=True)
class TextBase:
    """A frozen causal LM and its tokenizer.

    Attributes:
        model: In evaluation mode, no parameter requiring a gradient.
        tokenizer: Its tokenizer.
        eos: The id that ends a sequence.
        limit: Tokens that fit into its context.
        fingerprint: 16 hex digits, see `causal_lm.fingerprint`.
    """

    model: Any
    tokenizer: Any
    eos: int
    limit: int
    fingerprint: str


@dataclass(frozen=True)
class _Measured:
    """A model on a task's test rows: metrics, which rows are exact, and the answers where they were asked for."""

    metrics: Mapping[str, float | None]
    exact: Sequence[bool]
    answers: Sequence[str | None]


def load_text_base(base: str, device: str = "cpu", dtype: torch.dtype | None = None) -> TextBase:
    """Load a causal LM, frozen, with all of its vocabulary.

    Args:
        base, device, dtype: See `causal_lm.load_causal_lm`.

    Raises:
        InputError: If there is no such model, or its logits cannot be computed for some tokens alone.
    """
    model, tokenizer = load_model(base, dtype or usual_dtype(device)), load_tokenizer(base)
    model = model.to(device).eval().requires_grad_(False)
    require_separable_head(model, f"--base {base!r}")
    limit = context_length(read_config(base))
    return TextBase(model, tokenizer, end_of_sequence(tokenizer, base), limit, fingerprint(base))


class TextWorkload(LoRAWorkload[TextExample]):
    """Adapters of a causal LM on text tasks.

    Args:
        base: The frozen model.
        base_name: What named it.
        tasks: Where the rows of each task are.
        folder, target_modules, bf16: See `LoRAWorkload`.
    """

    task_type = "CAUSAL_LM"
    family = TEXT
    component = staticmethod(kind_of_layer)

    def __init__(
        self, base: TextBase, base_name: str, tasks: Mapping[str, TaskFiles], folder: Folder,
        target_modules: Sequence[str], bf16: bool,
    ) -> None:  # fmt: skip
        super().__init__(base.model, location(base_name), REFERENCE_LR, folder, target_modules, bf16)
        self.base, self.model, self.files, self.fingerprint = base, base.model, tasks, base.fingerprint
        if self.device.type == "cpu":
            self.cost = replace(self.cost, overhead=CPU_BATCH_OVERHEAD, limit=CPU_TEXT_TOKENS)
        self._tasks: dict[str, TextTask] = {}
        self._tokens: dict[tuple[Any, ...], TaskTokens] = {}
        self._of_base: dict[tuple[Any, ...], _Measured] = {}

    def task(self, task_id: str) -> TextTask:
        """Return a task, read when it is asked for first."""
        if task_id not in self._tasks:
            self._tasks[task_id] = load_task(task_id, self.files[task_id])
        return self._tasks[task_id]

    def tokens(self, task_id: str, config: TextConfig) -> TaskTokens:
        """Return a task's examples."""
        key = (task_id, config.loss, config.max_tokens, config.too_long)
        if key not in self._tokens:
            base = self.base
            self._tokens[key] = task_tokens(self.task(task_id), base.tokenizer, base.eos, base.limit, config)
        return self._tokens[key]

    def data_fingerprint(self, task_id: str) -> str:
        """Return 16 hex digits of a task's rows."""
        return text_fingerprint(self.task(task_id))

    def plan(self, job: Job) -> AdapterPlan[TextExample]:
        """Derive everything that the engine needs from a job; every epoch has the task's rows in another order."""
        config = text_config(job.config)
        tokens = self.tokens(job.task_id, config)
        train = tokens.train
        count = min(config.examples_per_epoch or len(train), len(train))

        def examples(epoch: int) -> Sequence[TextExample]:
            order = np.random.default_rng((job.seed, epoch)).permutation(len(train))
            return [train[place] for place in order[:count]]

        return self.plan_of(
            job,
            config,
            count,
            examples=examples,
            validation=tokens.validation,
            facts={
                "num_examples": len(train), "num_test": len(tokens.test), "num_cut": tokens.cut,
                "num_left_out": tokens.left_out, "num_repeats": self.task(job.task_id).repeats,
            },
        )  # fmt: skip

    def size(self, row: TextExample) -> Size:
        """Tokens of prompt and completion together."""
        return Size((len(row.ids),), len(row.ids), row.targets)

    def score(self, rows: Sequence[TextExample]) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over each row's targets, [N], and whether all of them are right, [N]."""
        losses, hits = self._teacher_forced(rows)
        return losses, hits == torch.tensor([row.targets for row in rows], device=hits.device)

    def evaluate(self, finished: Sequence[tuple[Job, AdapterPlan[TextExample]]]) -> list[Evaluation]:
        """Measure each adapter on its task's test rows and, once per task, the bare base.

        Predictions have the row's place among the test rows (``pair``), its ``prompt`` and ``completion``, whether base
        and adapter write it exactly (``base_exact``, ``adapted_exact``), and their answers where they were asked for.
        """
        asked = [(job.task_id, text_config(job.config)) for job, _ in finished]
        adapted = self._measure(asked)
        keys = [(task_id, c.loss, c.max_tokens, c.too_long, c.answers, c.answer_tokens) for task_id, c in asked]
        unknown = {key: one for key, one in zip(keys, asked, strict=True) if key not in self._of_base}
        if unknown:
            with self.pack.use(None):
                self._of_base |= dict(zip(unknown, self._measure(list(unknown.values())), strict=True))
        evaluations = []
        for key, (task_id, config), own in zip(keys, asked, adapted, strict=True):
            base = self._of_base[key]
            metrics = {
                f"{when}_{name}": value
                for when, found in (("base", base), ("final", own))
                for name, value in found.metrics.items()
            }
            predictions = [
                {
                    "pair": place, "prompt": row.row.question if row.prompt else "", "completion": row.row.completion,
                    "base_exact": base.exact[place], "adapted_exact": own.exact[place],
                    "base_answer": base.answers[place], "adapted_answer": own.answers[place],
                }
                for place, row in enumerate(self.tokens(task_id, config).test)
            ]  # fmt: skip
            evaluations.append(Evaluation(metrics, predictions))
        return evaluations

    @torch.no_grad()
    def _measure(self, asked: Sequence[tuple[str, TextConfig]]) -> list[_Measured]:
        """Measure on the test rows of each task, which belong to the slot of its place."""
        rows = [(slot, row) for slot, one in enumerate(asked) for row in self.tokens(*one).test]
        found: list[tuple[float, int, bool]] = [(0.0, 0, False)] * len(rows)
        for places in group([self.size(row).lengths for _, row in rows], self.cost):
            chosen = [rows[place][1] for place in places]
            with self.pack.rows([rows[place][0] for place in places]):
                losses, hits = self._teacher_forced(chosen)
            for place, row, loss, right in zip(places, chosen, losses.tolist(), hits.tolist(), strict=True):
                found[place] = (loss, right, right == row.targets)
        answers = self._answers(asked, rows)
        measured, start = [], 0
        for task_id, config in asked:
            test = self.tokens(task_id, config).test
            own, said = found[start : start + len(test)], answers[start : start + len(test)]
            start += len(test)
            count = sum(row.targets for row in test)
            compare = comparison(config.answers)
            answered = [(a, row.row.completion) for a, row in zip(said, test, strict=True) if a is not None]
            scores = [compare(answer, completion) for answer, completion in answered] if compare else []
            metrics: dict[str, float | None] = {
                "exact_match": float(np.mean([exact for _, _, exact in own])),
                "token_accuracy": sum(hits for _, hits, _ in own) / count,
                "test_loss": sum(loss for loss, _, _ in own) / count,
                "answer_score": float(np.mean(scores)) if scores else None,
            }
            measured.append(_Measured(metrics, [exact for _, _, exact in own], said))
        return measured

    def _answers(
        self, asked: Sequence[tuple[str, TextConfig]], rows: Sequence[tuple[int, TextExample]]
    ) -> list[str | None]:
        """Return what is generated behind each row's prompt; None where nobody asked, or it has no prompt."""
        said: list[str | None] = [None] * len(rows)
        wanted = [i for i, (slot, row) in enumerate(rows) if asked[slot][1].answers != "none" and row.prompt]
        # those of similar length together
        wanted.sort(key=lambda i: (asked[rows[i][0]][1].answer_tokens, rows[i][1].prompt))
        for start in range(0, len(wanted), DECODED_ROWS):
            places = sorted(wanted[start : start + DECODED_ROWS])
            prompts = [rows[i][1].ids[: rows[i][1].prompt] for i in places]
            most = max(asked[rows[i][0]][1].answer_tokens for i in places)
            with self.pack.rows([rows[i][0] for i in places]):
                for i, answer in zip(places, self._generate(prompts, most), strict=True):
                    said[i] = answer
        return said

    def _generate(self, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        ids, mask = (t.to(self.device) for t in left_padded(prompts, self.base.eos))
        most = min(most, self.base.limit - ids.shape[1])
        if most < 1:
            return [""] * len(prompts)
        ends = self.model.generation_config.eos_token_id
        ends = {self.base.eos, *(ends if isinstance(ends, list) else [] if ends is None else [ends])}
        options = GenerationConfig(
            do_sample=False, max_new_tokens=most, pad_token_id=self.base.eos, eos_token_id=sorted(ends)
        )
        with self._autocast():
            written = self.model.generate(ids, attention_mask=mask, generation_config=options)
        return self.base.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)

    def _teacher_forced(self, rows: Sequence[TextExample]) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy summed over each row's targets, [N], and how many of them are the likeliest, [N]."""
        # the last token is only predicted
        ids, mask = (t.to(self.device) for t in left_padded([row.ids[:-1] for row in rows], self.base.eos))
        counts = np.array([row.targets for row in rows])
        owners = np.repeat(np.arange(len(rows)), counts)
        # a row's targets are its last places: from the end of its predecessors' count on
        places = np.arange(len(owners)) - np.repeat(np.cumsum(counts), counts) + (owners + 1) * ids.shape[1]
        targets = np.concatenate([row.ids[-row.targets :] for row in rows])
        owner, place, target = (to_device(values, self.device) for values in (owners, places, targets))
        with self._autocast():
            decoded = decoder_output(self.model, ids, mask)
            states = decoded.last_hidden_state.flatten(0, 1).index_select(0, place)
            losses, right = token_losses(self.model, decoded, states, target)
        zeros = losses.new_zeros(len(rows))
        hits = torch.zeros(len(rows), dtype=torch.long, device=self.device)
        return zeros.index_add(0, owner, losses), hits.index_add(0, owner, right.long())


def text_config(values: Mapping[str, Any]) -> TextConfig:
    """Return the typed configuration of a job; JSON has no tuples."""
    return TextConfig(**{**values, "target_modules": tuple(values["target_modules"])})


@cache
def comparison(answers: str) -> Callable[[str, str], float] | None:
    """Return what the setting ``answers`` compares an answer with its completion by; None where nothing is generated.

    Raises:
        InputError: If there is no such function.
    """
    if answers == "none":
        return None
    if answers == "exact":
        return lambda answer, completion: float(answer.strip() == completion.strip())
    module, _, name = answers.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"answers={answers}: there is no such function ({error}); give none, exact or package.module:function, "
            "in a package that Python finds, as on PYTHONPATH."
        ) from error

    def scored(answer: str, completion: str) -> float:
        score = float(function(answer, completion))
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"{answers} gave {score} for an answer; a score is a number from 0 to 1.")
        return score

    return scored
