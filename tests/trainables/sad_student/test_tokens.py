"""Every token is in exactly one span, under SmolLM2's tokenizer and a byte-level one, cut or not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.trainables.common.tiny_package import installed
from trainables.sad_student.environments import problems
from trainables.sad_student.models import load_tokenizer
from trainables.sad_student.tokens import SPAN_IDS, Vocabulary, batches, byte_ids, padded
from trainables.sad_student.trajectories import SPANS, Segment, Trajectory, expert_trajectory

pytestmark = installed("smollm2")


@cache
def tokenizer_of(name: str) -> Any:
    if name == "smollm2":
        return load_tokenizer("smollm2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)} | {"<eos>": 256}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")


# SmolLM2's tokenizer has no tokens for the bytes of control characters and of the rarest planes
characters = st.one_of(st.sampled_from("\n aT:"), st.characters(max_codepoint=0x3FFFF, exclude_categories=("Cc", "Cs")))
parts_of_text = st.builds(Segment, st.sampled_from(SPANS), st.text(characters, max_size=12))
segments = st.lists(parts_of_text, min_size=1, max_size=6)


@pytest.mark.parametrize("name", ["smollm2", "bytes"])
@pytest.mark.parametrize("cut", [False, True])
@settings(max_examples=40)
@given(parts=segments)
def test_every_token_is_in_the_span_of_its_first_character(name: str, cut: bool, parts: list[Segment]) -> None:
    trajectory = Trajectory("t", tuple(parts))
    tokenizer = tokenizer_of(name)
    vocabulary = Vocabulary.of(tokenizer, ["Thought: yes\n"]) if cut else Vocabulary(tokenizer)
    tokens = vocabulary.tokens(trajectory)
    assert len(tokens.ids) == len(tokens.spans) and set(tokens.spans) <= set(SPAN_IDS.values())
    assert vocabulary.decode(tokens.ids.tolist()) == trajectory.text
    if name == "bytes":
        by_byte = [SPAN_IDS[part.span] for part in parts for _ in part.text.encode()]
        assert tokens.spans.tolist() == by_byte
    elif not cut:
        offsets = tokenizer(trajectory.text, return_offsets_mapping=True, add_special_tokens=False).offset_mapping
        by_character = [SPAN_IDS[part.span] for part in parts for _ in part.text]
        assert tokens.spans.tolist() == [by_character[start] for start, _ in offsets]


def test_a_trajectory_has_the_tokens_that_a_roll_out_makes_of_its_parts() -> None:
    trajectories = [expert_trajectory(problem) for problem in problems("train", 48)]
    vocabulary = Vocabulary.of(tokenizer_of("smollm2"), [trajectory.text for trajectory in trajectories])
    for trajectory in trajectories:
        whole = vocabulary.tokens(trajectory)
        parts = [(SPAN_IDS[s.span], i) for s in trajectory.segments for i in vocabulary.encode(s.text)]
        assert list(zip(whole.spans.tolist(), whole.ids.tolist(), strict=True)) == parts
        assert len(vocabulary) < 400


def test_a_cut_vocabulary_is_refused_where_bytes_are_no_tokens_and_spans_need_a_fast_tokenizer() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert byte_ids(tokenizer) == [] and Vocabulary.of(tokenizer, ["a"]).kept is None


def test_batches_hold_every_row_once_and_padding_is_masked() -> None:
    found = batches([5, 1, 9, 2, 2, 7, 3], 2, [6, 5, 4, 3, 2, 1, 0])
    assert sorted(i for batch in found for i in batch) == list(range(7)) and max(map(len, found)) == 2
    rows = [np.array([4, 5]), np.array([6])]
    ids, mask = padded(rows, left=True)
    assert ids.tolist() == [[4, 5], [0, 6]] and mask.tolist() == [[1, 1], [0, 1]]
    ids, mask = padded(rows, fill=9)
    assert ids.tolist() == [[4, 5], [6, 9]] and mask.tolist() == [[1, 1], [1, 0]]
