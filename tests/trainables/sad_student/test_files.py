"""Trajectories of users: what becomes of messages and of ReAct text, and what is refused or dropped, with a count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainables.common.errors import InputError
from trainables.sad_student.files import chat, load_file, parse, react
from trainables.sad_student.trajectories import Segment

CHAT = [
    {"role": "system", "content": "Use tools."},
    {"role": "user", "content": [{"type": "text", "text": "2 + 3?"}]},
    {
        "role": "assistant", "content": "I add.",
        "tool_calls": [{"type": "function", "function": {"name": "calc", "arguments": '{"x": "2+3"}'}}],
    },
    {"role": "tool", "content": "5"},
    {"role": "assistant", "reasoning_content": "That is it.", "content": "5"},
]  # fmt: skip
TEXT = "Add 2 and 3.\nThought: I add.\nso\nAction: calc 2+3\nObservation: 5\nThought: Done.\nAction: answer 5"


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "mine.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return file


def test_chat_messages_become_spans() -> None:
    assert chat(CHAT) == [
        Segment("other", "Use tools.\n"),
        Segment("other", "2 + 3?\n"),
        Segment("reasoning", "Thought: I add.\n"),
        Segment("action", 'Action: calc {"x": "2+3"}\n'),
        Segment("observation", "Observation: 5\n"),
        Segment("reasoning", "Thought: That is it.\n"),
        Segment("action", "Action: 5\n"),
    ]
    halves = parse({"prompt": CHAT[:2], "completion": CHAT[2:]}, "x")
    assert list(halves.segments) == chat(CHAT)


def test_react_text_keeps_every_character() -> None:
    segments = react(TEXT)
    assert "".join(segment.text for segment in segments) == TEXT
    assert [s.span for s in segments] == ["other", "reasoning", "action", "observation", "reasoning", "action"]
    assert segments[1].text == "Thought: I add.\nso\n"
    assert react("no marks") == [Segment("other", "no marks")]


def test_what_is_dropped_is_counted_by_reason(tmp_path: Path) -> None:
    lines = [
        {"text": TEXT}, {"text": TEXT}, {"messages": CHAT, "success": True}, {"messages": CHAT, "success": False},
        {"text": "Do it.\nThought: no\n"}, {"text": "Do it.\nAction: yes\n"}, {"text": "Thought: a\nAction: b\n"},
        {"text": "Do it.\nThought: a\nAction: " + "b" * 9000}, "",
    ]  # fmt: skip
    loaded = load_file(write(tmp_path, *lines))
    assert [t.name for t in loaded.trajectories] == ["mine.jsonl:1", "mine.jsonl:3"]
    assert loaded.dropped == {
        "seen before": 1, "failed": 1, "without an action": 1, "without reasoning": 1, "without a task": 1,
        "too long": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "it is not valid JSON: Expecting property name"),
        ("[" * 100_000, "it is not valid JSON: it is nested too deeply"),
        ("[1]", "it is no JSON object"),
        ({"content": "x"}, "it has neither messages, prompt and completion, nor text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "there is no role 'robot'"),
        ({"messages": []}, "it has no messages"),
        ({"text": TEXT, "success": "yes"}, "success is 'yes', not true or false"),
    ],
)
def test_a_malformed_line_is_named_and_skipped_only_on_request(tmp_path: Path, line: Any, reason: str) -> None:
    file = write(tmp_path, {"text": TEXT}, line, {"messages": CHAT})
    with pytest.raises(InputError) as error:
        load_file(file)
    assert f"{file}, line 2, is no trajectory ({reason}" in str(error.value)
    loaded = load_file(file, skip_malformed=True)
    assert len(loaded.trajectories) == 2 and loaded.dropped == {"malformed": 1}


def test_too_few_trajectories_or_no_file_are_one_sentence(tmp_path: Path) -> None:
    file = write(tmp_path, {"text": TEXT, "success": False})
    with pytest.raises(InputError, match=r"has 0 trajectories after the filters \(1 failed\); 2 are needed"):
        load_file(file)
    with pytest.raises(InputError, match="cannot be read"):
        load_file(tmp_path / "none.jsonl")


def test_all_trajectories_of_a_held_out_task_are_held_out(tmp_path: Path) -> None:
    texts = [f"Task: {number // 2}\nThought: way {number}\nAction: done\n" for number in range(40)]
    trained, held_out = load_file(write(tmp_path, *({"text": text} for text in texts))).split(30)
    # of the tasks 0 to 14 the first and the eleventh, two trajectories each
    assert [one.text for one in held_out] == [texts[place] for place in (0, 1, 20, 21)]
    assert len(trained) == 26 and not {one.task for one in trained} & {one.task for one in held_out}
    only = [f"Task: one\nThought: way {number}\nAction: done\n" for number in range(11)]
    trained, held_out = load_file(write(tmp_path, *({"text": text} for text in only))).split(30)
    assert (len(trained), len(held_out)) == (9, 2)
