"""The loss is torch's cross-entropy of each row over its real tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from trainables.arc import EOS, PAD, ROW_END, VOCABULARY
from trainables.atomic_lora.loss import cell_hits, row_losses

TARGET = torch.tensor([[1, 2, ROW_END, EOS], [3, ROW_END, EOS, PAD], [PAD] * 4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_row_equals_cross_entropy_over_its_real_tokens(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, VOCABULARY, dtype=dtype)
    total, count = row_losses(logits, TARGET)
    exact = logits if dtype == torch.float64 else logits.float()
    assert total.dtype == exact.dtype and count.tolist() == [4, 3, 0] and float(total[2]) == 0.0
    for row in range(2):
        expected = F.cross_entropy(exact[row, : count[row]], TARGET[row, : count[row]], reduction="sum")
        assert float(total[row]) == pytest.approx(float(expected), rel=1e-6)


def test_padding_gets_no_gradient() -> None:
    logits = torch.randn(3, 4, VOCABULARY, requires_grad=True)
    row_losses(logits, TARGET)[0].sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, TARGET != PAD)


def test_hits_count_colour_cells_only() -> None:
    logits = F.one_hot(TARGET, VOCABULARY).float()
    logits[0, 1] = F.one_hot(torch.tensor(7), VOCABULARY)
    logits[1, 1] = F.one_hot(torch.tensor(7), VOCABULARY)
    hits, cells = cell_hits(logits, TARGET)
    assert hits.tolist() == [1, 1, 0] and cells.tolist() == [2, 1, 0]
