"""The network of the agents that read: words and pieces, gradients of every component, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from trainables.common.errors import InputError
from trainables.common.monitor import ComponentMonitor
from trainables.reasoning_agents import problems as made
from trainables.reasoning_agents.config import AgentsConfig
from trainables.reasoning_agents.tagger import Tagger, Tokens, labels_tensor, loss_of, read, refine_once

CONFIG = AgentsConfig(layers=1, rank=2)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens("minilm")


def test_each_word_is_read_at_its_first_piece(tokens: Tokens) -> None:
    (problem,) = made.generate("train", 1, 0)
    short = replace(
        problem, words=("unbelievably", "red", "?"), gold=made.Labelling((0,) * 3, (0,) * 3, (0,) * 3, (0,) * 3)
    )
    batch = tokens.batch([problem, short], "cpu")
    pieces = tokens._tokenizer.convert_ids_to_tokens(batch.ids[1].tolist())
    assert [pieces[place] for place in batch.pieces[1, :3]] == ["un", "red", "?"]
    assert batch.words.sum(1).tolist() == [len(problem.words), 3] and batch.mask[1].sum() > 5
    assert batch.gold[0, :, 0].tolist() == list(problem.gold.tags)


@pytest.mark.parametrize("pooling", ["token", "cls"])
def test_every_component_gets_a_gradient_and_padding_changes_nothing(tokens: Tokens, pooling: str) -> None:
    torch.manual_seed(0)
    model = Tagger("minilm", replace(CONFIG, pooling=pooling), refines=True)  # type: ignore[arg-type]
    monitor = ComponentMonitor(model.components())
    problems = made.generate("train", 3, 0)
    batch = tokens.batch(problems, "cpu")
    logits, scores = model(batch, batch.gold)
    (loss_of(logits, batch) + functional.binary_cross_entropy_with_logits(scores, torch.ones(3))).backward()
    monitor.after_backward()
    norms = monitor.end_epoch()
    assert {name for name in norms if name.startswith("grad")} == {f"grad_norm/{name}" for name in model.components()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("encoder" in name and "lora" not in name for name in trained)
    model.eval()
    candidates = [problem.gold for problem in problems]
    together = refine_once(model, tokens, problems, candidates, "cpu")
    for problem, candidate, (_, score) in zip(problems, candidates, together, strict=True):
        ((_, alone),) = refine_once(model, tokens, [problem], [candidate], "cpu")
        assert alone == pytest.approx(score, abs=0.02)


def test_a_candidate_is_read_and_weights_come_back(tokens: Tokens) -> None:
    torch.manual_seed(0)
    model, other = Tagger("minilm", CONFIG, refines=True), Tagger("minilm", CONFIG, refines=True)
    (problem,) = made.generate("train", 1, 0)
    batch = tokens.batch([problem], "cpu")
    model.eval(), other.eval()
    empty = torch.zeros_like(batch.gold)
    assert not torch.allclose(model(batch, batch.gold)[0]["tags"], model(batch, empty)[0]["tags"])
    other.load_trained(model.trained())
    assert torch.equal(model(batch, empty)[1], other(batch, empty)[1])
    with pytest.raises(ValueError, match="another agent"):
        Tagger("minilm", CONFIG, refines=False).load_trained(model.trained())


def test_a_few_steps_on_a_few_problems_are_learned(tokens: Tokens) -> None:
    torch.manual_seed(0)
    model, problems = Tagger("minilm", replace(CONFIG, dropout=0.0), refines=False), made.generate("train", 2, 0)
    batch = tokens.batch(problems, "cpu")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.eval()
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(model(batch)[0], batch).backward()
        optimizer.step()
    for problem, (labelling, chances) in zip(problems, read(model, tokens, problems, "cpu"), strict=True):
        assert labelling.spans() == problem.gold.spans()
        assert chances["tags"].shape == (len(problem.words), 4)
    assert labels_tensor([problem.gold for problem in problems], batch.words.shape[1]).equal(batch.gold)


def test_a_backbone_that_is_no_encoder_or_is_too_shallow_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is no encoder"):
        Tagger(str(tmp_path), CONFIG, refines=False)
    with pytest.raises(InputError, match="layers is 7, but --backbone minilm has 6"):
        Tagger("minilm", replace(CONFIG, layers=7), refines=False)
