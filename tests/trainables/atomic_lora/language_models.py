"""Small language models with tokenizers of both common kinds, made on the spot and saved as the hub's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)  # fmt: skip

CORPUS = ["0123456789 12 345 a grid of 00 and 11", "I am an Output and an Input\n\nof lines\n"] * 3
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip


def save_qwen2(folder: Path, **sizes: Any) -> Path:
    """Byte-level BPE without a beginning-of-sequence token; input and output embeddings are one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES | sizes, vocab_size=320, tie_word_embeddings=True)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


CHAT = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|end|>\n' }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


def save_chat(folder: Path) -> Path:
    """`save_qwen2` with a chat template."""
    tokenizer: Any = AutoTokenizer.from_pretrained(save_qwen2(folder))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def save_llama(folder: Path, **sizes: Any) -> Path:
    """BPE that marks the beginnings of words and falls back to bytes, with beginning and end of sequence."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.train_from_iterator(
        [text.replace("\n", " ") for text in CORPUS], trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**SIZES | sizes, vocab_size=len(tokenizer.get_vocab()) + 8)).save_pretrained(folder)
    return folder
