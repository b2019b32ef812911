"""A teacher is trained into a folder that `load_model` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.trainables.sad_student.models import save_tiny
from trainables.common.errors import InputError
from trainables.sad_student.models import load_model
from trainables.sad_student.pretrain import TeacherConfig, train_teacher


def test_a_teacher_is_an_adapter_with_a_record_of_how_it_was_made(tmp_path: Path) -> None:
    base, folder = save_tiny(tmp_path / "base"), tmp_path / "teacher"
    config = TeacherConfig(problems=12, batch_size=4, warmup_steps=1, evaluated=4, lr=1e-2)
    record = train_teacher(base, folder, config)
    assert json.loads((folder / "run.json").read_text()) == record
    assert record["config"]["problems"] == 12 and record["tokens"] > 12 * 30
    assert 0 <= record["validation"]["success_rate"] <= 1
    plain, taught = load_model(base, "cpu"), load_model(base, "cpu", str(folder))
    ids = torch.arange(10)[None]
    assert not torch.equal(plain(ids).logits, taught(ids).logits)
    with pytest.raises(InputError, match="holds a teacher"):
        train_teacher(base, folder, config)
