"""The adapter pool: one long-lived Ray Train run whose workers train the jobs of a broker, one for each GPU or core.

The workers are independent of each other: there is no process group. What they run is the family's pool loop; who
submits the jobs and reads the reports is ``sweeps/backend/pool/driver.py``.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import traceback
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ray
import ray.train

from sweeps.backend.pool.queue import BrokerQueue
from sweeps.backend.ray_private import data_parallel_trainer
from sweeps.backend.runs import TrainRun, use_threads
from trainables.common.errors import InputError, SurroundingsError

logger = logging.getLogger(__name__)

PoolLoop = str | Callable[[dict[str, Any], Any, Any], None]


class PoolError(SurroundingsError):
    """The machinery of the pool broke, as opposed to one of its jobs."""


class AdapterPool:
    """A Ray Train run whose workers train the jobs of a broker until it is closed.

    Args:
        pool_loop: ``pool_loop(settings, run, queue)`` or its name, ``"package.module:function"``. An InputError that
            it raises ends the pool at once; after any other error its worker starts again.
        settings: Passed to the loop.
        num_workers: One for each GPU, or for each CPU to compute on.
        elastic: Whether to go on with fewer workers, at least one, while machines come and go. Train looks once a
            minute whether there are more; each change restarts all workers.
        use_gpu: Whether each worker gets a GPU.
        max_failures: Times that workers may die before the pool gives up; it gives up earlier when they die at once.
    """

    def __init__(
        self,
        pool_loop: PoolLoop,
        settings: Mapping[str, Any],
        *,
        num_workers: int,
        use_gpu: bool,
        elastic: bool = False,
        max_failures: int = 100,
    ) -> None:
        self._loop, self._settings = pool_loop, dict(settings)
        self._scaling = ray.train.ScalingConfig(
            num_workers=(1, num_workers) if elastic else num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if use_gpu else {"CPU": 1},
        )
        self._failures = ray.train.FailureConfig(
            max_failures=max_failures,
            # Train learns late that a machine is gone, and first tries to start as many workers as before.
            controller_failure_limit=max_failures if elastic else 2,
        )

    def start(self, broker: Any, storage_path: str) -> None:
        """Start the workers and return at once. If they cannot run, the broker fails every job with the reason.

        Args:
            broker: Handle of the `PoolBroker` actor.
            storage_path: Where Train keeps its notes; every machine of the cluster must reach it.
        """
        self._broker = broker
        # Workers are independent, so the trainer that sets up no process group suffices.
        trainer = data_parallel_trainer(
            train_loop_per_worker=partial(_work, broker, self._loop, self._settings),
            scaling_config=self._scaling,
            run_config=ray.train.RunConfig(
                name=f"adapter-pool-{uuid.uuid4().hex[:8]}",
                storage_path=storage_path,
                failure_config=self._failures,
            ),
        )
        # In the main thread Train would replace the handler of Ctrl-C.
        self._thread = threading.Thread(target=self._run, args=(trainer,), name="adapter-pool", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Tell the workers to end; returns whether they did within ``timeout`` seconds, and else lets them fall."""
        ray.get(self._broker.close.remote(), timeout=timeout)
        self._thread.join(timeout)
        ended = not self._thread.is_alive()
        # A worker that cannot reach its broker ends, too.
        ray.kill(self._broker)
        return ended

    def _run(self, trainer: Any) -> None:
        try:
            trainer.fit()
            reason = "The adapter pool ended although there were jobs left."
        except Exception as error:
            reason = f"The adapter pool failed: {error}"
        if not ray.is_initialized():
            # The sweep is over; a call now would start another Ray.
            return
        try:
            ray.get(self._broker.give_up.remote(reason))
        except ray.exceptions.RayError:
            logger.warning("The adapter pool outlived its broker: %s", reason)


def _work(broker: Any, pool_loop: PoolLoop, settings: dict[str, Any]) -> None:
    """What a Train worker of the pool runs."""
    context = ray.train.get_context()
    try:
        token = ray.get(broker.register.remote(context.get_world_rank(), context.get_world_size()))
    except ray.exceptions.RayActorError:
        return
    if token is None:
        return
    try:
        use_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
        if isinstance(pool_loop, str):
            module, _, function = pool_loop.partition(":")
            loop = getattr(importlib.import_module(module), function)
        else:
            loop = pool_loop
        queue = BrokerQueue(broker, token)
        try:
            loop(dict(settings), TrainRun(), queue)
        finally:
            # Jobs that ended before the loop broke keep their results.
            queue.flush()
        if not ray.get(broker.is_over.remote()):
            raise PoolError("The pool loop returned before the queue was closed.")
    except ray.exceptions.RayActorError:
        return
    except InputError as error:
        ray.get(broker.refuse.remote(str(error)))
    except Exception:
        ray.get(broker.crashed.remote(token, traceback.format_exc()))
        raise
