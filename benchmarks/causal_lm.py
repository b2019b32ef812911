"""Where the time of adapters on a causal LM goes: training, scoring, generation; attention, linear layers, output head.

    python benchmarks/causal_lm.py --tasks 8 --json FILE

One process with one thread, as a pool's worker on CPUs, and the engine without Ray: the smallest tasks, in slots that
all train at once, with the settings of ``--preset demo-lm`` but fewer epochs. The first pass is timed. A second one,
under PyTorch's profiler, says which share of it each kind of operator took. Then the trained adapters answer the test
pairs as they are and rounded to bfloat16, as an export may store them, on the base in float32: what the rounding costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import as_worker, record
from search_spaces.atomic_lora import LM_VALUES
from trainables.arc import Example, grid_tokens, load_tasks, test_examples
from trainables.atomic_lora.causal_lm import CPU_BATCH_OVERHEAD, CausalLMWorkload, load_causal_lm
from trainables.atomic_lora.config import AdapterConfig
from trainables.common.folder import Folder
from trainables.common.jobs import Job, ListQueue
from trainables.pack.bank import AdapterBank
from trainables.pack.checkpoint import Factors
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Evaluation

HEAD = "output head, forward"
# operators by what they are for; the others are listed as they are
KINDS = {
    "attention": ("scaled_dot_product", "_flash_attention", "softmax", "bmm", "baddbmm"),
    "linear layers": ("mm", "addmm", "addmm_", "mkldnn"),
}


class TimedWorkload(CausalLMWorkload):
    """Counts the seconds and tokens of each part."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seconds: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.trained: list[tuple[Job, AdapterPlan[Example], Factors]] = []

    def export(self, job: Job, plan: AdapterPlan[Example], factors: Factors, evaluation: Evaluation) -> str:
        self.trained.append((job, plan, factors))
        return ""

    @contextmanager
    def timed(self, part: str, tokens: int) -> Iterator[None]:
        begun = time.perf_counter()
        with record_function(f"Python in {part}"):
            yield
        self.seconds[part] += time.perf_counter() - begun
        self.tokens[part] += tokens

    def solve(self, rows: Sequence[Example]) -> Any:
        scored = self.seconds["scoring"]
        with self.timed("generation", sum(grid_tokens(row.query.output) for row in rows)):
            answers = super().solve(rows)
        self.seconds["generation"] -= self.seconds["scoring"] - scored
        return answers

    def _teacher_forced(self, rows: Sequence[Example]) -> Any:
        with self.timed("forward" if torch.is_grad_enabled() else "scoring", sum(self.size(r).tokens for r in rows)):
            return super()._teacher_forced(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--tasks", type=int, default=8, help="the smallest ones; all in slots of their own")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-overhead", type=float, default=CPU_BATCH_OVERHEAD, help="of a batch, in tokens")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    as_worker()
    torch.set_num_threads(1)
    tasks = load_tasks()
    chosen = sorted(tasks, key=lambda task_id: (tasks[task_id].tokens, task_id))[: args.tasks]
    values = vars(AdapterConfig()) | LM_VALUES | {"target_modules": ("all-linear",), "epochs": args.epochs}
    base = load_causal_lm(args.base)
    with tempfile.TemporaryDirectory() as folder:
        place = Folder(folder)
        workload = TimedWorkload(base, args.base, tasks, place, ("all-linear",), base.model.dtype == torch.bfloat16)
        cost = replace(workload.cost, overhead=args.batch_overhead)

        def train() -> PackEngine[Example]:
            engine: PackEngine[Example] = PackEngine(
                workload.pack, workload, len(chosen), values["rank"], cost=cost, component=workload.component,
                evaluation_dtype=torch.bfloat16 if workload.bf16 else torch.float32,
            )  # fmt: skip
            queue = ListQueue([Job(task_id, task_id, 0, values) for task_id in chosen])
            engine.run(queue)
            failed = [report.error for report in queue.reports if report.status == "failed"]
            if failed:
                raise RuntimeError(f"{len(failed)} adapters failed: {failed[0]}")
            return engine

        begun = time.perf_counter()
        stats = train().stats
        seconds = time.perf_counter() - begun
        parts, trained_adapters = dict(workload.seconds), list(workload.trained)
        trained = seconds - parts["scoring"] - parts["generation"]
        rows = {
            "seconds": seconds,
            "training_share": trained / seconds,
            "scoring_share": parts["scoring"] / seconds,
            "generation_share": parts["generation"] / seconds,
            "trained_tokens_per_s": stats.tokens / trained,
            "padding": 1 - stats.tokens / stats.padded_tokens,
            "scored_tokens_per_s": workload.tokens["scoring"] / parts["scoring"],
            "generated_tokens_per_s": workload.tokens["generation"] / parts["generation"],
        }
        head = base.model.get_output_embeddings()
        forward = head.forward

        def labelled(x: torch.Tensor) -> torch.Tensor:
            with record_function(HEAD):
                return forward(x)

        head.forward = labelled
        workload._base_solved.clear()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            train()
        rounding = cost_of_rounding(args.base, place, trained_adapters)
    events = {event.key: event for event in seen.key_averages()}
    whole = sum(event.self_cpu_time_total for event in events.values())
    shares: Counter[str] = Counter()
    for name, event in events.items():
        shares[kind_of(name)] += event.self_cpu_time_total / whole
    # with the products that are counted among the linear layers as well
    shares[HEAD] = events[HEAD].cpu_time_total / whole
    for name, value in rows.items():
        print(f"{name:24} {value:.3g}")
    for name, share in shares.most_common():
        if share >= 0.01 or name == HEAD:
            print(f"{share:>7.1%} {name}")
    for dtype, means in rounding.items():
        print(f"adapters in {dtype}: " + ", ".join(f"{name} {value:.5f}" for name, value in means.items()))
    operators = {name: share for name, share in shares.items() if share >= 0.001}
    record(args.json, {"tasks": len(chosen), **rows, "operators": operators, "rounding": rounding})


@torch.no_grad()
def cost_of_rounding(
    base: str, folder: Folder, trained: Sequence[tuple[Job, AdapterPlan[Example], Factors]]
) -> dict[str, dict[str, float]]:
    """Return means over tasks of the loss on test pairs and of their metrics, by the type that adapters are kept in."""
    tasks = load_tasks()
    loaded = load_causal_lm(base, dtype=torch.float32)
    workload = CausalLMWorkload(loaded, base, tasks, folder, ("all-linear",), bf16=False)
    examples = [test_examples(tasks[job.task_id]) for job, _, _ in trained]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        bank = AdapterBank(workload.pack.layers, len(trained), max(plan.rank for _, plan, _ in trained))
        for slot, (_, plan, factors) in enumerate(trained):
            bank.write(slot, {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in factors.items()}, plan.alpha)
        losses = []
        for slot, rows in enumerate(examples):
            with workload.pack.use(bank, [slot] * len(rows)):
                targets = sum(workload.size(row).targets for row in rows)
                losses.append(float(workload.score(rows)[0].sum()) / targets)
        with workload.pack.use(bank):
            evaluations = workload.evaluate([(job, plan) for job, plan, _ in trained])
        names = ("final_grid_accuracy", "final_cell_accuracy", "teacher_forced_cell_accuracy")
        found[str(dtype).removeprefix("torch.")] = {
            "loss": fmean(losses),
            **{name: fmean(evaluation.metrics[name] for evaluation in evaluations) for name in names},
        }
    return found


def kind_of(operator: str) -> str:
    """Return what an operator is for."""
    name = operator.removeprefix("aten::")
    for kind, names in KINDS.items():
        if name in names or any(part in name for part in names if part.startswith(("_", "scaled", "softmax"))):
            return kind
    return operator


if __name__ == "__main__":
    main()
