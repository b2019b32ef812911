"""The check of a causal LM before anything starts: its files, its tokenizer, its layers, and what the tasks ask of it.

`trainables.atomic_lora.bases.check_base` runs it in a process of its own, ``python -m
trainables.atomic_lora.base_check``: a request as JSON comes in, an answer goes out. Nothing here loads the weights: a
copy of the model with a few small layers shows whether adapters can be trained on layers of its kind.
"""

from __future__ import annotations

import copy
import json
import logging
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from trainables.arc import load_tasks, test_examples
from trainables.atomic_lora.causal_lm import (
    context_length,
    context_pairs,
    end_of_sequence,
    fingerprint,
    grid_ids,
    load_tokenizer,
    location,
    read_config,
    skeleton,
)
from trainables.atomic_lora.config import TextConfig
from trainables.atomic_lora.text_tokens import task_tokens
from trainables.atomic_lora.text_workload import comparison, text_config
from trainables.atomic_lora.token_losses import require_separable_head
from trainables.common.errors import InputError
from trainables.pack.bank import AdapterBank, AdapterPack, initial_factors
from trainables.texts import find_tasks, load_task
from trainables.texts import fingerprint as text_fingerprint

log = logging.getLogger(__name__)

LFS = b"version https://git-lfs"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
EXPERTS = ".experts."
# sizes of the small copy, for the names that configurations give them
SMALL = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "word_embed_proj_dim": 64, "intermediate_size": 96, "ffn_dim": 96,
    "n_inner": 96, "head_dim": 16, "rotary_dim": 16, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
HEADS, KEY_VALUE_HEADS, LAYERS = (
    ("num_attention_heads", "n_head"),
    "num_key_value_heads",
    ("num_hidden_layers", "n_layer"),
)


def check(request: Mapping[str, Any]) -> dict[str, Any]:
    """Look at a base.

    Args:
        request: ``base``; ``targets``, each choice of layers; and what the adapters are for: ``grids`` with ``data``
            and ``tasks``, or ``texts`` with ``data`` and the complete configuration of each task in ``configs``.

    Returns:
        ``fingerprint``; ``parameters``; ``layers`` and ``share``, the adapted layers and their part of the parameters,
        of the choice that adapts most; ``notes``, sentences for the user; ``tasks``, what is known of each text task.

    Raises:
        InputError: If the base cannot be loaded or adapted, or does not go with the tasks.
    """
    base = request["base"]
    check_files(Path(location(base)).expanduser())
    config, tokenizer = read_config(base), load_tokenizer(base)
    if not tokenizer("A b 1").input_ids:
        raise InputError(f"--base {base!r}: its tokenizer finds no token in a text; get its files again.")
    adapted: dict[str, tuple[int, int]] = {}
    notes: list[str] = []
    for modules in request["targets"]:
        model: Any = skeleton(base)
        found, tried = check_layers(base, model, modules)
        adapted = max(adapted, found, key=len)
        if not tried:
            notes = [f"--base {base!r}: no small copy of {type(model).__name__} runs, so its layers are not tried."]
    rows = model.get_input_embeddings().weight.shape[0]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tasks: dict[str, Any] = {}
    eos = end_of_sequence(tokenizer, base)
    require_ids(base, [eos], rows, "end-of-sequence id")
    if "texts" in request:
        check_head(base, config)
        tasks = check_texts(base, tokenizer, eos, rows, context_length(config), **request["texts"])
        notes += [text for name, about in tasks.items() for text in _too_long(name, about)]
    if "grids" in request:
        require_ids(base, grid_ids(tokenizer, base), rows, "ids of digits and marks")
        notes += check_grids(base, tokenizer, context_length(config), **request["grids"])
    return {
        "fingerprint": fingerprint(base),
        "parameters": parameters,
        "layers": len(adapted),
        "share": sum(inputs * outputs for inputs, outputs in adapted.values()) / parameters,
        "notes": notes,
        "tasks": tasks,
    }


# --------------------------------------------------------------------------------------------------------------- files


def check_files(folder: Path) -> None:
    """Refuse a folder whose files are not all there or not whole; a name on the hub is none.

    Raises:
        InputError: If a file is a Git LFS pointer, weights are cut short, or a shard is missing.
    """
    if not folder.is_dir():
        return
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for file in files:
        try:
            with file.open("rb") as stream:
                begins = stream.read(len(LFS))
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error}.") from error
        if begins == LFS:
            raise InputError(f"{file} is a Git LFS pointer instead of the file itself; run 'git lfs pull' there.")
    names = {file.name for file in files}
    index = next((name for name in INDEXES if name in names), None)
    if not names & set(WHOLE) and index is None:
        there = [name for name in sorted(names) if name.endswith((".safetensors", ".bin"))]
        raise InputError(
            f"{folder} has no weights: neither {WHOLE[0]} nor {INDEXES[0]}" + (f", but {there[0]}." if there else ".")
        )
    shards = {next(name for name in WHOLE if name in names)} if names & set(WHOLE) else _shards(folder / str(index))
    if missing := sorted(shards - names):
        raise InputError(f"{folder} lacks {len(missing)} of its {len(shards)} files of weights, such as {missing[0]}.")
    for name in sorted(shards):
        if not _is_whole(folder / name):
            raise InputError(f"{folder / name} is cut short or no file of weights; copy it again.")


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is no index of weights: {error!r}.") from error


def _is_whole(file: Path) -> bool:
    """Return whether a file of weights covers what it says that it holds."""
    with file.open("rb") as stream:
        begins = stream.read(8)
        if file.suffix != ".safetensors":
            # a zip archive has its directory at its end; torch's older format says nothing of its size
            return zipfile.is_zipfile(file) if begins.startswith(b"PK") else len(begins) == 8
        try:
            (length,) = struct.unpack("<Q", begins)
            header = json.loads(stream.read(length)) if length < file.stat().st_size else {}
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (struct.error, ValueError, KeyError, TypeError, IndexError):
            return False
    return bool(ends) and file.stat().st_size >= 8 + length + max(ends)


# -------------------------------------------------------------------------------------------------------------- layers


def check_layers(base: str, model: Any, modules: Sequence[str]) -> tuple[dict[str, tuple[int, int]], bool]:
    """Wrap the layers that a choice means, and try them on a small copy of the model.

    Args:
        base: The base, for messages.
        model: It, without weights.
        modules: The choice.

    Returns:
        In and out features of the layers by name; and whether a copy was there to try them on.

    Raises:
        InputError: If a target means nothing that can be adapted, or an adapter would do nothing or break the model.
    """
    said, kind = f"--base {base!r}", type(model).__name__
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is head]
    experts = [name for name, _ in model.named_parameters() if EXPERTS in name]
    for target in modules:
        if any(name == target or name.endswith(f".{target}") for name in heads):
            raise InputError(f"{said}: {target!r} is the output head of {kind}, which cannot be adapted; leave it out.")
        if any(name.endswith(f".{target}") or f".{target}." in name[name.index(EXPERTS) :] for name in experts):
            raise InputError(f"{said}: {target!r} names experts of a mixture ({kind}), which cannot be adapted.")
    pack = AdapterPack(model, modules)
    linear = [name for name in pack.layers if EXPERTS not in name]
    if experts and ("all-linear" in modules or len(linear) < len(pack.layers)):
        inside = sum(parameter.numel() for name, parameter in model.named_parameters() if EXPERTS in name)
        share = inside / sum(parameter.numel() for parameter in model.parameters())
        names = ",".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
        raise InputError(
            f"{said}: {kind} is a mixture of experts, and its experts ({share:.1%} of the parameters, such as "
            f"{experts[0]}) cannot be adapted; name what is to be, as in --set target_modules={names}."
        )
    kinds = {name.rpartition(".")[2] for name in pack.layers}
    for small in _small_copies(model.config):
        if not _runs(small):
            continue
        try:
            dead = _dead_layers(small, kinds)
        except Exception as error:  # whatever a model's own code raises
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise InputError(f"{said}: adapters on {', '.join(sorted(kinds))} of {kind} fail ({reason}).") from error
        if dead:
            raise InputError(
                f"{said}: an adapter on {', '.join(dead)} of {kind} gets no gradient from text; leave it out of "
                "target_modules."
            )
        return pack.layers, True
    return pack.layers, False


def check_head(base: str, config: Any) -> None:
    """Try the output head on a small copy, as losses of text tasks need it.

    Raises:
        InputError: If its logits cannot be computed for some tokens alone.
    """
    small = next(filter(_runs, _small_copies(config)), None)
    if small is not None:
        require_separable_head(small, f"--base {base!r}")


def _small_copies(config: Any) -> Iterator[Any]:
    """Yield random models of a configuration's kind: a small one, and one that only has few layers."""
    for changes in (SMALL, {name: SMALL[name] for name in SMALL if name.endswith(("vocab_size", "_token_id"))}):
        try:
            small = copy.deepcopy(config)
            _shrink(small.get_text_config(), changes)
            torch.manual_seed(0)
            # layers of full width take much memory
            dtype = torch.float32 if changes is SMALL else torch.bfloat16
            yield AutoModelForCausalLM.from_config(small, dtype=dtype).eval().requires_grad_(False)
        except Exception as error:  # sizes that do not go together; the next copy keeps more of them
            log.info("No copy with %s: %r", changes, error)


def _shrink(config: Any, changes: Mapping[str, int]) -> None:
    # what is derived from other settings, or named by another name, is not set
    own = {name for name, value in vars(config).items() if value is not None}
    types = list(dict.fromkeys(config.layer_types)) if "layer_types" in own else []
    layers = max(2, len(types))
    if types:
        config.layer_types = (types * 2)[:layers]
    for name in own.intersection(LAYERS):
        setattr(config, name, layers)
    for name in own & changes.keys():
        setattr(config, name, changes[name])
    if changes is SMALL:
        heads = next((getattr(config, name) for name in HEADS if name in own), 4)
        for name in own.intersection(HEADS):
            setattr(config, name, 4)
        if KEY_VALUE_HEADS in own:
            shared = getattr(config, KEY_VALUE_HEADS)
            setattr(config, KEY_VALUE_HEADS, 4 if shared == heads else min(2, shared))


def _runs(model: Any) -> bool:
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([[3, 4], [5, 6]]), use_cache=False)
    except Exception:  # whatever a model's own code raises
        return False
    return True


def _dead_layers(model: nn.Module, kinds: set[str]) -> list[str]:
    """Return the kinds of layers whose adapters get no gradient from two tokens of each of two adapters."""
    own = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    pack = AdapterPack(model, sorted(kinds & own))
    bank = AdapterBank(pack.layers, 2, 2)
    for slot in range(2):
        bank.write(slot, initial_factors(pack.layers, list(pack.layers), 2, slot), 2.0)
    trained = bank.take(torch.arange(2), trainable=True)
    with pack.use(trained, [0, 1]):
        logits = model(input_ids=torch.tensor([[3, 4], [5, 6]]), use_cache=False).logits
    # every logit's own loss: one alone may not depend on a layer
    logits.square().sum().backward()
    assert trained.grad is not None
    alive = {
        name.rpartition(".")[2]
        for name, place in trained.columns.items()
        if bool((trained.grad[:, place.middle : place.end] != 0).any())
    }
    return sorted(kinds & own - alive)


# --------------------------------------------------------------------------------------------------------------- tasks


def require_ids(base: str, ids: Sequence[int], rows: int, what: str) -> None:
    """Raise InputError where an id lies behind the last row of the embeddings."""
    if max(ids) >= rows:
        raise InputError(
            f"--base {base!r}: its {what} reach {max(ids)}, behind the last of {rows} embedding rows; tokenizer and "
            "weights are not of one model."
        )


def check_texts(
    base: str, tokenizer: Any, eos: int, rows: int, limit: int, data: str, configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Write text tasks as tokens; return of each its fingerprint, tokens, and how many rows it has and has not.

    Raises:
        InputError: If a task cannot be read or written, or nothing of it fits.
    """
    files, found = find_tasks(data), {}
    for task_id, values in configs.items():
        config: TextConfig = text_config(values)
        comparison(config.answers)
        task = load_task(task_id, files[task_id])
        tokens = task_tokens(task, tokenizer, eos, limit, config)
        examples = (*tokens.train, *tokens.validation, *tokens.test)
        require_ids(base, [id_ for example in examples for id_ in example.ids], rows, f"ids of the task {task_id}")
        epoch = sum(len(example.ids) for example in tokens.train)
        drawn = min(config.examples_per_epoch or len(tokens.train), len(tokens.train))
        found[task_id] = {
            "fingerprint": text_fingerprint(task),
            "epoch_tokens": epoch * drawn // len(tokens.train),
            "test_tokens": sum(len(example.ids) for example in tokens.test),
            "answer_tokens": config.answer_tokens * len(tokens.test) if config.answers != "none" else 0,
            "rows": len(examples),
            "cut": tokens.cut,
            "left_out": tokens.left_out,
            "repeats": task.repeats,
            "most": min(limit, config.max_tokens),
        }
    return found


def _too_long(name: str, about: Mapping[str, Any]) -> Iterator[str]:
    for kind, said in (("cut", "cut at their end"), ("left_out", "left out")):
        if about[kind]:
            yield f"{name}: {about[kind]} rows are longer than {about['most']} tokens and are {said}."


def check_grids(base: str, tokenizer: Any, limit: int, data: str, tasks: Sequence[str]) -> list[str]:
    """Return a warning where demonstrations of ARC tasks do not fit into a base's context."""
    examples = [example for task in load_tasks(data, tasks).values() for example in test_examples(task)]
    starts = tokenizer.bos_token_id is not None
    shown = [context_pairs(example, starts, limit) for example in examples]
    fewer = sum(count < len(example.context) for count, example in zip(shown, examples, strict=True))
    if not fewer:
        return []
    return [
        f"--base {base!r} reads {limit} tokens: {fewer} of {len(examples)} test examples are shown fewer "
        f"demonstrations than there are, {shown.count(0)} of them none (column context_pairs)."
    ]


if __name__ == "__main__":
    try:
        print(json.dumps(check(json.loads(sys.stdin.read()))))
    except InputError as refusal:
        print(json.dumps({"refusal": str(refusal)}))
