"""Trajectories of users: a JSONL file of chat messages with tool calls, or of ReAct text.

A line is an object with ``messages`` (as OpenAI and TRL write them: roles system, user, assistant and tool, with
``tool_calls``), with ``prompt`` and ``completion`` of such messages, or with ``text``, in which lines that begin with
``Thought:``, ``Action:`` and ``Observation:`` start a span. ``success``, a truth value, and ``name`` are optional.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.common.errors import InputError
from trainables.common.text import parse_json, read_text
from trainables.sad_student.trajectories import Segment, Span, Trajectory

# characters of a trajectory above which it is dropped
MAX_CHARACTERS = 8_000
STARTS: dict[str, Span] = {"Thought:": "reasoning", "Action:": "action", "Observation:": "observation"}
START = re.compile(r"^(?=Thought:|Action:|Observation:)", re.MULTILINE)


@dataclass(frozen=True)
class Loaded:
    """Trajectories of a file.

    Attributes:
        trajectories: Those that are kept, in order.
        dropped: How many were dropped, by reason.
    """

    trajectories: tuple[Trajectory, ...]
    dropped: Mapping[str, int]

    def split(self, most: int) -> tuple[list[Trajectory], list[Trajectory]]:
        """Return what of the first ``most`` is trained on, and what is held out: all trajectories of every tenth task.

        A file of one task has no other to hold out; then it is every tenth trajectory.
        """
        given = self.trajectories[:most]
        tasks = list(dict.fromkeys(one.task for one in given))
        held_out = set(tasks[::10]) if len(tasks) > 1 else set()
        sides: tuple[list[Trajectory], list[Trajectory]] = ([], [])
        for place, one in enumerate(given):
            sides[one.task in held_out if held_out else place % 10 == 0].append(one)
        return sides


def load_file(path: Path, skip_malformed: bool = False) -> Loaded:
    """Read a file and drop what nothing can be learned from.

    Args:
        path: The JSONL file.
        skip_malformed: Drop lines that cannot be read, instead of refusing the file.

    Raises:
        InputError: If the file is not there, a line cannot be read, or no trajectory is left.
    """
    lines = read_text(path, f"--trajectories {path}").split("\n")
    kept: list[Trajectory] = []
    dropped: Counter[str] = Counter()
    texts: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            trajectory = parse(parse_json(line, "it"), f"{path.name}:{number}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if not skip_malformed:
                missing = isinstance(error, KeyError)
                reason = f"{error.args[0]!r} is missing" if missing else str(error).rstrip(".")
                raise InputError(
                    f"{path}, line {number}, is no trajectory ({reason}); correct it, or give --skip-malformed."
                ) from None
            dropped["malformed"] += 1
            continue
        reason = flaw(trajectory)
        if not reason and trajectory.text in texts:
            reason = "seen before"
        if reason:
            dropped[reason] += 1
            continue
        texts.add(trajectory.text)
        kept.append(trajectory)
    if len(kept) < 2:
        said = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none was there"
        raise InputError(
            f"--trajectories {path} has {len(kept)} trajectories after the filters ({said}); 2 are needed."
        )
    return Loaded(tuple(kept), dict(dropped))


def flaw(trajectory: Trajectory) -> str:
    """Return why nothing can be learned from a trajectory; empty where something can."""
    spans = {segment.span for segment in trajectory.segments if segment.text.strip()}
    if trajectory.success is False:
        return "failed"
    if "action" not in spans:
        return "without an action"
    if "reasoning" not in spans:
        return "without reasoning"
    if trajectory.segments[0].span in ("reasoning", "action"):
        return "without a task"
    return "too long" if len(trajectory.text) > MAX_CHARACTERS else ""


def parse(line: Any, name: str) -> Trajectory:
    """Return the trajectory of one line. Raises ValueError, KeyError or TypeError where it is none."""
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    success = line.get("success")
    if success is not None and not isinstance(success, bool):
        raise ValueError(f"success is {success!r}, not true or false")
    if "messages" in line:
        segments = chat(line["messages"])
    elif "prompt" in line and "completion" in line:
        segments = chat([*line["prompt"], *line["completion"]])
    elif isinstance(line.get("text"), str):
        segments = react(line["text"])
    else:
        raise ValueError("it has neither messages, prompt and completion, nor text")
    return Trajectory(str(line.get("name", name)), tuple(segments), success=success)


def react(text: str) -> list[Segment]:
    """Return the segments of a ReAct text; together they are the text."""
    places = sorted({0, *(match.start() for match in START.finditer(text)), len(text)})
    parts = [text[start:end] for start, end in zip(places, places[1:], strict=False)]
    return [Segment(next((s for mark, s in STARTS.items() if part.startswith(mark)), "other"), part) for part in parts]


def chat(messages: Iterable[Mapping[str, Any]]) -> list[Segment]:
    """Return the segments of chat messages as ReAct text.

    What an assistant says beside tool calls, or as ``reasoning_content``, is reasoning; its tool calls, and what it
    says without any, are actions.
    """
    found: list[Segment] = []
    for message in messages:
        role, said = message["role"], _text(message.get("content"))
        if role == "assistant":
            calls = message.get("tool_calls") or []
            thoughts = [_text(message.get("reasoning_content")), said if calls else ""]
            found += [Segment("reasoning", f"Thought: {thought}\n") for thought in thoughts if thought]
            actions = [_call(call.get("function", call)) for call in calls] or [said]
            found += [Segment("action", f"Action: {action}\n") for action in actions if action]
        elif role == "tool":
            found.append(Segment("observation", f"Observation: {said}\n"))
        elif role in ("system", "developer", "user"):
            found.append(Segment("other", f"{said}\n"))
        else:
            raise ValueError(f"there is no role {role!r}")
    if not found:
        raise ValueError("it has no messages")
    return found


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    return "".join(part["text"] for part in content if part.get("type", "text") == "text").strip()


def _call(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments", {})
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{function['name']} {given}".strip()
