"""Teacher and student: causal language models with one vocabulary, cut alike."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from trainables.common import embedded
from trainables.common.errors import InputError
from trainables.common.vocabulary import cut_vocabulary

# a student that is made of its teacher
LAYERS = re.compile(r"layers:([1-9]\d*)")
# the adapter that ships: SmolLM2-135M-Instruct taught by the expert of the generated tasks
SHIPPED_TEACHER = Path(__file__).parent / "teacher"


def location(name: str) -> str:
    """Return what ``from_pretrained`` loads a model from: the folder of an embedded one, or the name itself."""
    return str(embedded.folder(name)) if name in embedded.MODELS else name


def load_tokenizer(name: str) -> Any:
    """Return a model's tokenizer. Raises InputError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(location(name))
    except (OSError, ValueError) as error:
        raise _refused(name, error) from error


def load_model(name: str, device: str, adapter: str | None = None) -> Any:
    """Return a causal LM in float32 with an adapter of PEFT merged into it.

    Raises:
        InputError: If there is no such model or adapter.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(location(name), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _refused(name, error) from error
    if adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"The teacher's adapter cannot be loaded from {adapter} ({error}).") from error
    return model.to(device)


def layer_count(name: str) -> int:
    """Return the number of layers of a model. Raises InputError where there is none."""
    try:
        return int(AutoConfig.from_pretrained(location(name)).get_text_config().num_hidden_layers)
    except (OSError, ValueError) as error:
        raise _refused(name, error) from error


def first_layers(model: Any, count: int) -> Any:
    """Keep a model's embeddings, first ``count`` layers and final norm, in place."""
    model.model.layers = nn.ModuleList(model.model.layers[:count])
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:count]
    return model


def cut_model(model: Any, kept: Sequence[int] | None) -> Any:
    """Cut a model's vocabulary in place; None leaves it as it is."""
    if kept is not None:
        cut_vocabulary(model, kept)
    return model


def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states [B, T, H] of rows padded on the right."""
    return model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def require_same_vocabulary(teacher: Any, student: Any) -> None:
    """Raise InputError unless two tokenizers give the same tokens the same ids: no divergence exists otherwise."""
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours == theirs:
        return
    differs = next((token for token in sorted(ours) if ours[token] != theirs.get(token)), "tokens of its own")
    raise InputError(
        f"Teacher and student have different vocabularies ({len(ours)} and {len(theirs)} tokens, first difference "
        f"{differs!r}), so their distributions cannot be compared; choose a student with the teacher's tokenizer."
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return 16 hex digits of a tokenizer's vocabulary."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()[:16]


def _refused(name: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0].rstrip(".")
    return InputError(f"No causal language model can be loaded from {name!r} ({reason}).")
