"""What the benchmarks count as spent."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.floor import counted


def test_operations_of_both_passes_and_of_products_in_place() -> None:
    layer = nn.Linear(16, 8).requires_grad_(False)
    x = torch.randn(32, 16, requires_grad=True)
    with counted(layer.parameters()) as spent:
        layer(x).sum().backward()
    assert spent.operations == 2 * (2 * 32 * 16 * 8), "one product forward, one backward; none for frozen weights"
    with counted([]) as spent, torch.no_grad():
        torch.zeros(32, 8).addmm_(x, layer.weight.t())
    assert spent.operations == 2 * 32 * 16 * 8


def test_bytes_that_the_backward_pass_reads_count_twice_and_once_for_each_tensor() -> None:
    layer = nn.Linear(16, 8).requires_grad_(False)
    x = torch.randn(32, 16, requires_grad=True)
    with counted(layer.parameters()) as spent:
        layer(x).sum().backward()
    assert spent.bytes == 0, "frozen weights are all that it reads"
    with counted([]) as spent:
        (x.square() + x.exp() + x.sin()).sum().backward()
    assert spent.bytes == 2 * (2 * 32 * 16 * 4), "x, which two read, and exp's output"
