"""The cross-entropy of target tokens over a large vocabulary, computed for a few tokens at a time.

Logits of a whole batch over 50,000 or more tokens, and their gradients, take more memory than the rest of a step. The
output head is frozen, so the gradient of a token's loss with respect to its last hidden state is known as soon as its
logits are: the forward pass computes both for a chunk of tokens and drops the logits before the next chunk. The method
is that of the fused linear cross-entropy of Hsu et al. (2024), "Liger Kernel: Efficient Triton Kernels for LLM
Training".

Letters in shape comments: N rows, T tokens of a row, D hidden size, M target tokens of all rows, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.common.errors import InputError

# Logits computed at once: 64 MiB in float32, of which a chunk holds about four copies while its gradient is taken.
LOGITS_AT_ONCE = 2**24


def decoder_output(model: Any, ids: Tensor, mask: Tensor) -> Any:
    """Return the output of a causal LM's decoder for left-padded rows; its ``last_hidden_state`` is [N, T, D].

    Args:
        model: The causal LM.
        ids: Token ids, [N, T].
        mask: 1 at tokens and 0 at padding, [N, T].
    """
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return model.get_decoder()(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)


def head_logits(model: Any, decoded: Any, states: Tensor) -> Tensor:
    """Return the logits [M, V] that a causal LM makes of last hidden states [M, D].

    The model's own forward pass runs, with a decoder that returns ``states``: scales and soft caps of logits, which
    some models have, are applied as they apply them.

    Args:
        model: The causal LM.
        decoded: An output of its decoder, whose other fields the model may read.
        states: Last hidden states.
    """
    given = copy.copy(decoded)
    given.last_hidden_state = states[None]
    decoder = model.get_decoder()
    decoder.forward = lambda *args, **kwargs: given
    try:
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        return model(input_ids=ids, use_cache=False).logits[0]
    finally:
        del decoder.forward


def token_losses(model: Any, decoded: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each target [M] and whether it is the likeliest token, bool [M].

    Args:
        model: The causal LM; none of its parameters outside the decoder requires a gradient.
        decoded: The output of its decoder that ``states`` are from.
        states: Last hidden states [M, D]; gradients of the losses reach them.
        targets: Token ids, int64 [M].
    """
    chunk = max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
    losses, right = _TokenLosses.apply(states, targets, chunk, lambda some: head_logits(model, decoded, some))
    return losses, right


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: Tensor, targets: Tensor, chunk: int, logits_of: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """states [M, D], targets [M] -> losses [M], right [M]; ``logits_of`` returns [chunk, V] of [chunk, D]."""
        trained = ctx.needs_input_grad[0]
        losses, right, grads = [], [], []
        for some, wanted in zip(states.split(chunk), targets.split(chunk), strict=True):
            with torch.set_grad_enabled(trained):
                some = some.detach().requires_grad_(trained)
                logits = logits_of(some)
                exact = logits if logits.dtype == torch.float64 else logits.float()
                own = F.cross_entropy(exact, wanted, reduction="none")
                if trained:
                    grads += torch.autograd.grad(own.sum(), some)
            losses.append(own.detach())
            right.append(exact.argmax(-1) == wanted)
        if trained:
            ctx.save_for_backward(torch.cat(grads))
        found = torch.cat(losses), torch.cat(right)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (of_states,) = ctx.saved_tensors
        return of_states * grads[0][:, None].to(of_states.dtype), None, None, None


@torch.no_grad()
def require_separable_head(model: Any, said: str) -> None:
    """Check on two tokens that logits can be computed from last hidden states alone.

    Args:
        model: The causal LM.
        said: How the message names it.

    Raises:
        InputError: If its forward pass gives other logits.
    """
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    decoded = decoder_output(model, ids, torch.ones_like(ids))
    expected, found = model(input_ids=ids, use_cache=False).logits, head_logits(model, decoded, decoded[0][0])[None]
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise InputError(
            f"{said}: {type(model).__name__} does not make its logits of its decoder's last hidden states alone, which "
            "text tasks need; choose a base of another kind."
        )
