"""Train a canvas model in one process without Ray, for so many minutes, and say how fast it was.

    python benchmarks/canvas.py --minutes 6 --data re-arc:FILE --more FILE --set width=192 --folder FOLDER
    python benchmarks/canvas.py --minutes 0.5 --data re-arc:DIR --set layers=1 --folder FOLDER  # a look

The loop is `trainables.atomic_lora.canvas_pretrain`, which no sweep runs yet. The trained ``canvas.safetensors`` and
``run.json`` go to the folder, and the checkpoint, from which the same command goes on. ``--speed`` only times steps of
three canvas sizes, with compiled blocks and without.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import record
from trainables.atomic_lora.canvas import Canvas, pixel_losses
from trainables.atomic_lora.canvas_pretrain import make_optimizers, pretrain_canvas
from trainables.atomic_lora.config import CanvasConfig
from trainables.common.context import PlainRun
from trainables.common.precision import has_fast_bf16

SIDES = (10, 16, 30)


def steps_per_second(config: CanvasConfig, device: str, seconds: float) -> float:
    """Return how many training steps a second a model takes, on random canvases of several sizes in turn."""
    model = Canvas(config, 400).to(device)
    optimizers = make_optimizers(model, config)
    if config.compile:
        for block in model.blocks:
            block.compile(dynamic=True)
    batches = []
    for side in SIDES:
        count = max(1, config.batch_tokens // (side // 2) ** 2)
        canvases = torch.randint(0, 11, (count, side, side), dtype=torch.uint8, device=device)
        batches.append(
            (canvases, torch.full((count, 2), side, device=device), torch.zeros_like(canvases[:, 0, 0]).long())
        )

    def turn() -> None:
        for inputs, sizes, tasks in batches:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=has_fast_bf16(device)):
                logits = model(inputs, sizes, tasks)
            pixel_losses(logits, inputs, inputs, 2.0).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    for _ in range(2):
        turn()
    started, turns = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        turn()
        turns += 1
    return len(SIDES) * turns / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--data", required=True, metavar="re-arc:DIR|re-arc:FILE")
    parser.add_argument("--more", action="append", default=[], metavar="FILE", help="further pairs to train on")
    parser.add_argument("--without-official", action="store_true", help="leave the official pairs out")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="NAME=VALUE")
    parser.add_argument("--speed", action="store_true", help="time steps and train nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    values = dict(text.split("=", 1) for text in args.sets)
    kinds = {name: type(value) for name, value in asdict(CanvasConfig()).items()}
    config = CanvasConfig(**{
        name: value == "true" if kinds[name] is bool else kinds[name](value) for name, value in values.items()
    })  # fmt: skip
    config = replace(config, minutes=args.minutes)
    if args.speed:
        for compiled in (False, True):
            speed = steps_per_second(replace(config, compile=compiled), args.device, 4.0)
            print(f"{'compiled' if compiled else 'eager'}: {speed:.2f} steps/s", flush=True)
        return
    folder = Path(args.folder)
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    run = PlainRun(args.device, folder / "checkpoint")
    settings = {
        "config": asdict(config), "data": args.data, "more": args.more, "official": not args.without_official,
        "tasks": None, "seed": args.seed, "folder": str(folder),
    }  # fmt: skip
    pretrain_canvas(settings, run)
    last, examples = run.reports[-1], sum(report["examples"] for report in run.reports)
    print(json.dumps({name: value for name, value in last.items() if "/" not in name}, indent=2))
    record(str(folder / "run.json"), {
        "config": asdict(config), "seed": args.seed, "data": args.data, "more": args.more,
        "examples": examples, "examples_per_s": examples / last["spent_seconds"],
        "metrics": last, "reports": run.reports,
    })  # fmt: skip


if __name__ == "__main__":
    main()
