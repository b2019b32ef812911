"""The frozen base that adapters are trained on: which one a name means, and whether it can be adapted as asked.

A base is a Champion's checkpoint, named by its path; a canvas model's, named by its path or, for the one that ships,
``canvas``; or a causal LM: ``hf:NAME_OR_PATH`` on the hub or in a folder, or the name of one that a Python package
carries (`trainables.common.embedded`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.arc import Task
from trainables.atomic_lora.config import HUB
from trainables.common import embedded
from trainables.common.errors import InputError

# of a Hugging Face base, whose layers have other names: what the field adapts where nobody says otherwise
ALL_LINEAR = "all-linear"
HF_DEFAULTS = {"target_modules": (ALL_LINEAR,)}
# The layers of a canvas model that hold the embeddings of tasks. For a task without one, an adapter has to train them.
CANVAS_EMBEDDING = ("task_vector", "task_tokens")
CANVAS_DEFAULTS = {"target_modules": ("qkv", "out", "up", "down", *CANVAS_EMBEDDING)}
DEFAULT_BASE = Path(__file__).resolve().parent / "base"
# the canvas model that ships, by its name
CANVAS, CANVAS_BASE = "canvas", Path(__file__).resolve().parent / "canvas_base"
CANVAS_FILE = "canvas.safetensors"


def is_causal_lm(base: str) -> bool:
    """Return whether a base is a causal LM."""
    return base.startswith(HUB) or (base in embedded.MODELS and embedded.MODELS[base].kind == "causal_lm")


def is_canvas(base: str) -> bool:
    """Return whether a base is a canvas model's file or a folder with one."""
    path = Path(base)
    return base == CANVAS or path.name == CANVAS_FILE or (path / CANVAS_FILE).is_file()


def defaults(base: str) -> Mapping[str, object]:
    """Return the settings that a kind of base has where nobody says otherwise."""
    return HF_DEFAULTS if is_causal_lm(base) else CANVAS_DEFAULTS if is_canvas(base) else {}


def require_tasks(base: str, tasks: Mapping[str, Task], data: str, targets: Iterable[tuple[str, ...]]) -> None:
    """Refuse tasks that a base cannot be adapted to.

    Args:
        base: What `absolute` returned.
        tasks: The chosen tasks.
        data: What they were loaded from, for the message.
        targets: Each choice of layers to adapt.

    Raises:
        InputError: If the base is a canvas model, and a task that it knows is trained on views, or one that it does not
            know gets no embedding with its adapter.
    """
    if not is_canvas(base):
        return
    from trainables.atomic_lora.canvas import load_canvas

    known = load_canvas(base).tasks
    without = [names for names in targets if not {ALL_LINEAR, CANVAS_EMBEDDING[0]} & set(names)]
    for task in tasks.values():
        if task.id not in known and without:
            raise InputError(
                f"--base {base} has no embedding of the task {task.id}, and target_modules {','.join(without[0])} "
                f"train none; add {','.join(CANVAS_EMBEDDING)}, or leave the task out."
            )
        if task.id in known and task.augment:
            raise InputError(
                f"--base {base} knows a task by its embedding, which does not hold for the turned and recoloured "
                f"views that --data {data} trains on; give --data re-arc, re-arc:DIR or re-arc:FILE."
            )


def absolute(base: str) -> str:
    """Return a base as every machine's worker understands it: paths in full, names as they are."""
    if base == CANVAS:
        return str(CANVAS_BASE)
    if not is_causal_lm(base):
        return str(Path(base).expanduser().absolute())
    folder = Path(base.removeprefix(HUB)).expanduser()
    return f"{HUB}{folder.absolute()}" if base.startswith(HUB) and folder.exists() else base


def places(base: str) -> dict[str, str]:
    """Return what a machine must have for a base that `absolute` returned: its path, or its ``package:NAME``.

    A name on a hub needs nothing.
    """
    if base in embedded.MODELS:
        return {"package of the base": f"package:{embedded.MODELS[base].package}"}
    path = Path(base.removeprefix(HUB))
    return {"base": str(path)} if path.is_absolute() else {}


@dataclass(frozen=True)
class Checked:
    """A base that can be adapted.

    Attributes:
        fingerprint: 16 hex digits.
        parameters: Their number.
        layers: Adapted layers, of the choice that adapts most.
        share: Their part of the parameters.
        notes: What the user should know, in sentences.
        tasks: What is known of each text task (`base_check.check_texts`).
    """

    fingerprint: str
    parameters: int
    layers: int
    share: float
    notes: tuple[str, ...] = ()
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"The base has {self.parameters:,} parameters: adapts {self.layers} layers, {self.share:.1%} of them."


def check_base(
    base: str, target_module_sets: Iterable[tuple[str, ...]], purpose: Mapping[str, Any] | None = None
) -> Checked:
    """Refuse a base that cannot be loaded or adapted, or that does not go with the tasks.

    A causal LM is looked at in a process of its own: transformers would stay in the caller's memory, and an embedded
    model may have to be converted first.

    Args:
        base: What `absolute` returned.
        target_module_sets: Each choice of layers to adapt, at least one.
        purpose: What the adapters are for, ``grids`` or ``texts`` of `base_check.check`; None: not known yet.

    Raises:
        InputError: If the base cannot be loaded, or an adapter cannot be trained on the layers of a choice.
    """
    sets = [tuple(modules) for modules in target_module_sets]
    if is_causal_lm(base):
        return _check_elsewhere({"base": base, "targets": sets, **(purpose or {})})
    # torch is loaded where a base is
    from trainables.atomic_lora.canvas import load_canvas
    from trainables.atomic_lora.model import load_champion
    from trainables.pack.bank import AdapterPack

    load = load_canvas if is_canvas(base) else load_champion
    loaded = load(base)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    layers = max((AdapterPack(load(base).model, modules).layers for modules in sets), key=len)
    share = sum(inputs * outputs for inputs, outputs in layers.values()) / parameters
    return Checked(loaded.fingerprint, parameters, len(layers), share)


def _check_elsewhere(request: Mapping[str, Any]) -> Checked:
    command = [sys.executable, "-m", "trainables.atomic_lora.base_check"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The check of --base {request['base']!r} ended with {done.returncode}:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "refusal" in found:
        raise InputError(found["refusal"])
    return Checked(**{**found, "notes": tuple(found["notes"])})
