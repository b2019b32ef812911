"""Losses of target tokens in chunks: those of the whole logits, with any head, and never many logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen2ForCausalLM

from tests.trainables.atomic_lora.architectures import CONFIGS, VOCABULARY, make
from trainables.atomic_lora import token_losses
from trainables.common.errors import InputError

torch.set_num_threads(1)


# heads that are tied, of their own, with a bias, behind a projection; logits with a soft cap, with a scale
@pytest.mark.parametrize("kind", ["qwen2", "llama", "phi", "opt", "gemma2", "cohere", "gpt2", "gemma3", "qwen2_moe"])
def test_chunks_have_the_losses_and_gradients_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_losses, "LOGITS_AT_ONCE", 3 * VOCABULARY + 7)
    model = make(kind).double()
    token_losses.require_separable_head(model, kind)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
    decoded = token_losses.decoder_output(model, ids, torch.ones_like(ids))
    targets = torch.randint(3, VOCABULARY, (10,), generator=generator)
    weights = torch.rand(10, generator=generator, dtype=torch.float64)
    place = torch.arange(14)[-10:]

    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, out: rows.append(out.shape[-2]))
    found, expected = (decoded.last_hidden_state.detach().clone().requires_grad_() for _ in range(2))
    losses, right = token_losses.token_losses(model, decoded, found.flatten(0, 1)[place], targets)
    assert rows == [3, 3, 3, 1]
    (losses * weights).sum().backward()

    whole = token_losses.head_logits(model, decoded, expected.flatten(0, 1))[place]
    torch.testing.assert_close(whole, model(input_ids=ids).logits.flatten(0, 1)[place], rtol=1e-9, atol=1e-9)
    own = F.cross_entropy(whole, targets, reduction="none")
    (own * weights).sum().backward()
    torch.testing.assert_close(losses, own, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-12)
    assert right.tolist() == (whole.argmax(-1) == targets).tolist()


def test_a_model_whose_logits_depend_on_more_than_its_last_states_is_refused() -> None:
    class Odd(Qwen2ForCausalLM):
        def forward(self, input_ids: Any = None, **more: Any) -> Any:
            out = super().forward(input_ids=input_ids, **more)
            out.logits = out.logits + input_ids[..., None]
            return out

    model = Odd(CONFIGS["qwen2"]()).eval()
    with pytest.raises(InputError, match="--base 'odd': Odd does not make its logits of its decoder's last hidden"):
        token_losses.require_separable_head(model, "--base 'odd'")
