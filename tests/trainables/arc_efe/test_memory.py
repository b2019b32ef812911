"""Memory: written above a moving threshold, read by similarity, never by the prompt that wrote it."""

from __future__ import annotations

import pytest
import torch

from trainables.arc_efe.memory import Memory


def _memory(size: int = 8) -> Memory:
    return Memory(size, 4, similarity=0.5, factor=1.1, alpha=0.1, start=0.2, device="cpu")


def test_the_threshold_follows_the_scores() -> None:
    memory = _memory()
    assert memory.threshold == pytest.approx(0.22)
    keys = torch.eye(4)[:2]
    written = memory.write(keys, keys, torch.tensor([0, 1]), torch.tensor([0.21, 0.5]))
    assert written == 1 and memory.prompts.tolist() == [1]
    assert memory.threshold == pytest.approx(1.1 * (0.2 + 0.1 * (0.355 - 0.2)))
    for _ in range(100):
        memory.write(keys, keys, torch.tensor([0, 1]), torch.ones(2))
    assert memory.threshold == 1.0 and memory.write(keys, keys, torch.tensor([2, 3]), torch.tensor([0.99, 1.0])) == 1


def test_reading_is_by_similarity_and_passes_over_ones_own_entry() -> None:
    memory = _memory()
    keys, values = torch.eye(4)[:2], torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    assert not memory.read(keys)[1].any()
    memory.write(keys, values, torch.tensor([10, 11]), torch.ones(2))
    asked = torch.tensor([[1.0, 0.1, 0, 0], [0, 0, 1.0, 0]])
    found, hit = memory.read(asked)
    assert hit.tolist() == [True, False] and torch.allclose(found[0], values[0]) and not found[1].any()
    assert not memory.read(asked, torch.tensor([10, 11]))[1].any()


def test_an_entry_is_replaced_and_the_oldest_goes_first() -> None:
    memory = _memory(size=2)
    for prompt in (0, 1, 0, 2):
        memory.write(torch.eye(4)[prompt : prompt + 1], torch.ones(1, 4), torch.tensor([prompt]), torch.ones(1))
    assert memory.prompts.tolist() == [0, 2]
    other = _memory()
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.keys, memory.keys) and other.threshold == memory.threshold
