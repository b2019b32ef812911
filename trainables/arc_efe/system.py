"""All that is trained together: the agent with its prompts, memory, policy, backward model and language model.

`System.answer` is what a user of the trained system calls: it takes inputs and demonstrations, never an output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainables.arc import Pair
from trainables.arc_efe import policy as policies
from trainables.arc_efe import prompts as texts
from trainables.arc_efe.config import EfeConfig, weights_of
from trainables.arc_efe.language import LanguageModel, frozen_embeddings, write_rules
from trainables.arc_efe.memory import Memory
from trainables.arc_efe.model import Agent, BackwardModel, PairEncoder, Prediction
from trainables.common.precision import has_fast_bf16

# what stands for the width of the language model's states where there is none
NO_WIDTH = 1


class Prompts(nn.Module):
    """The prompts of a dataset under every change, as embeddings of the language model.

    Args:
        config: Says which texts, which model, and whether it trains.
        demonstrations: Of each prompt.
        fitted: Places of the prompts by which embeddings are standardised: those of training pairs.
        device: Where embeddings are computed and kept.

    Attributes:
        texts: Text of each prompt under each of `CHANGES`.
        width: Of an embedding.
        cut: Texts that were too long.
        colours: Share of each colour among the outputs that a prompt shows, [P, 10].
        language_model: The model that trains; None of a frozen one.
    """

    def __init__(
        self, config: EfeConfig, demonstrations: Sequence[Sequence[Pair]], fitted: Iterable[int], device: str
    ) -> None:
        super().__init__()
        rules: Sequence[str | None] = [None] * len(demonstrations)
        if config.prompt == "rule":
            rules = write_rules(config.lm, config.prompt_tokens, device, [texts.request(d) for d in demonstrations])
        self.texts = [texts.variants(d, rule) for d, rule in zip(demonstrations, rules, strict=True)]
        flat = [text for variants in self.texts for text in variants]
        self.language_model: LanguageModel | None = None
        if config.lm_training == "lora":
            self.language_model = LanguageModel(
                config.lm, config.lm_layers, config.prompt_tokens, device, config.lora_rank
            )
            self._rows = self.language_model.tokens(flat)
            places = sorted({len(texts.CHANGES) * place for place in fitted})
            start = self.language_model.embed([self._rows[place] for place in places])
            self.cut, self.width = self.language_model.cut, self.language_model.width
        else:
            table, self.cut = frozen_embeddings(config.lm, config.lm_layers, config.prompt_tokens, device, flat)
            self.width = table.shape[1]
            self._table = table.view(len(self.texts), len(texts.CHANGES), -1).to(device)
            start = self._table[sorted(set(fitted))].flatten(0, 1).cpu()
        self.mean, self.deviation = start.mean(0), start.std(0, correction=0).clamp_min(1e-6)
        self.colours = torch.from_numpy(np.stack([texts.output_colours(d) for d in demonstrations])).to(device)

    def forward(self, prompt: Tensor, change: Tensor) -> Tensor:
        """Return mean hidden states [B, D] of prompts [B] under changes [B]."""
        if self.language_model is None:
            return self._table[prompt, change]
        places = (prompt * len(texts.CHANGES) + change).tolist()
        return self.language_model([self._rows[place] for place in places])


class Answer(NamedTuple):
    """What the system makes of inputs.

    Attributes:
        before: Prediction under the unchanged prompts.
        after: Prediction under the changed ones; the same where there is no prompt.
        prompt: Embedding under which ``before`` was made, [B, E].
        changed: Embedding under which ``after`` was made, [B, E].
        change: Place of the change among `CHANGES`, [B].
        text, changed_text: Standardised hidden states of the prompts, [B, D]; None without prompts.
        hit: Whether memory held something, bool [B].
        action_logits: Of the policy, [B, 6]; None without one that learns.
        expected: Reward that the policy expects, [B]; None without one that learns.
    """

    before: Prediction
    after: Prediction
    prompt: Tensor
    changed: Tensor
    change: Tensor
    text: Tensor | None
    changed_text: Tensor | None
    hit: Tensor
    action_logits: Tensor | None
    expected: Tensor | None


class System(nn.Module):
    """The modules of a configuration; those that take no part in its loss are absent.

    Args:
        config: The settings.
        prompts: The prompts of the dataset; None without.
        device: Where it computes.
    """

    def __init__(self, config: EfeConfig, prompts: Prompts | None, device: str) -> None:
        super().__init__()
        self.config, self.device = config, device
        self.weights = weights_of(config)
        width = prompts.width if prompts else NO_WIDTH
        self.agent = Agent(config, width)
        self.backward_model = BackwardModel(config)
        self.pair_encoder = PairEncoder(config) if "prompt" in self.weights else None
        learns = prompts is not None and config.policy == "reinforce"
        self.policy = policies.Policy(config.embedding) if learns else None
        if prompts:
            self.agent.prompt.mean.copy_(prompts.mean)
            self.agent.prompt.deviation.copy_(prompts.deviation)
        else:
            self.agent.prompt.requires_grad_(False)
            self.agent.memory_reader = None
        if not {"backward", "bidirectional"} & self.weights.keys():
            self.backward_model.requires_grad_(False)
        if "size" not in self.weights:
            self.agent.size_head.requires_grad_(False)
            self.agent.copy_size.requires_grad_(False)
        self.to(device)
        self.prompts = prompts
        self.memory = None
        if self.agent.memory_reader is not None:
            self.memory = Memory(
                config.memory_size,
                width,
                config.memory_similarity,
                config.memory_factor,
                config.memory_alpha,
                config.memory_start,
                device,
            )
        kind = torch.device(device).type
        bf16, half = has_fast_bf16(device), kind == "cuda"
        self.reduced = (
            None if config.precision == "float32" else torch.bfloat16 if bf16 else torch.float16 if half else None
        )

    def components(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by component."""
        agent = self.agent
        parts: dict[str, Iterable[nn.Parameter]] = {
            "encoder": [*agent.stem.parameters(), *agent.blocks.parameters()],
            "steps": [agent.copy, *agent.read.parameters(), *agent.step.parameters(), *agent.head.parameters()],
            "size_head": [agent.copy_size, *agent.size_head.parameters()],
            "prompt_reader": agent.prompt.parameters(),
            "memory_reader": agent.memory_reader.parameters() if agent.memory_reader else (),
            "likelihood": [agent.likelihood_logits],
            "backward_model": self.backward_model.parameters(),
            "pair_encoder": self.pair_encoder.parameters() if self.pair_encoder else (),
            "policy": self.policy.actor.parameters() if self.policy else (),
            "baseline": self.policy.baseline.parameters() if self.policy else (),
            "language_model": self.prompts.parameters() if self.prompts else (),
        }
        trained = {name: [p for p in parameters if p.requires_grad] for name, parameters in parts.items()}
        return {name: parameters for name, parameters in trained.items() if parameters}

    def answer(
        self,
        inputs: Tensor,
        input_size: Tensor,
        prompt: Tensor,
        generator: torch.Generator | None = None,
        learning: bool = False,
    ) -> Answer:
        """Predict the outputs of inputs [B, S, S] of sizes [B, 2] under prompts [B], before and after a change.

        Args:
            inputs, input_size: The grids, with ``OUTSIDE`` beyond them.
            prompt: Places of the prompts.
            generator: Of the changes that are drawn; None takes the likeliest, which of a random policy is none.
            learning: Whether entries of memory that the prompt itself wrote are passed over.
        """
        count = len(inputs)
        if self.prompts is None:
            embedding = self.agent.embed(None, None, count)
            prediction = self._predict(inputs, input_size, embedding)
            nothing = torch.zeros(count, dtype=torch.long, device=self.device)
            return Answer(prediction, prediction, embedding, embedding, nothing, None, None, nothing.bool(), None, None)
        unchanged = torch.zeros_like(prompt)
        text = self.agent.prompt.standardise(self.prompts(prompt, unchanged))
        remembered, hit = None, torch.zeros_like(prompt, dtype=torch.bool)
        if self.memory is not None:
            remembered, hit = self.memory.read(text, prompt if learning else None)
        embedding = self.agent.embed(text, remembered, count)
        before = self._predict(inputs, input_size, embedding)
        action_logits = expected = None
        if self.policy is not None:
            action_logits, expected = self.policy(policies.state_of(embedding, before.logits[:, -1], before.size))
        change = self._choose(action_logits, unchanged, generator)
        changed_text = self.agent.prompt.standardise(self.prompts(prompt, change))
        changed = self.agent.embed(changed_text, remembered, count)
        if not learning and not change.any():
            after = before
        else:
            after = self._predict(inputs, input_size, changed)
        return Answer(before, after, embedding, changed, change, text, changed_text, hit, action_logits, expected)

    def reconstruct(self, outcomes: Tensor, prompt: Tensor) -> Tensor:
        """Return the backward model's logits of inputs, [B, S, S, 10], from distributions of outputs."""
        with self.autocast():
            return self.backward_model(outcomes, prompt)

    def similarity(self, inputs: Tensor, targets: Tensor, prompt: Tensor) -> Tensor:
        """Return similarities of solved pairs and prompts, [B, B]; there must be a prompt term."""
        assert self.pair_encoder is not None
        with self.autocast():
            return self.pair_encoder(inputs, targets, prompt)

    def autocast(self) -> torch.autocast:
        """Return the context in which products are computed in the reduced precision, if there is one."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, self.reduced or torch.bfloat16, enabled=self.reduced is not None)

    def _predict(self, inputs: Tensor, input_size: Tensor, prompt: Tensor) -> Prediction:
        with self.autocast():
            return self.agent(inputs, input_size, prompt)

    def _choose(self, logits: Tensor | None, unchanged: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return unchanged if logits is None else logits.argmax(1)
        rates = torch.ones(len(unchanged), len(texts.CHANGES)) if logits is None else logits.detach().softmax(1).cpu()
        return torch.multinomial(rates, 1, generator=generator).squeeze(1).to(self.device)
