"""A tiny language model in a folder, tasks with one rule each, and settings with which a step takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainables.arc import Pair, Task
from trainables.arc_efe.config import EfeConfig

CONTEXT = 512


def save_language_model(folder: Path, layers: int = 2, context: int = CONTEXT) -> str:
    """Write a causal LM of random weights that reads bytes; return what the setting ``lm`` takes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"<end>": 0} | {c: 1 + i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1 + len(alphabet), hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=context, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return f"hf:{folder}"


def make_tasks(count: int = 4, pairs: int = 4, side: int = 4) -> dict[str, Task]:
    """Return tasks that each recolour 1 into a colour of their own; sizes differ from pair to pair."""
    rng = np.random.default_rng(0)

    def pair(colour: int) -> Pair:
        grid = rng.integers(0, 2, size=rng.integers(2, side + 1, size=2)).astype(np.int8)
        return Pair(grid, np.where(grid == 1, colour, grid).astype(np.int8))

    return {
        f"task{n}": Task(f"task{n}", tuple(pair(2 + n) for _ in range(pairs)), (), (pair(2 + n), pair(2 + n)), False)
        for n in range(count)
    }


def tiny_config(lm: str, **changes: object) -> EfeConfig:
    """Return settings of a tiny agent."""
    values: dict[str, object] = {
        "width": 8, "hidden": 12, "depth": 1, "steps": 2, "embedding": 16, "backward_hidden": 8, "prompt": "plain",
        "prompt_pairs": 2, "prompt_tokens": 200, "lm": lm, "lr": 5e-3, "policy_lr": 1e-2, "warmup_steps": 0,
        "batch_size": 4, "epochs": 2, "checkpoint_every": 3, "no_prompt_baseline": False, "weight_ambiguity": 0.1,
        "precision": "float32",
    }  # fmt: skip
    return EfeConfig(**(values | changes))  # type: ignore[arg-type]
