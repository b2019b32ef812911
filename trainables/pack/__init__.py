"""Train many LoRA adapters on one frozen base in batched steps; `docs/pack.md` shows how to use it by itself.

`bank` holds the stacked adapters and puts them on a model's linear layers, `engine` trains them from a queue of jobs,
`slots` is what it remembers of each, `plan` is what a model family tells it, `batching` decides which rows share a
batch, `optimizer` updates them, `probe` finds how many fit, `checkpoint` writes a slot's state and PEFT's own adapter
format. Nothing here knows a model family, Ray or a file format of data.
"""

from trainables.common.jobs import Job, ListQueue, Report
from trainables.pack.bank import AdapterPack
from trainables.pack.batching import BatchCost
from trainables.pack.checkpoint import Factors, save_peft
from trainables.pack.engine import PackEngine
from trainables.pack.plan import AdapterPlan, Evaluation, Size, Workload

__all__ = [
    "AdapterPack", "AdapterPlan", "BatchCost", "Evaluation", "Factors", "Job", "ListQueue", "PackEngine", "Report",
    "Size", "Workload", "save_peft",
]  # fmt: skip
