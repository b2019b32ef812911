"""The stacked optimizer against torch's own, row by row."""

from __future__ import annotations

import torch

from trainables.pack.optimizer import SlotStep, StackedAdamW


def test_each_slot_steps_as_torch_would_and_the_others_stay() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 7, dtype=torch.float64)
    settings = [(0.1, 0.01, 1.0), (0.02, 0.3, 0.05)]
    references = [torch.nn.Parameter(values[slot].clone()) for slot in range(2)]
    optimizers = [
        torch.optim.AdamW([p], lr=lr, weight_decay=decay)
        for p, (lr, decay, _) in zip(references, settings, strict=True)
    ]
    stacked, idle = StackedAdamW(values), values[2].clone()
    for step in range(1, 6):
        grad = torch.randn(3, 7, dtype=torch.float64)
        taking = [0, 1] if step != 3 else [1]
        for slot in taking:
            references[slot].grad = grad[slot].clone()
            torch.nn.utils.clip_grad_norm_([references[slot]], settings[slot][2])
            optimizers[slot].step()
        counts = [step if slot == 1 or step < 3 else step - 1 for slot in range(2)]
        steps = [SlotStep(slot, counts[slot], *settings[slot]) for slot in taking]
        stacked.step(steps, grad, grad.norm(dim=1))
    torch.testing.assert_close(values[:2], torch.stack([p.detach() for p in references]), rtol=1e-12, atol=1e-12)
    assert torch.equal(values[2], idle)


def test_a_slot_that_is_reset_forgets_its_moments() -> None:
    stacked = StackedAdamW(torch.zeros(2, 3))
    stacked.step([SlotStep(slot, 1, 0.1, 0.0, 1.0) for slot in range(2)], torch.ones(2, 3), torch.ones(2))
    stacked.reset(0)
    assert not stacked.first_moment[0].any() and not stacked.second_moment[0].any()
    assert stacked.first_moment[1].all() and stacked.second_moment[1].all()
