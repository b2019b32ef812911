"""How fast a recursive reasoner trains, against a straightforward loop of the same model; no Ray.

    python benchmarks/recursive_reasoner.py --threads 2 --json benchmarks/results/reasoner-<machine>.json
    python benchmarks/recursive_reasoner.py --device cuda --width 512 --batch-size 768 --dataset sudoku9

All contenders train the same weights on the same puzzles with fixed halting, so that each does the same supervision
steps in the same order:

    reference    float32, a loop as one writes it first: AdamW and the averaged weights one parameter at a time, a loss
                 read back at every step
    float32      `Trainer`, float32
    bfloat16     `Trainer`, bfloat16 autocast, where the device is fast in it
    compiled     the same with its network compiled (``--compile``; it needs a C++ compiler, on GPUs Triton)

Contenders take turns, a few steps each, and the median over turns counts, so that ratios hold on a machine whose speed
drifts. ``loss`` is that of the first step, before any of them has learned: it is the same but for rounding.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import record
from trainables.common.precision import has_fast_bf16
from trainables.puzzles.kinds import KINDS
from trainables.recursive_reasoner.config import ReasonerConfig
from trainables.recursive_reasoner.data import Dataset, Stream, load_dataset
from trainables.recursive_reasoner.loss import log_stablemax, row_losses
from trainables.recursive_reasoner.model import Reasoner
from trainables.recursive_reasoner.trainer import Trainer


class Reference:
    """The straightforward loop."""

    def __init__(self, config: ReasonerConfig, dataset: Dataset, device: str) -> None:
        torch.manual_seed(0)
        self.config, self.device = config, device
        self.model = Reasoner(config, dataset.vocabulary, dataset.cells).to(device)
        self.average = copy.deepcopy(self.model)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr, betas=(config.beta1, config.beta2), foreach=False, fused=False,
        )  # fmt: skip
        self.stream, self.position, self.steps = Stream(dataset, 0), 0, config.max_steps
        self.train_step()
        self.first_loss = self.loss

    def train_step(self) -> None:
        """One supervision step of all rows; a new batch after ``max_steps`` of them."""
        if self.steps == self.config.max_steps:
            rows = np.arange(self.position, self.position + self.config.batch_size)
            inputs, targets, *_ = self.stream.at(rows)
            self.inputs = torch.from_numpy(inputs).long().to(self.device)
            self.targets = torch.from_numpy(targets).long().to(self.device)
            self.state, self.steps = self.model.start(len(rows)), 0
            self.position += len(rows)
        output = self.model(self.state, self.inputs)
        loss = row_losses(log_stablemax(output.logits), self.targets).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm, foreach=False)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.mul_(self.config.ema).add_(parameter, alpha=1 - self.config.ema)
        self.state, self.steps, self.loss = output.state, self.steps + 1, loss.item()


class Ours:
    """`Trainer`."""

    def __init__(self, config: ReasonerConfig, dataset: Dataset, device: str) -> None:
        self.trainer = Trainer(config, dataset, 0, device)
        self.train_step()
        self.first_loss = float(self.trainer.sums["train_loss"])

    def train_step(self) -> None:
        """One supervision step of all rows."""
        self.trainer.train_step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dataset", choices=[kind for kind in KINDS if kind != "mixed"], default="sudoku4")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--mixer", choices=("mlp", "attention"), default="mlp")
    parser.add_argument("--h-cycles", type=int, default=2)
    parser.add_argument("--l-cycles", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = ReasonerConfig(
        mixer=args.mixer, width=args.width, heads=4, prefix=1, h_cycles=args.h_cycles, l_cycles=args.l_cycles,
        max_steps=6, halting="fixed", lr=1e-3, lr_schedule="constant", warmup_steps=0, batch_size=args.batch_size,
        train_puzzles=2 * args.batch_size, views_per_puzzle=1000, epochs=1, held_out_puzzles=64, precision="float32",
    )  # fmt: skip
    dataset = load_dataset(args.dataset, config)
    half = {**vars(config), "precision": "auto"}
    makers: dict[str, Callable[[], Reference | Ours]] = {
        "reference": lambda: Reference(config, dataset, args.device),
        "float32": lambda: Ours(config, dataset, args.device),
    }
    if has_fast_bf16(args.device):
        makers["bfloat16"] = lambda: Ours(ReasonerConfig(**half), dataset, args.device)
    if args.compile:
        makers["compiled"] = lambda: Ours(ReasonerConfig(**half | {"compile": True}), dataset, args.device)
    contenders = {name: make() for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(args.turns + 1):
        for name, contender in contenders.items():
            seconds = measure(contender, args.steps, args.device)
            if turn:  # the first is a warm-up
                times[name].append(seconds / args.steps)
    reference = statistics.median(times["reference"])
    rows = []
    print(f"{'contender':>11} {'ms/step':>9} {'rows/s':>9} {'x reference':>12} {'loss':>9}")
    for name, contender in contenders.items():
        median = statistics.median(times[name])
        rows.append(
            {
                "contender": name,
                "seconds_per_step": median,
                "rows_per_s": args.batch_size / median,
                "ratio_vs_reference": reference / median,
                "loss": contender.first_loss,
            }
        )
        speed = f"{1e3 * median:9.1f} {args.batch_size / median:9.0f} {reference / median:12.2f}"
        print(f"{name:>11} {speed} {contender.first_loss:9.4f}")
    record(args.json, {"threads": args.threads, "contenders": rows})


def measure(contender: Reference | Ours, steps: int, device: str) -> float:
    """Return the seconds that so many steps take."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        contender.train_step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
