"""The broker's promises, without Ray: every job ends exactly once, whatever dies and whoever cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sweeps.backend.pool.broker import MAX_BARREN_STARTS, MAX_DEATHS, PoolBroker
from tests.sweeps.stub_pool import make_job
from trainables.common.jobs import Report


def running(name: str, epoch: int, loss: float = 1.0) -> Report:
    return Report(name, "running", epoch, {"eval_loss": loss}, [{"epoch": epoch}])


def ended(name: str, epoch: int, status: Any = "success", loss: float = 0.5) -> Report:
    return Report(name, status, epoch, {"eval_loss": loss})


def with_broker(test: Callable[[PoolBroker], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    async def run() -> None:
        # within the event loop, as in an actor
        await test(PoolBroker())

    def call() -> None:
        asyncio.run(asyncio.wait_for(run(), 5))

    return call


async def filled(broker: PoolBroker, *names: str, limit: int = 10) -> int:
    for name in names:
        await broker.submit(name, [make_job(name)])
    token = await broker.register(0, 1)
    assert token is not None
    await broker.take(token, limit, 0)
    return token


async def sent(broker: PoolBroker) -> list[tuple[str, str, int]]:
    _, reports, _ = await broker.collect(0)
    return [(r.trial_id, r.status, r.epoch) for r in reports]


async def is_waiting(task: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0.01)
    return not task.done()


@with_broker
async def test_a_refusal_ends_everything_and_no_job_has_failed(broker: PoolBroker) -> None:
    token = await filled(broker, "a", "b", limit=1)
    waiting = asyncio.create_task(broker.end_of("a"))
    assert await is_waiting(waiting)
    await broker.refuse("the base is none")
    await broker.refuse("and again")
    await waiting
    assert await broker.refusal() == "the base is none" and await broker.is_over()
    assert await broker.push(token, []) == {"a"} and await broker.register(0, 1) is None
    assert await sent(broker) == [] and (await broker.collect(0))[2]["refused"]


@with_broker
async def test_reports_go_to_the_driver_and_a_trial_sees_the_end_of_its_unit(broker: PoolBroker) -> None:
    waiting = asyncio.create_task(broker.end_of("a"))
    assert await is_waiting(waiting)  # it may ask before the unit is there
    token = await filled(broker, "a")
    await broker.push(token, [running("a", 5)])
    assert await is_waiting(waiting)
    await broker.push(token, [ended("a", 9)])
    await waiting
    await broker.end_of("a")  # a restarted trial asks again
    assert await sent(broker) == [("a", "running", 5), ("a", "success", 9)]


@with_broker
async def test_a_panel_ends_with_the_last_of_its_jobs(broker: PoolBroker) -> None:
    await broker.submit("panel", [make_job("b"), make_job("c")])
    token = await filled(broker)
    waiting = asyncio.create_task(broker.end_of("panel"))
    await broker.push(token, [running("b", 5), running("c", 5), ended("b", 9)])
    assert await is_waiting(waiting)
    await broker.push(token, [ended("c", 12)])
    await waiting


def test_workers_share_the_last_jobs() -> None:
    async def run() -> None:
        broker = PoolBroker()
        for name in "abcde":
            await broker.submit(name, [make_job(name)])
        first, second = await broker.register(0, 2), await broker.register(1, 2)
        assert first is not None and second is not None
        assert len((await broker.take(first, 9, 0))[0]) == 3
        assert (await broker.take(first, 9, 0))[0] == []
        assert len((await broker.take(second, 9, 0))[0]) == 2
        await broker.submit("f", [make_job("f")])
        assert (await broker.take(first, 9, 0))[0] == []
        assert [job.trial_id for job in (await broker.take(second, 9, 0))[0]] == ["f"]

    asyncio.run(asyncio.wait_for(run(), 5))


@with_broker
async def test_reports_say_which_worker_they_come_from(broker: PoolBroker) -> None:
    await filled(broker, "a", limit=1)
    for name in "bc":
        await broker.submit(name, [make_job(name)])
    token = await broker.register(1, 2)
    assert token is not None
    await broker.take(token, 1, 0)
    await broker.push(token, [running("b", 5), ended("b", 9)])
    _, reports, _ = await broker.collect(0)
    assert [report.metrics["worker"] for report in reports] == [1, 1]


@with_broker
async def test_reports_are_kept_until_confirmed(broker: PoolBroker) -> None:
    token = await filled(broker, "a")
    await broker.push(token, [running("a", 5)])
    first, reports, _ = await broker.collect(0)
    again, repeated, _ = await broker.collect(0)
    assert (first, reports) == (again, repeated) and len(reports) == 1
    assert (await broker.collect(first))[1] == []


@with_broker
async def test_jobs_of_a_dead_worker_go_to_the_head_of_the_queue_in_order(broker: PoolBroker) -> None:
    old = await filled(broker, "a", "b", "c", limit=2)
    new = await broker.register(0, 1)
    assert new is not None
    await broker.push(old, [ended("a", 9)])  # what a worker says after it was replaced does not count
    assert await broker.take(old, 9, 0) == ([], set(), False)
    jobs, _, more = await broker.take(new, 9, 0)
    assert [job.trial_id for job in jobs] == ["a", "b", "c"] and more
    await broker.push(new, [ended("a", 9), ended("a", 9)])
    assert await sent(broker) == [("a", "success", 9)]
    assert (await broker.collect(0))[2]["duplicates"] == 2


@with_broker
async def test_jobs_of_a_worker_that_is_no_more_go_to_those_that_are_left(broker: PoolBroker) -> None:
    for name in ("a", "b"):
        await broker.submit(name, [make_job(name)])
    tokens = [await broker.register(rank, 2) for rank in (0, 1)]
    for token in tokens:
        assert token is not None
        assert len((await broker.take(token, 1, 0))[0]) == 1
    # its machine is gone: Train starts one worker in the place of two
    left = await broker.register(0, 1)
    assert left is not None
    jobs, _, more = await broker.take(left, 10, 0)
    assert {job.trial_id for job in jobs} == {"a", "b"} and more
    assert await broker.take(tokens[1] or 0, 1, 0) == ([], set(), False)
    await broker.push(tokens[1] or 0, [ended("b", 3)])
    await broker.push(left, [ended("a", 9), ended("b", 9)])
    assert sorted(await sent(broker)) == [("a", "success", 9), ("b", "success", 9)]


@with_broker
async def test_a_job_that_kills_its_worker_fails(broker: PoolBroker) -> None:
    token: int | None = await filled(broker, "a", "b", limit=1)
    for _ in range(MAX_DEATHS):
        token = await broker.register(0, 1)
        assert token is not None
        jobs, _, _ = await broker.take(token, 1, 0)
    assert [job.trial_id for job in jobs] == ["b"]
    assert await sent(broker) == [("a", "failed", 0)]


@with_broker
async def test_pool_gives_up_when_workers_never_report(broker: PoolBroker) -> None:
    await broker.submit("a", [make_job("a")])
    for _ in range(MAX_BARREN_STARTS - 1):
        token = await broker.register(0, 1)
        assert token is not None
        await broker.crashed(token, "Traceback ...\nRuntimeError: no base")
    assert await broker.register(0, 1) is None
    await broker.end_of("a")
    await broker.submit("late", [make_job("late")])
    _, reports, counts = await broker.collect(0)
    assert [(r.trial_id, r.status) for r in reports] == [("a", "failed"), ("late", "failed")]
    assert "no base" in str(reports[0].error) and counts["unfinished"] == 0


@with_broker
async def test_cancel_of_queued_and_running_jobs(broker: PoolBroker) -> None:
    token = await filled(broker, "a", "b", limit=1)
    await broker.cancel("b")
    assert await sent(broker) == [("b", "stopped", 0)]
    await broker.cancel("a")
    assert await broker.push(token, [running("a", 5)]) == {"a"}
    assert await broker.push(token, []) == set()  # told once
    await broker.push(token, [ended("a", 6, "stopped")])
    assert (await sent(broker))[1:] == [("a", "running", 5), ("a", "stopped", 6)]


@with_broker
async def test_cancelled_job_of_a_dead_worker_ends_from_its_last_report(broker: PoolBroker) -> None:
    token = await filled(broker, "a")
    await broker.push(token, [running("a", 5)])
    await broker.cancel("a")
    await broker.register(0, 1)
    _, reports, _ = await broker.collect(0)
    assert reports[-1] == Report("a", "stopped", 5, {"eval_loss": 1.0, "worker": 0})


@with_broker
async def test_take_waits_for_a_job(broker: PoolBroker) -> None:
    token = await broker.register(0, 1)
    assert token is not None
    assert await broker.take(token, 1, 0) == ([], set(), True)
    waiting = asyncio.create_task(broker.take(token, 1, 5))
    await asyncio.sleep(0.01)
    await broker.submit("a", [make_job("a")])
    assert [job.trial_id for job in (await waiting)[0]] == ["a"]
    waiting = asyncio.create_task(broker.take(token, 1, 5))
    await asyncio.sleep(0.01)
    await broker.close()
    assert await waiting == ([], set(), False)


@with_broker
async def test_drain_finishes_nothing_and_loses_no_report(broker: PoolBroker) -> None:
    token = await filled(broker, "a", "b", "c", limit=2)
    await broker.push(token, [running("a", 5)])
    waiting = asyncio.create_task(broker.end_of("a"))
    assert await is_waiting(waiting)
    await broker.drain()
    await waiting
    await broker.end_of("c")
    assert await broker.take(token, 9, 0) == ([], {"a", "b"}, False)
    await broker.push(token, [ended("a", 7, "stopped"), ended("b", 9, "success")])
    assert await sent(broker) == [("a", "running", 5), ("a", "running", 7), ("b", "success", 9)]
    assert (await broker.collect(0))[2]["running"] == 0


@with_broker
async def test_panel_fails_as_a_whole(broker: PoolBroker) -> None:
    await broker.submit("p", [make_job("a"), make_job("b"), make_job("c")])
    token = await broker.register(0, 1)
    assert token is not None
    await broker.take(token, 2, 0)
    assert await broker.push(token, [Report("a", "failed", 3, {}, (), "diverged")]) == {"b"}
    await broker.end_of("p")
    assert [status for _, status, _ in await sent(broker)] == ["failed"] * 3
    await broker.push(token, [running("b", 5)])
    assert len(await sent(broker)) == 3
