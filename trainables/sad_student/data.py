"""What a trial learns from and is measured on: trajectories, problems, teacher and student in one vocabulary."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from trainables.common import pretrained
from trainables.common.embedded import cache_folder
from trainables.common.errors import InputError
from trainables.common.precision import has_fast_bf16
from trainables.sad_student.config import SadConfig
from trainables.sad_student.environments import KINDS, TEXTWORLD, Problem, Split, problems
from trainables.sad_student.files import load_file
from trainables.sad_student.models import (
    LAYERS,
    SHIPPED_TEACHER,
    cut_model,
    first_layers,
    layer_count,
    load_model,
    load_tokenizer,
    require_same_vocabulary,
    tokenizer_fingerprint,
)
from trainables.sad_student.protocol import Environment
from trainables.sad_student.rollout import outcome, play
from trainables.sad_student.server import ServerTeacher, check_server
from trainables.sad_student.teacher import LocalTeacher, Targets, cached, fingerprint, judged, named, numbers
from trainables.sad_student.textworld import require_textworld
from trainables.sad_student.tokens import Tokens, Vocabulary
from trainables.sad_student.trajectories import Segment, Trajectory, expert_trajectory

# the teacher that ships: the embedded model with the adapter beside this module
TAUGHT = "smollm2-taught"
EPISODE_NAMES = ("name", "kind", "difficulty", "span", "text")
TRAJECTORY_COLUMNS = pa.schema([(name, pa.int32() if name == "difficulty" else pa.string()) for name in EPISODE_NAMES])


@dataclass(frozen=True)
class Source:
    """What a trial is made from.

    Attributes:
        teacher: ``smollm2-taught``, an embedded model, a folder or a name on the hub.
        student: ``layers:N``, the teacher's first layers, or a model like the teacher.
        seed: Of the problems.
        trajectories: What the student learns from: those of the ``expert``, those in which the ``teacher`` succeeded,
            or a JSONL file (see `trainables.sad_student.files`).
        skip_malformed: Drop lines of the file that cannot be read.
        server: Address of an OpenAI-compatible server, ending in ``/v1``, that is asked in place of ``teacher``, whose
            tokenizer and first layers are still used; None for a teacher in process.
        cache: Local folder of what teachers said; None for the one in the user's cache folder.
        environment: What the problems are: ``generated`` tasks, or games of ``textworld``.
    """

    teacher: str = TAUGHT
    student: str = "layers:6"
    seed: int = 0
    trajectories: str = "expert"
    skip_malformed: bool = False
    server: str | None = None
    cache: str | None = None
    environment: str = "generated"

    def problems(self, split: Split, count: int) -> list[Problem]:
        """Return problems of a split."""
        return problems(split, count, self.seed, KINDS if self.environment == "generated" else (TEXTWORLD,))

    @property
    def folder(self) -> Path:
        return Path(self.cache).expanduser() if self.cache else cache_folder() / "sad_student"

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights of teacher and student, of the problems and of a file of trajectories."""
        shown = [problem.name for problem in self.problems("train", 12)]
        file = self.file
        content = hashlib.sha256(file.read_bytes()).hexdigest() if file else self.trajectories
        models = model_fingerprint(self.teacher), student_fingerprint(self.student)
        return fingerprint(*models, shown, content, self.server)

    @property
    def file(self) -> Path | None:
        """The file of trajectories, if there is one."""
        return None if self.trajectories in ("expert", "teacher") else Path(self.trajectories).expanduser()


@dataclass
class Material:
    """See the module.

    Attributes:
        vocabulary: Of all tokens below.
        train, train_targets: Training trajectories, and what the teacher says of them.
        held_out, held_out_targets: The same of validation problems, or of every tenth task of a file.
        practice: Training problems that are played on-policy.
        teacher: Judges further trajectories and plays.
        student: To be trained, its vocabulary cut like the teacher's.
        baselines: Success rates on the validation problems by column.
        validation, test: Problems.
        fingerprint: Of teacher, vocabulary and trajectories.
        uncut: Returns the student before training with its whole vocabulary, on the CPU.
    """

    vocabulary: Vocabulary
    train: list[Tokens]
    train_targets: list[Targets]
    held_out: list[Tokens]
    held_out_targets: list[Targets]
    practice: list[Problem]
    teacher: LocalTeacher | ServerTeacher
    student: Any
    baselines: dict[str, float]
    validation: list[Problem]
    test: list[Problem]
    fingerprint: str
    uncut: Callable[[], Any]

    def export(self, model: Any, folder: Path) -> None:
        """Write a trained student with its whole vocabulary and its tokenizer, in bfloat16.

        Tokens that were cut keep the embeddings that they had before training.
        """
        whole = self.uncut().to(torch.bfloat16)
        trained, kept = model.state_dict(), self.vocabulary.kept
        state = whole.state_dict()
        for name, tensor in trained.items():
            if kept is not None and tensor.shape[0] != state[name].shape[0]:
                state[name][kept] = tensor.to("cpu", torch.bfloat16)
            else:
                state[name] = tensor.to("cpu", torch.bfloat16)
        whole.load_state_dict(state)
        whole.save_pretrained(folder)
        self.vocabulary.tokenizer.save_pretrained(folder)


def load_material(source: Source, config: SadConfig, device: str) -> Material:
    """Return what a trial needs; what the teacher says comes from the cache where it has said it before.

    Raises:
        InputError: If a model is not there, or teacher and student have different vocabularies.
    """
    tokenizer = load_tokenizer(base_of(source.teacher))
    if not LAYERS.fullmatch(source.student):
        require_same_vocabulary(tokenizer, load_tokenizer(source.student))
    practice = source.problems("train", config.trajectories)
    validation = source.problems("validation", config.validation_problems)
    # what a roll-out may hold, whatever is trained on
    trajectories, held_out = ([expert_trajectory(problem) for problem in some] for some in (practice, validation))
    texts = [trajectory.text for trajectory in [*trajectories, *held_out]]
    if source.file:
        trajectories, held_out = load_file(source.file, source.skip_malformed).split(config.trajectories)
        texts += [trajectory.text for trajectory in (*trajectories, *held_out)]
    vocabulary = Vocabulary.of(tokenizer, texts)
    teacher: LocalTeacher | ServerTeacher
    if source.server:
        teacher = ServerTeacher(source.server, vocabulary)
    else:
        teacher = local_teacher(source.teacher, vocabulary, device)
    if source.trajectories == "teacher":
        trajectories = teacher_trajectories(source, teacher, vocabulary, practice)
    if len(trajectories) < config.batch_size * config.accumulation:
        raise InputError(
            f"--trajectories {source.trajectories} leaves {len(trajectories)} to train on, fewer than the "
            f"{config.batch_size * config.accumulation} of one step; lower batch_size or accumulation, or give more."
        )
    train, held = ([vocabulary.tokens(one) for one in some] for some in (trajectories, held_out))
    baselines = scripted_baselines(validation, source.seed)
    baselines["teacher_success_rate"] = _success(
        source, "teacher", teacher.player, teacher.fingerprint, vocabulary, validation
    )
    train_targets = judged(teacher, train, config.top_k, source.folder)
    held_out_targets = judged(teacher, held, config.top_k, source.folder)
    student = make_student(source, vocabulary, device)
    identity = fingerprint(student_fingerprint(source.student), teacher.fingerprint)
    baselines["untrained_success_rate"] = _success(
        source, "untrained", computing(student, device), identity, vocabulary, validation
    )
    data = hashlib.sha256(b"".join(row.ids.tobytes() for row in [*train, *held])).hexdigest()
    return Material(
        vocabulary, train, train_targets, held, held_out_targets, practice, teacher, student, baselines, validation,
        source.problems("test", config.test_problems), fingerprint(teacher.fingerprint, data),
        lambda: make_student(source, Vocabulary(tokenizer), "cpu"),
    )  # fmt: skip


def check_source(source: Source) -> None:
    """Refuse models that are not there or do not go together, before anything is trained.

    Raises:
        InputError: With what to do instead.
    """
    if source.environment == TEXTWORLD:
        require_textworld()
    tokenizer = load_tokenizer(base_of(source.teacher))
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"--teacher {source.teacher}: its tokenizer has no end-of-sequence token; choose another model."
        )
    adapter = adapter_of(source.teacher)
    if adapter is not None and not Path(adapter, "adapter_model.safetensors").is_file():
        raise InputError(f"The teacher's adapter is not in {adapter}; make it with --train-teacher {adapter}.")
    if source.server:
        check_server(source.server, tokenizer("Task: a").input_ids)
    layers = LAYERS.fullmatch(source.student)
    if layers is None:
        require_same_vocabulary(tokenizer, load_tokenizer(source.student))
    elif int(layers[1]) > (most := layer_count(base_of(source.teacher))):
        raise InputError(f"--student {source.student}: the teacher has only {most} layers.")


def base_of(teacher: str) -> str:
    """Return the model whose weights and tokenizer a teacher has."""
    return "smollm2" if teacher == TAUGHT else teacher


def adapter_of(teacher: str) -> str | None:
    return str(SHIPPED_TEACHER) if teacher == TAUGHT else None


def local_teacher(name: str, vocabulary: Vocabulary, device: str) -> LocalTeacher:
    """Return a teacher in this process, in bfloat16 where the device is fast at it."""
    model = cut_model(load_model(base_of(name), device, adapter_of(name)), vocabulary.kept)
    own = fingerprint(model_fingerprint(name), tokenizer_fingerprint(vocabulary.tokenizer), vocabulary.kept)
    return LocalTeacher(model.to(torch.bfloat16) if has_fast_bf16(device) else model, own)


def model_fingerprint(name: str) -> str:
    """Return what names a model's weights, wherever they lie, and those of the adapter that a teacher has."""
    parts, adapter = [pretrained.fingerprint(base_of(name))], adapter_of(name)
    for file in sorted(Path(adapter).glob("*.safetensors")) if adapter else []:
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return fingerprint(parts)


def student_fingerprint(name: str) -> str:
    """Return what names a student: ``layers:N`` of the teacher as it is, or another model's weights."""
    return name if LAYERS.fullmatch(name) else model_fingerprint(name)


def make_student(source: Source, vocabulary: Vocabulary, device: str) -> Any:
    """Return the student before training, in float32, its vocabulary cut."""
    layers = LAYERS.fullmatch(source.student)
    if layers:
        model = load_model(base_of(source.teacher), device, adapter_of(source.teacher))
        return cut_model(first_layers(model, int(layers[1])), vocabulary.kept)
    return cut_model(load_model(source.student, device), vocabulary.kept)


def computing(model: Any, device: str) -> Any:
    """Return a copy of a model for roll-outs, in bfloat16 where the device is fast at it."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    return copied.to(torch.bfloat16) if has_fast_bf16(device) else copied


def teacher_trajectories(
    source: Source, teacher: LocalTeacher | ServerTeacher, vocabulary: Vocabulary, practice: Sequence[Problem]
) -> list[Trajectory]:
    """Return the episodes of training problems in which the teacher succeeded, from the cache where they are there."""

    def make() -> pa.Table:
        environments = {problem.name: problem.environment() for problem in practice}
        played = [episode.trajectory for episode in play(environments, {"teacher": teacher.player}, vocabulary)]
        rows = [
            {"name": one.name, "kind": one.kind, "difficulty": one.difficulty, "span": part.span, "text": part.text}
            for one in played
            if one.success
            for part in one.segments
        ]
        return pa.Table.from_pylist(rows, TRAJECTORY_COLUMNS)

    def read(table: pa.Table) -> list[Trajectory]:
        parts: dict[tuple[str, str, int], list[Segment]] = {}
        for row in table.to_pylist():
            key = row["name"], row["kind"], row["difficulty"]
            parts.setdefault(key, []).append(Segment(row["span"], row["text"]))
        return [Trajectory(name, tuple(found), kind, depth, True) for (name, kind, depth), found in parts.items()]

    names = fingerprint(teacher.fingerprint, [problem.name for problem in practice])
    return list(cached(source.folder, f"episodes-{names}", make, read))


def scripted_baselines(validation: Sequence[Problem], seed: int) -> dict[str, float]:
    """Return the success of the expert and of random actions, by column."""
    draw = random.Random(seed)
    policies: Mapping[str, Callable[[Environment], str]] = {
        "expert": lambda environment: environment.expert_action()[1],
        "random": lambda environment: draw.choice(environment.actions()),
    }
    return {
        f"{name}_success_rate": float(np.mean([_plays(p, policy) for p in validation]))
        for name, policy in policies.items()
    }


def _plays(problem: Problem, policy: Callable[[Environment], str]) -> bool:
    environment = problem.environment()
    environment.reset()
    over = False
    while not over:
        _, over = environment.step(policy(environment))
    return environment.success


def _success(
    source: Source, who: str, model: Any, own: str, vocabulary: Vocabulary, validation: Sequence[Problem]
) -> float:
    names = fingerprint(own, [problem.name for problem in validation])

    def make() -> Any:
        return numbers(outcome(play({p.name: p.environment() for p in validation}, {who: model}, vocabulary)))

    return float(cached(source.folder, f"{who}-{names}", make, named)["success_rate"])
