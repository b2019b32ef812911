"""The network of both agents that read text: a pre-trained encoder with LoRA and heads that say what each word is.

The decomposition agent (HRM) reads a problem. The refinement agent (TRM) reads it together with a candidate labelling,
whose labels are embedded and added to the words' embeddings; it says what each word is in the next candidate, and how
likely the given one is right. Words are aligned with the tokenizer's pieces: a word is read at its first piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.common import embedded
from trainables.common.errors import InputError
from trainables.common.precision import has_fast_bf16
from trainables.reasoning_agents.config import AgentsConfig
from trainables.reasoning_agents.problems import DEEPEST, START, Labelling, Problem

# kinds of label: their number of values, in the order of `Labelling`
KINDS = {"tags": 4, "roles": 5, "operations": 3, "depths": DEEPEST + 1}
PROJECTIONS = ("query", "key", "value", "query_proj", "key_proj", "value_proj", "q_proj", "k_proj", "v_proj")
# problems of a forward pass where nothing is trained
READ_AT_ONCE = 32


def backbone_folder(name: str) -> str:
    """Return what ``from_pretrained`` loads for a name: the folder of an embedded model, or the name itself."""
    return str(embedded.folder(name)) if name in embedded.MODELS else name


@dataclass
class Batch:
    """Problems as tensors: B problems, T pieces, W words (padded).

    Attributes:
        ids, mask: ``[B, T]``.
        pieces: ``[B, W]``, the first piece of each word.
        words: ``[B, W]``, 1 where there is a word.
        gold: ``[B, W, 4]``, labels in the order of `KINDS`.
    """

    ids: Tensor
    mask: Tensor
    pieces: Tensor
    words: Tensor
    gold: Tensor


class Tokens:
    """Turns problems into batches with the tokenizer of an encoder."""

    def __init__(self, backbone: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(backbone_folder(backbone), use_fast=True, add_prefix_space=True)
        self._pieces: dict[str, list[int]] = {}

    def batch(self, problems: Sequence[Problem], device: str) -> Batch:
        """Return the batch of problems, on a device."""
        rows = [self._row(problem.read) for problem in problems]
        longest = max(len(ids) for ids, _ in rows)
        most = max(len(places) for _, places in rows)
        ids = torch.full((len(rows), longest), self._tokenizer.pad_token_id)
        mask, words = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), most)
        pieces = torch.zeros(len(rows), most, dtype=torch.long)
        for row, (own, places) in enumerate(rows):
            ids[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), 1
            pieces[row, : len(places)], words[row, : len(places)] = torch.tensor(places), 1
        gold = labels_tensor([problem.gold for problem in problems], most)
        return Batch(*(tensor.to(device) for tensor in (ids, mask, pieces, words, gold)))

    def _row(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        ids, places = [self._tokenizer.cls_token_id], []
        for word in words:
            if word not in self._pieces:
                self._pieces[word] = self._tokenizer.encode(word, add_special_tokens=False) or [
                    self._tokenizer.unk_token_id
                ]
            places.append(len(ids))
            ids += self._pieces[word]
        return [*ids, self._tokenizer.sep_token_id], places


def labels_tensor(labellings: Sequence[Labelling], words: int) -> Tensor:
    """Return labellings as ``[B, words, 4]``, in the order of `KINDS`, padded with 0."""
    tensor = np.zeros((len(labellings), words, len(KINDS)), dtype=np.int64)
    for row, labelling in enumerate(labellings):
        for kind, name in enumerate(KINDS):
            values = getattr(labelling, name)
            tensor[row, : len(values), kind] = values
    return torch.from_numpy(tensor)


class Tagger(nn.Module):
    """An encoder with LoRA, heads for each kind of label and, to refine, an input of labels and a head of the score.

    Args:
        backbone: A name of `trainables.common.embedded`, a folder, or a name of the hub.
        config: LoRA, layers and pooling.
        refines: Whether it reads a candidate and scores it.

    Raises:
        InputError: If the backbone cannot be loaded, or is no encoder with query, key and value projections.
    """

    def __init__(self, backbone: str, config: AgentsConfig, refines: bool) -> None:
        super().__init__()
        self.encoder, width = _encoder(backbone, config)
        self.pooling, self.refines = config.pooling, refines
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in KINDS.items()})
        if refines:
            # small at first: the words' embeddings are of norm 1 or so, and mean something already
            tables = {name: nn.Embedding(size, width) for name, size in KINDS.items()}
            for table in tables.values():
                nn.init.normal_(table.weight, std=0.05)
            self.labels = nn.ModuleDict(tables)
            self.score = nn.Linear(2 * width, 1)

    def forward(self, batch: Batch, candidate: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the logits of each kind, ``[B, W, values]``, and those of the candidate's score, ``[B]``.

        Args:
            batch: The problems.
            candidate: ``[B, W, 4]``, labels of the words; needed to refine.
        """
        embedded_ = self.encoder.get_input_embeddings()(batch.ids)
        if self.refines:
            assert candidate is not None
            started = (candidate[..., 0] == START).unsqueeze(-1)
            labels: Tensor = sum(
                # operation and depth mean something where a step starts, and only there
                table(candidate[..., kind]) * (started if kind > 1 else 1)
                for kind, table in enumerate(self.labels.values())
            )  # type: ignore[assignment]
            added = torch.zeros_like(embedded_)
            index = batch.pieces.unsqueeze(-1).expand(-1, -1, added.shape[-1])
            embedded_ = embedded_ + added.scatter_add(1, index, (labels * batch.words.unsqueeze(-1)).to(added.dtype))
        with torch.autocast(embedded_.device.type, torch.bfloat16, enabled=has_fast_bf16(str(embedded_.device))):
            hidden = self.encoder(inputs_embeds=embedded_, attention_mask=batch.mask).last_hidden_state
        hidden = hidden.float()
        if self.pooling == "cls":
            hidden = hidden[:, :1] + embedded_
        words = hidden.gather(1, batch.pieces.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        logits = {name: head(words) for name, head in self.heads.items()}
        if not self.refines:
            return logits, None
        # one wrong word makes a candidate wrong: the mean would drown it, the greatest value does not
        present = batch.words.unsqueeze(-1)
        mean = (words * present).sum(1) / present.sum(1)
        most = words.masked_fill(present == 0, -math.inf).amax(1)
        return logits, self.score(torch.cat([mean, most], -1)).squeeze(-1)

    def components(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by component."""
        parts = {"lora": [p for p in self.encoder.parameters() if p.requires_grad]}
        parts |= {f"{name}_head": list(head.parameters()) for name, head in self.heads.items()}
        if self.refines:
            parts |= {
                "candidate_embedding": list(self.labels.parameters()),
                "score_head": list(self.score.parameters()),
            }
        return parts

    def trained(self) -> dict[str, Tensor]:
        """Return what training changes: adapters and heads, not the encoder's own weights."""
        kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in kept}

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Take over what `trained` returned. Raises ValueError where it is of another model."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = (set(missing) & set(self.trained())) | set(unexpected)
        if wrong:
            raise ValueError(f"The weights are of another agent: {', '.join(sorted(wrong)[:3])}.")


def loss_of(logits: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return the mean cross-entropy over words of tags and roles, and over starts of steps of operations and depths."""
    present, starts = batch.words.bool(), batch.gold[..., 0] == START
    total = torch.zeros((), device=batch.ids.device)
    for kind, name in enumerate(KINDS):
        chosen = starts if kind > 1 else present
        if chosen.any():
            total = total + functional.cross_entropy(logits[name][chosen], batch.gold[..., kind][chosen])
    return total


def labellings(predicted: Tensor, problems: Sequence[Problem]) -> list[Labelling]:
    """Return labels ``[B, W, 4]`` as labellings of the problems."""
    values = predicted.cpu().numpy()
    return [
        Labelling(*(tuple(values[row, : len(problem.read), kind].tolist()) for kind in range(len(KINDS))))
        for row, problem in enumerate(problems)
    ]


@torch.no_grad()
def read(
    model: Tagger, tokens: Tokens, problems: Sequence[Problem], device: str
) -> list[tuple[Labelling, dict[str, Any]]]:
    """Let the decomposition agent label problems; return each labelling, and the probabilities of each kind."""
    model.eval()
    found: list[Any] = [None] * len(problems)
    for part in _alike(problems):
        some = [problems[i] for i in part]
        logits, _ = model(tokens.batch(some, device))
        chosen = torch.stack([logits[name].argmax(-1) for name in KINDS], -1)
        chances = {name: logits[name].softmax(-1).cpu().numpy() for name in KINDS}
        for row, (place, labelling) in enumerate(zip(part, labellings(chosen, some), strict=True)):
            found[place] = (labelling, {name: values[row, : len(some[row].read)] for name, values in chances.items()})
    return found


@torch.no_grad()
def refine_once(
    model: Tagger, tokens: Tokens, problems: Sequence[Problem], candidates: Sequence[Labelling], device: str
) -> list[tuple[Labelling, float]]:
    """Return for each problem the next candidate, and the probability that the given one is right."""
    model.eval()
    found: list[Any] = [None] * len(problems)
    for part in _alike(problems):
        some = [problems[i] for i in part]
        batch = tokens.batch(some, device)
        given = labels_tensor([candidates[i] for i in part], batch.words.shape[1]).to(device)
        logits, scores = model(batch, given)
        assert scores is not None
        chosen = torch.stack([logits[name].argmax(-1) for name in KINDS], -1)
        for place, labelling, score in zip(part, labellings(chosen, some), scores.sigmoid().tolist(), strict=True):
            found[place] = (labelling, score)
    return found


def _alike(problems: Sequence[Problem]) -> list[list[int]]:
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].read))
    return [order[i : i + READ_AT_ONCE] for i in range(0, len(order), READ_AT_ONCE)]


def _encoder(backbone: str, config: AgentsConfig) -> tuple[Any, int]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(backbone_folder(backbone), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"--backbone {backbone} cannot be loaded ({' '.join(str(error).split())[:200]}).") from error
    targets = sorted(
        {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)} & set(PROJECTIONS)
    )
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if model.config.is_encoder_decoder or not targets or layers is None:
        raise InputError(f"--backbone {backbone} is no encoder ({type(model).__name__}); give one such as minilm.")
    if config.layers:
        if config.layers > len(layers):
            raise InputError(f"layers is {config.layers}, but --backbone {backbone} has {len(layers)} layers.")
        model.encoder.layer = layers[: config.layers]
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets)
    return get_peft_model(model, lora), int(model.config.hidden_size)
