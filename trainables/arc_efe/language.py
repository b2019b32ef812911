"""The language model: embeddings of prompts by their mean hidden state, and rules as JSON that it writes.

Embeddings of a frozen model and rules are computed once for a set of texts and kept in the cache folder of
`trainables.common.embedded`, by model and text.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from trainables.common import embedded, pretrained
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.common.precision import has_fast_bf16

HUB = "hf:"
# tokens of a rule that a language model writes, at most
RULE_TOKENS = 24
BATCH_TOKENS = 4096


class LanguageModel(nn.Module):
    """The first layers of a pre-trained language model, as an encoder of texts.

    Args:
        name: A model of `trainables.common.embedded.MODELS`, or ``hf:`` and a name on the hub or a folder.
        layers: Its first layers that are kept; 0 keeps all.
        limit: Tokens of a text, at most; the model's own context limits them, too.
        device: Where it computes.
        lora_rank: Rank of LoRA adapters on all its linear layers; 0 leaves it frozen.

    Attributes:
        width: Of its hidden states.
        cut: Texts cut so far because they were too long.

    Raises:
        InputError: If there is no such model, or it has no hidden states of its tokens.
    """

    def __init__(self, name: str, layers: int, limit: int, device: str, lora_rank: int = 0) -> None:
        super().__init__()
        config = read_config(name, layers)
        text, place = config.get_text_config(), _place(name)
        dtype = torch.bfloat16 if has_fast_bf16(device) and not lora_rank else torch.float32
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place)
            model: Any = _quietly(lambda: AutoModel.from_pretrained(place, config=config, dtype=dtype))
        except (OSError, ValueError) as error:
            raise InputError(f"lm {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        self.width = int(text.hidden_size)
        self.limit = min(limit, int(getattr(text, "max_position_embeddings", None) or limit))
        self.cut = 0
        model.requires_grad_(False)
        if lora_rank:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(
                model, LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear")
            )
        self.model = model.to(device).eval()
        self.device = device

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts, each cut to the limit; ``cut`` counts those that were."""
        ids = self.tokenizer(list(texts), add_special_tokens=True)["input_ids"]
        self.cut += sum(len(row) > self.limit for row in ids)
        return [row[: self.limit] for row in ids]

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the mean hidden state of each row of tokens, float32 [N, width]."""
        longest = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        output = self.model(input_ids=ids, attention_mask=mask)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise InputError(f"{type(self.model).__name__} gives no hidden states; give lm another model.")
        weights = mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)

    @torch.no_grad()
    def embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the mean hidden states of many rows, without gradient, on the CPU: float32 [N, width]."""
        found = torch.zeros(len(rows), self.width)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        while order:
            some = order[-max(1, BATCH_TOKENS // len(rows[order[-1]])) :]
            del order[-len(some) :]
            found[some] = self([rows[place] for place in some]).cpu()
        return found


def read_config(name: str, layers: int) -> Any:
    """Return the configuration of a language model cut down to its first ``layers`` (0: all).

    Raises:
        InputError: If there is no such model, it has fewer layers, or it has no hidden states of tokens.
    """
    place = _place(name)
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise InputError(f"lm {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    text = config.get_text_config()
    depth = getattr(text, "num_hidden_layers", None)
    if not depth or not getattr(text, "hidden_size", None) or not getattr(text, "vocab_size", None):
        raise InputError(f"lm {name!r} has no hidden states of tokens; give a transformer that reads text.")
    if layers > depth:
        raise InputError(f"lm_layers is {layers}, but {name!r} has {depth} layers; give at most that.")
    if layers:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    return config


def frozen_embeddings(name: str, layers: int, limit: int, device: str, texts: Sequence[str]) -> tuple[Tensor, int]:
    """Return the embeddings of texts by a frozen model, float32 [N, width], and how many of the texts were cut.

    Equal texts are computed once, and what was computed is kept for the next run.
    """
    different = sorted(set(texts))
    place = {text: row for row, text in enumerate(different)}

    def compute() -> dict[str, np.ndarray]:
        model = LanguageModel(name, layers, limit, device)
        rows = model.tokens(different)
        return {"embeddings": model.embed(rows).numpy(), "cut": np.array(model.cut)}

    key = json.dumps(["embeddings", fingerprint(name), layers, limit, has_fast_bf16(device), different])
    kept = _cached(key, compute)
    return torch.from_numpy(kept["embeddings"])[[place[text] for text in texts]], int(kept["cut"])


def write_rules(name: str, limit: int, device: str, requests: Sequence[str]) -> list[str]:
    """Return what a language model writes after each request, greedily, up to a quotation mark or `RULE_TOKENS`.

    A request that is too long loses its beginning, so that the model sees what is asked of it.
    """

    def compute() -> dict[str, np.ndarray]:
        return {"rules": np.array(_write(name, limit, device, requests), dtype=np.str_)}

    key = json.dumps(["rules", fingerprint(name), limit, RULE_TOKENS, has_fast_bf16(device), list(requests)])
    return [str(rule) for rule in _cached(key, compute)["rules"]]


def known_as(name: str) -> str:
    """Return what a run knows a model by: its content where it lies in a folder, else its name."""
    folder = Path(name.removeprefix(HUB)).expanduser()
    return fingerprint(name) if name.startswith(HUB) and folder.is_dir() else name


def fingerprint(name: str) -> str:
    """Return what tells models apart in the cache, wherever they lie."""
    return pretrained.fingerprint(name.removeprefix(HUB))


@torch.no_grad()
def _write(name: str, limit: int, device: str, requests: Sequence[str]) -> list[str]:
    place = _place(name)
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place)
        model: Any = _quietly(lambda: AutoModelForCausalLM.from_pretrained(place, dtype=dtype))
    except (OSError, ValueError) as error:
        raise InputError(f"lm {name!r} cannot write rules: {str(error).splitlines()[0]}") from error
    model = model.to(device).eval()
    tokenizer.padding_side, tokenizer.truncation_side = "left", "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rules: dict[str, str] = {}
    ordered = sorted(set(requests), key=len)
    while ordered:
        some = ordered[-max(1, BATCH_TOKENS // min(limit, len(ordered[-1]))) :]
        del ordered[-len(some) :]
        inputs = tokenizer(some, return_tensors="pt", padding=True, truncation=True, max_length=limit).to(device)
        written = model.generate(
            **inputs, max_new_tokens=RULE_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        for text, row in zip(some, written[:, inputs["input_ids"].shape[1] :], strict=True):
            rules[text] = tokenizer.decode(row, skip_special_tokens=True).split('"')[0].strip()
    return [rules[text] for text in requests]


def _place(name: str) -> str:
    if name in embedded.MODELS:
        return str(embedded.folder(name))
    if name.startswith(HUB):
        return str(Path(name.removeprefix(HUB)).expanduser()) if "~" in name else name.removeprefix(HUB)
    raise InputError(f"lm {name!r} is not one of {', '.join(embedded.MODELS)}; or write hf:NAME_OR_FOLDER.")


def _cached(key: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return what is kept under a key; what is missing or damaged is computed."""
    folder = Folder(embedded.cache_folder() / "arc_efe")
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    data = folder.read(name)
    if data is not None:
        try:
            with np.load(io.BytesIO(data)) as kept:
                return dict(kept)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            logging.get_logger(__name__).warning(
                "%s is damaged (%s): what it held is computed again.", folder.path(name), error
            )
    found = compute()
    out = io.BytesIO()
    np.savez(out, **cast(Any, found))
    folder.write(name, out.getvalue())
    return found


def _quietly(load: Callable[[], Any]) -> Any:
    # the layers that are left out are reported as unexpected weights
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
