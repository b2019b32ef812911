"""Vocabularies of causal language models, cut down to the tokens that occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def cut_vocabulary(model: Any, ids: Sequence[int]) -> None:
    """Keep only the rows ``ids`` of the input and output embeddings, in their order, in place.

    Embeddings that share their weights share them afterwards as well.
    """
    index = torch.tensor(ids)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    # both before either is cut: they may share their weights
    rows, columns = embedding.weight.detach()[index].clone(), head.weight.detach()[index].clone()
    tied = head.weight is embedding.weight
    embedding.weight, embedding.num_embeddings, embedding.padding_idx = nn.Parameter(rows), len(ids), None
    head.weight, head.out_features = embedding.weight if tied else nn.Parameter(columns), len(ids)
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias.detach()[index].clone())
    model.config.get_text_config().vocab_size = len(ids)
