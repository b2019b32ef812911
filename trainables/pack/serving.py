"""Whether the servers that take PEFT adapters would load one: the names, ranks and types that they ask for.

These are the rules of vLLM (``vllm/lora``, ``vllm/config/lora.py``) and of SGLang (``sglang/srt/lora``) as read in
their sources, as far as an adapter's own files can break them; neither server has been run with one. Which models a
server has LoRA layers for, and the ``--max-lora-rank`` that it was started with, is not known here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import safe_open

TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
# the largest --max-lora-rank that vLLM has; it takes any rank up to the one it was started with
VLLM_RANK = 512
# the layers that SGLang has LoRA for, by the last part of their names
SGLANG_LAYERS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj",
)  # fmt: skip
TYPES = ("F32", "F16", "BF16")


def unservable(folder: Path) -> dict[str, str]:
    """Return why a server would not load the adapter in a folder, by the server's name; ``""`` where it would."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks: set[int] = set()
    problems: list[str] = []
    sides: dict[str, set[str]] = {}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():
            found, piece = TENSOR.fullmatch(name), file.get_slice(name)
            if found is None:
                problems.append(f"the tensor {name} is not called base_model.model.<layer>.lora_A.weight or lora_B")
                continue
            sides.setdefault(found["layer"], set()).add(found["side"])
            ranks.add(piece.get_shape()[0 if found["side"] == "A" else 1])
            if piece.get_dtype() not in TYPES:
                problems.append(f"{name} is of type {piece.get_dtype()}")
    problems += [f"{layer} lacks lora_{'AB'['A' in own]}" for layer, own in sides.items() if len(own) < 2]
    if ranks != {config["r"]}:
        problems.append(f"its tensors have the ranks {sorted(ranks)} and its configuration {config['r']}")
    refused = {"bias": "none", "use_dora": False, "modules_to_save": None}
    problems += [
        f"{name} is {config[name]!r}" for name, wanted in refused.items() if config.get(name, wanted) != wanted
    ]
    too_large = [f"its rank {config['r']} is above {VLLM_RANK}"] if config["r"] > VLLM_RANK else []
    unknown = sorted({layer.rpartition(".")[2] for layer in sides} - {*SGLANG_LAYERS})
    foreign = [f"it has no LoRA for {', '.join(unknown)}"] if unknown else []
    return {"vLLM": "; ".join(problems + too_large), "SGLang": "; ".join(problems + foreign)}
