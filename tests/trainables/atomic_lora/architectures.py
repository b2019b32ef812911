"""Language models of many kinds with tiny random weights, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.trainables.atomic_lora.language_models import save_qwen2

VOCABULARY = 320
IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
DECODER: dict[str, Any] = {
    **IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
MIXTURE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def config(kind: str, **sizes: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(**sizes)


CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: config("Qwen2", **DECODER, tie_word_embeddings=True),
    "llama": lambda: config("Llama", **DECODER),
    "gpt2": lambda: config("GPT2", **IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma": lambda: config("Gemma", **DECODER, head_dim=8),
    # soft caps of attention and of logits
    "gemma2": lambda: config(
        "Gemma2", **DECODER, head_dim=8, query_pre_attn_scalar=8, sliding_window=16, final_logit_softcapping=2.0
    ),
    "cohere": lambda: config("Cohere", **DECODER, logit_scale=0.25),
    "phi": lambda: config("Phi", **{**DECODER, "num_key_value_heads": 4}),
    "opt": lambda: config(
        "OPT", **IDS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=16, max_position_embeddings=256,
    ),
    "falcon": lambda: config("Falcon", **IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "mamba": lambda: config("Mamba", **IDS, hidden_size=32, num_hidden_layers=2, state_size=4),
    "qwen2_moe": lambda: config("Qwen2Moe", **DECODER, **MIXTURE, shared_expert_intermediate_size=16),
    "mixtral": lambda: config("Mixtral", **DECODER, num_local_experts=4),
    "mpt": lambda: config("Mpt", vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config={**DECODER, "head_dim": 8}, image_token_index=5,
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 16,
        },
    ),
}  # fmt: skip


def make(name: str) -> Any:
    """Return a random model of a kind, frozen."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    # the fused product of experts is not there for float64
    more = {"experts_implementation": "eager"} if hasattr(config, "num_experts_per_tok") else {}
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **more)
    return model.eval().requires_grad_(False)


def save(name: str, folder: Path) -> str:
    """Save a random model with a tokenizer, and return it as ``--base`` names it."""
    save_qwen2(folder)
    make(name).save_pretrained(folder)
    return f"hf:{folder}"
