"""A Hugging Face causal LM as the base: grids as text, one token a cell, the recipe of test-time training.

A task is written as ``I<input>O<output>`` for each solved pair and the query, rows ended by a newline, outputs by the
end-of-sequence token. Every cell is a token of its own, whatever merges the tokenizer has, and the model's vocabulary
is cut down to the 16 tokens that occur: the loss is the cross-entropy over those, and the output head costs next to
nothing. Adapters lie on linear layers within the model, so they load on the uncut one.

The recipe is from Akyürek et al. (2024), "The Surprising Effectiveness of Test-Time Training for Few-Shot Learning",
the small vocabulary from Franzen et al. (2024), "The LLM ARChitect".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from trainables.arc import (
    BOS,
    EOS,
    MAX_TOKENS,
    PAD,
    ROW_END,
    VOCABULARY,
    Example,
    Grid,
    Task,
    decode,
    encode,
    grid_tokens,
    test_examples,
)  # fmt: skip
from trainables.atomic_lora.config import HUB
from trainables.atomic_lora.grammar import GridState
from trainables.atomic_lora.loss import all_right, cell_hits, row_losses
from trainables.atomic_lora.workload import ArcWorkload
from trainables.common import embedded
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.jobs import Job
from trainables.common.precision import has_fast_bf16
from trainables.common.pretrained import folder_fingerprint
from trainables.common.vocabulary import cut_vocabulary
from trainables.pack.plan import AdapterPlan, Size

# the marks before an input and before an output follow the tokens of grids
INPUT, OUTPUT = VOCABULARY, VOCABULARY + 1
TEXT = {**{colour: str(colour) for colour in range(10)}, ROW_END: "\n", INPUT: "I", OUTPUT: "O"}
# what ``lr_multiple`` is a multiple of: a tenth of it, the default, is the rate of the test-time training recipe
REFERENCE_LR = 1e-3
# Tokens that take a CPU as long as the fixed cost of a batch, which is mostly to read the weights once: about the ratio
# of operations to bytes a second, whatever the model's size (docs/log.md)
CPU_BATCH_OVERHEAD = 30
# and tokens that a batch of several rows may have: with so small an overhead larger ones gain nothing, and a token's
# activations take half a megabyte in SmolLM2
CPU_BATCH_TOKENS = 2_000


@dataclass(frozen=True)
class CausalLM:
    """A frozen causal LM whose vocabulary is that of this module.

    Attributes:
        model: In evaluation mode, no parameter requiring a gradient.
        starts: Whether its sequences start with a beginning-of-sequence token.
        limit: Tokens that fit into its context.
        fingerprint: 16 hex digits, see `fingerprint`.
    """

    model: Any
    starts: bool
    limit: int
    fingerprint: str


def location(base: str) -> str:
    """Return what ``from_pretrained`` loads a causal LM from: a folder, or a name on the hub.

    Raises:
        InputError: If it is an embedded model whose package is not installed.
    """
    return str(embedded.folder(base)) if base in embedded.MODELS else base.removeprefix(HUB)


def load_causal_lm(base: str, device: str = "cpu", dtype: torch.dtype | None = None) -> CausalLM:
    """Load a causal LM, frozen and cut down to the tokens of grids.

    Args:
        base: The name of a model that a package carries, such as ``smollm2``; or, after ``hf:``, the name of a model on
            the hub (or in its local cache), or a folder.
        device: Where to put it.
        dtype: Its floating-point type; by default bfloat16 where the device is fast at it, else float32.

    Raises:
        InputError: If there is no such model, or its tokenizer has no token for a digit or a mark.
    """
    model, tokenizer = load_model(base, dtype or usual_dtype(device)), load_tokenizer(base)
    cut_vocabulary(model, grid_ids(tokenizer, base))
    starts = tokenizer.bos_token_id is not None
    model = model.to(device).eval().requires_grad_(False)
    return CausalLM(model, starts, context_length(read_config(base)), fingerprint(base))


def usual_dtype(device: str) -> torch.dtype:
    """Return bfloat16 where a device is fast at it, else float32."""
    return torch.bfloat16 if has_fast_bf16(device) else torch.float32


def load_model(base: str, dtype: torch.dtype) -> Any:
    """Load a causal LM as it is. Raises InputError where there is none or its weights are not complete."""
    read_config(base)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(location(base), dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _refused(base, error) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"--base {base!r}: its files lack {len(missing)} of the model's tensors, such as {missing[0]}; "
            "get them again."
        )
    return model


def load_tokenizer(base: str) -> Any:
    """Load a causal LM's tokenizer. Raises InputError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(location(base))
    except Exception as error:  # a broken file makes the tokenizers' library raise its own plain Exception
        raise InputError(f"--base {base!r}: its tokenizer cannot be loaded ({_reason(error)}).") from error


def context_length(config: Any) -> int:
    """Return the tokens that fit into a model's context; those without a limit of their own have one of a billion."""
    text = config.get_text_config()
    # the second is MPT's name for it
    names = ("max_position_embeddings", "max_seq_len")
    return next((int(getattr(text, name)) for name in names if getattr(text, name, None)), 10**9)


def grid_ids(tokenizer: Any, base: str) -> list[int]:
    """Return a tokenizer's ids for the tokens of this module, in their order.

    Raises:
        InputError: If it has none for one of them, or the same for two.
    """
    eos = end_of_sequence(tokenizer, base)
    ids = [_token_id(tokenizer, TEXT[token], base) for token in range(ROW_END + 1)]
    # padding is never attended to
    ids += [eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id, eos, eos]
    ids += [_token_id(tokenizer, TEXT[token], base) for token in (INPUT, OUTPUT)]
    if len(set(ids[: ROW_END + 1] + ids[-2:])) < 13:
        raise InputError(f"--base {base!r}: its tokenizer gives two of {list(TEXT.values())} the same token.")
    return ids


def end_of_sequence(tokenizer: Any, base: str) -> int:
    """Return the id that ends a sequence. Raises InputError where there is none."""
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else read_config(base).eos_token_id
    eos = eos[0] if isinstance(eos, list) else eos
    if eos is None:
        raise InputError(f"--base {base!r}: its tokenizer has no end-of-sequence token; choose another model.")
    return int(eos)


def fingerprint(base: str) -> str:
    """Return 16 hex digits of a model's weights, tokenizer and configuration, wherever its folder lies.

    One on the hub is known by its name and commit. Raises InputError as loading does.
    """
    folder = Path(location(base)).expanduser()
    if folder.is_dir():
        return folder_fingerprint(folder)
    commit = getattr(read_config(base), "_commit_hash", None)
    return hashlib.sha256(f"{location(base)} {commit}".encode()).hexdigest()[:16]


def skeleton(base: str) -> nn.Module:
    """Return the model without its weights, to check names of layers at no cost. Raises InputError as loading does."""
    config = read_config(base)
    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise _refused(base, error) from error


def read_config(base: str) -> Any:
    """Return a causal LM's configuration. Raises InputError where there is none."""
    try:
        return AutoConfig.from_pretrained(location(base))
    except (OSError, ValueError) as error:
        raise _refused(base, error) from error


def _refused(base: str, error: Exception) -> InputError:
    return InputError(f"--base {base!r}: no causal language model can be loaded from there ({_reason(error)}).")


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _token_id(tokenizer: Any, text: str, base: str) -> int:
    # the last one: some tokenizers put a mark of a word's beginning before it
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not ids or ids[-1] == tokenizer.unk_token_id or tokenizer.decode(ids[-1:]).strip(" ") != text:
        raise InputError(f"--base {base!r}: its tokenizer has no token for {text!r}; choose another model.")
    return int(ids[-1])


# ---------------------------------------------------------------------------------------------------------------- text


def write(example: Example, starts: bool, limit: int) -> tuple[list[int], list[int]]:
    """Return prompt and answer of an example as tokens, with as many of its context pairs as fit into ``limit``.

    Raises:
        ValueError: If not even the query fits.
    """
    answer = encode(example.query.output)[0].tolist()
    query = [INPUT, *_rows(example.query.input), OUTPUT]
    shown = [[INPUT, *_rows(pair.input), OUTPUT, *encode(pair.output)[0].tolist()] for pair in example.context]
    start = [BOS] if starts else []
    room = max(len(answer), answer_room(example))
    while shown and len(start) + sum(map(len, shown)) + len(query) + room > limit:
        shown.pop()
    prompt = [*start, *(token for pair in shown for token in pair), *query]
    if len(prompt) + len(answer) > limit:
        raise ValueError(f"An example has {len(prompt) + len(answer)} tokens; the base reads at most {limit}.")
    return prompt, answer


def answer_room(example: Example) -> int:
    """Return how many tokens an answer may need, as the shown pairs suggest: as large as their largest output, or in
    the greatest ratio of output to input that any of them has; `MAX_TOKENS` where none is shown."""
    if not example.context:
        return MAX_TOKENS
    sizes = [(grid_tokens(pair.input), grid_tokens(pair.output)) for pair in example.context]
    growth = max(after / before for before, after in sizes)
    return min(MAX_TOKENS, max(*(after for _, after in sizes), math.ceil(growth * grid_tokens(example.query.input))))


def context_pairs(example: Example, starts: bool, limit: int) -> int:
    """Return how many of an example's context pairs fit into ``limit``; 0 where not even its query does."""
    try:
        return write(example, starts, limit)[0].count(INPUT) - 1
    except ValueError:
        return 0


def prompt_text(example: Example, tokenizer: Any) -> str:
    """Return the prompt of an example as text, for the uncut model.

    A tokenizer that merges none of its characters, such as SmolLM2's, turns it into the tokens that adapters are
    trained on.
    """
    starts = tokenizer.bos_token is not None
    spelled = {**TEXT, BOS: tokenizer.bos_token, EOS: tokenizer.eos_token}
    return "".join(spelled[token] for token in write(example, starts, tokenizer.model_max_length)[0])


def _rows(grid: Grid) -> list[int]:
    return encode(grid)[0][:-1].tolist()


def left_padded(rows: Sequence[Sequence[int]], padding: int = PAD) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both [N, T]; no row is empty."""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        mask[index, width - len(row) :] = 1
        ids[index, width - len(row) :] = row
    return torch.from_numpy(ids), torch.from_numpy(mask)


# ------------------------------------------------------------------------------------------------------------ workload


def kind_of_layer(layer: str) -> str:
    """Return the component of a layer, such as ``q_proj``: all layers of a kind in one."""
    return layer.rpartition(".")[2]


class CausalLMWorkload(ArcWorkload):
    """Adapters of a causal LM.

    Args:
        base: The frozen model.
        base_name, tasks, folder, target_modules, bf16: See `ArcWorkload`.
    """

    task_type = "CAUSAL_LM"
    component = staticmethod(kind_of_layer)

    def __init__(
        self,
        base: CausalLM,
        base_name: str,
        tasks: Mapping[str, Task],
        folder: Folder,
        target_modules: Sequence[str],
        bf16: bool,
    ) -> None:
        super().__init__(base.model, location(base_name), REFERENCE_LR, tasks, folder, target_modules, bf16)
        self.base, self.model, self.fingerprint = base, base.model, base.fingerprint
        if self.device.type == "cpu":
            self.cost = replace(self.cost, overhead=CPU_BATCH_OVERHEAD, limit=CPU_BATCH_TOKENS)

    def plan(self, job: Job) -> AdapterPlan[Example]:
        """As for every base, with the mean number of demonstrations that fit beside a held-out query."""
        plan = super().plan(job)
        shown = [
            context_pairs(example, self.base.starts, self.base.limit)
            for example in test_examples(self.tasks[job.task_id])
        ]
        return replace(plan, facts={**plan.facts, "context_pairs": float(np.mean(shown))})

    def size(self, row: Example) -> Size:
        """Tokens of prompt and answer together."""
        prompt, answer = write(row, self.base.starts, self.base.limit)
        return Size((len(prompt) + len(answer),), len(prompt) + len(answer), len(answer))

    def score(self, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over each row's answer, [N], and whether all of it is right, [N]."""
        logits, tokens = self._teacher_forced(rows)
        return row_losses(logits, tokens)[0], all_right(logits, tokens)

    def solve(self, rows: Sequence[Example]) -> tuple[list[Grid | None], list[int], list[int]]:
        """Decode the rows with the model's own ``generate`` under the grammar of grids."""
        logits, answers = self._teacher_forced(rows)
        hits, cells = (t.tolist() for t in cell_hits(logits, answers))
        prompts = [write(row, self.base.starts, self.base.limit)[0] for row in rows]
        ids, mask = (t.to(self.device) for t in left_padded(prompts))
        state = GridState(len(rows), self.device)
        options = GenerationConfig(
            do_sample=False, max_new_tokens=min(MAX_TOKENS, self.base.limit - ids.shape[1]), pad_token_id=PAD,
            eos_token_id=EOS, bos_token_id=BOS,
        )  # fmt: skip
        with self._autocast():
            written = self.model.generate(
                ids, attention_mask=mask, generation_config=options,
                logits_processor=LogitsProcessorList([GridGrammar(state, ids.shape[1])]),
            )  # fmt: skip
        spelled = written[:, ids.shape[1] :].tolist()
        return list(map(decode, spelled)), hits, cells

    def _teacher_forced(self, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Return logits [N, U, 16] and tokens [N, U] of the answers."""
        written = [write(row, self.base.starts, self.base.limit) for row in rows]
        # the last token of an answer is only predicted
        ids, mask = (t.to(self.device) for t in left_padded([[*prompt, *answer][:-1] for prompt, answer in written]))
        longest = max(len(answer) for _, answer in written)
        answers = torch.full((len(rows), longest), PAD)
        for index, (_, answer) in enumerate(written):
            answers[index, longest - len(answer) :] = torch.tensor(answer, dtype=torch.long)
        with self._autocast():
            logits = last_logits(self.model, ids, mask, longest)
        return logits, answers.to(self.device)


def last_logits(model: Any, ids: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return the logits [N, count, V] of the last ``count`` places of left-padded rows [N, T]."""
    return model(
        input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False,
        logits_to_keep=count,
    ).logits  # fmt: skip


class GridGrammar(LogitsProcessor):
    """Offers `generate` only the tokens that can stand at the next position of each row's grid.

    Args:
        state: The grids, nothing written yet.
        prompt: Tokens of the prompts.
    """

    def __init__(self, state: GridState, prompt: int) -> None:
        self._state, self._prompt = state, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > self._prompt:
            self._state.write(input_ids[:, -1])
        allowed = self._state.allowed()
        # a grid that is complete ends again: `generate` pads it, and stops when all are
        allowed[self._state.done] = False
        allowed[self._state.done, EOS] = True
        return scores.masked_fill(~F.pad(allowed, (0, scores.shape[1] - VOCABULARY)), -torch.inf)
