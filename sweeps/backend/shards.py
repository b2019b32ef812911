"""Build the shards of a generated dataset with Ray Data, as a stream: as many at once as there are CPUs.

A shard that is in the folder is not built again, so the same command finishes a build that was killed, a larger one
extends it, and a damaged shard is replaced. A folder of other puzzles is refused before anything is written.
"""

from __future__ import annotations

from typing import Any

import ray.data

from sweeps.backend import cluster
from trainables.common.errors import InputError
from trainables.common.folder import Folder
from trainables.puzzles.shards import Plan


def build(plan: Plan, location: str, shards: int, address: str | None = None) -> list[int]:
    """Write the shards that are missing; return their indices.

    Args:
        plan: What the shards hold.
        location: Folder or URI; every machine of the cluster must reach it.
        shards: How many there are to be.
        address: Ray cluster, as for `cluster.connect`.

    Raises:
        InputError: If the folder holds shards of another plan, or cannot be written.
    """
    folder = Folder(location)
    missing = plan.missing(folder, shards)
    if not missing:
        return []
    try:
        folder.write("plan.txt", f"{plan.kind.name} of side {plan.kind.side}, seed {plan.seed}\n".encode())
    except Exception as error:  # what an unwritable place raises depends on the file system
        raise InputError(f"--dataset-dir {location} cannot be written ({error}); choose another.") from error

    def draw(row: dict[str, Any]) -> dict[str, Any]:
        return {"shard": row["shard"], "fingerprint": plan.write(folder, int(row["shard"]))}

    with cluster.connect(address, num_gpus=0):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # a task for each shard: what a kill loses is the shards that were under way
        stream = ray.data.from_items([{"shard": i} for i in missing], override_num_blocks=len(missing)).map(draw)
        for done, row in enumerate(stream.iter_rows(), start=1):
            print(f"shard {row['shard']} ({done} of {len(missing)}): {row['fingerprint']}", flush=True)
    return missing
