"""The example of docs/pack.md does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pack.md"


@pytest.mark.slow
def test_the_example_trains_adapters_that_load_in_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    ends = {report.trial_id: report for report in names["queue"].reports if report.status != "running"}
    assert {name: report.status for name, report in ends.items()} == dict.fromkeys(("by-1", "by-2", "by-3"), "success")
    for name, report in ends.items():
        model: Any = LlamaForCausalLM(names["config"])
        loaded: Any = PeftModel.from_pretrained(model, f"adapters/{name}")
        assert sum("lora_A" in key for key, _ in loaded.named_parameters()) == 2 * 4
        history = [row["eval_loss"] for r in names["queue"].reports if r.trial_id == name for row in r.history]
        assert report.metrics["best_loss"] < history[0]
