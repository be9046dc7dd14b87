"""The queue and its thread, with programs that say what they were given."""

import asyncio
import threading
import time

import pytest

from t5x_lite.serving.batcher import Batcher, Closed, DeadlinePassed, QueueFull


class Program:
    """Doubles numbers; waits for `go` first, and remembers its batches."""

    def __init__(self):
        self.go = threading.Event()
        self.began = threading.Event()
        self.batches = []

    def __call__(self, payloads):
        self.batches.append(list(payloads))
        self.began.set()
        assert self.go.wait(10)
        return [ValueError(f"{payload} is odd") if payload % 2 else 2 * payload for payload in payloads]


def soon(seconds=10.0):
    return time.monotonic() + seconds


def run(scenario, *, max_batch=4, max_wait=0.0, max_queue=8, **arguments):
    """Runs a coroutine function of a batcher."""
    batcher = Batcher(max_batch=max_batch, max_wait=max_wait, max_queue=max_queue, **arguments)

    async def whole():
        try:
            return await scenario(batcher)
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(whole())


async def blocked(batcher, program, payload=0):
    """Occupies the thread with a first payload."""
    task = asyncio.create_task(batcher.submit(program, payload, soon()))
    await asyncio.to_thread(program.began.wait, 10)
    return task


async def submitted(batcher, program, payloads, deadline=None):
    tasks = [asyncio.create_task(batcher.submit(program, payload, deadline or soon())) for payload in payloads]
    await asyncio.sleep(0)  # so that all of them are in the queue
    return tasks


def test_what_waits_meanwhile_runs_together_and_each_gets_its_own_result():
    program = Program()

    async def scenario(batcher):
        first = await blocked(batcher, program)
        others = await submitted(batcher, program, [2, 4, 6, 8, 10])
        program.go.set()
        return [ran.value for ran in await asyncio.gather(first, *others)]

    assert run(scenario) == [0, 4, 8, 12, 16, 20]
    assert program.batches == [[0], [2, 4, 6, 8], [10]]


def test_other_programs_do_not_share_a_batch_and_the_oldest_goes_first():
    one, two = Program(), Program()
    order = []
    one.go.set(), two.go.set()

    async def scenario(batcher):
        gate = Program()
        first = await blocked(batcher, gate)
        tasks = (
            await submitted(batcher, one, [2]) + await submitted(batcher, two, [4]) + await submitted(batcher, one, [6])
        )
        for name, task in zip("abc", tasks, strict=True):
            task.add_done_callback(lambda _, name=name: order.append(name))
        gate.go.set()
        await asyncio.gather(first, *tasks)

    run(scenario)
    assert one.batches == [[2, 6]] and two.batches == [[4]]
    assert order == ["a", "c", "b"]


def test_a_request_waits_for_others_but_not_longer_than_it_is_told():
    program = Program()
    program.go.set()

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit(program, 2, soon()))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(batcher.submit(program, 4, soon()))
        ran = await asyncio.gather(first, second)
        return [each.queued for each in ran]

    waited, _ = run(scenario, max_wait=0.3)
    assert program.batches == [[2, 4]] and 0.29 <= waited < 5


def test_a_full_queue_refuses_and_says_when_to_come_again_but_lets_the_admitted_in():
    program = Program()

    async def scenario(batcher):
        first = await blocked(batcher, program)
        tasks = await submitted(batcher, program, [2, 4, 6])
        assert batcher.full and batcher.depth == 3
        with pytest.raises(QueueFull) as refused:
            await batcher.submit(program, 8, soon())
        admitted = asyncio.create_task(batcher.submit(program, 8, soon(), admitted=True))
        await asyncio.sleep(0)
        program.go.set()
        return refused.value.retry_after, (await asyncio.gather(first, *tasks, admitted))[-1].value

    retry_after, value = run(scenario, max_queue=3)
    assert retry_after >= 1 and value == 16


def test_who_left_or_waited_too_long_is_not_computed():
    program = Program()

    async def scenario(batcher):
        first = await blocked(batcher, program)
        (gone,) = await submitted(batcher, program, [2])
        (late,) = await submitted(batcher, program, [4], soon(0.05))
        (kept,) = await submitted(batcher, program, [6])
        gone.cancel()
        with pytest.raises(DeadlinePassed):
            await late
        depth = batcher.depth  # they have made room before the thread comes to look
        program.go.set()
        await asyncio.gather(first, kept)
        return depth

    assert run(scenario) == 1
    assert program.batches == [[0], [6]]


def test_a_deadline_ends_the_waiting_for_a_batch_that_runs_already():
    program = Program()

    async def scenario(batcher):
        began = time.monotonic()
        with pytest.raises(DeadlinePassed):
            await batcher.submit(program, 2, soon(0.05))
        program.go.set()
        return time.monotonic() - began

    assert run(scenario) < 5


def test_an_error_is_that_of_its_own_payload():
    program = Program()
    program.go.set()

    async def scenario(batcher):
        return await asyncio.gather(*await submitted(batcher, program, [2, 3]), return_exceptions=True)

    good, bad = run(scenario)
    assert good.value == 4 and isinstance(bad, ValueError) and str(bad) == "3 is odd"


def test_a_program_that_fails_as_a_whole_fails_for_the_payload_at_fault_only():
    def program(payloads):
        if 3 in payloads:
            raise RuntimeError("three")
        return payloads

    async def scenario(batcher):
        gate = Program()
        first = await blocked(batcher, gate)
        tasks = await submitted(batcher, program, [2, 3, 4])
        gate.go.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    two, three, four = run(scenario)
    assert (two.value, str(three), four.value) == (2, "three", 4)


def test_a_batcher_that_is_closed_ends_what_it_has_and_takes_no_more():
    program, sizes = Program(), []

    async def scenario(batcher):
        first = await blocked(batcher, program)
        (queued,) = await submitted(batcher, program, [2])
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        while not batcher._closed:
            await asyncio.sleep(0.001)
        with pytest.raises(Closed):
            await batcher.submit(program, 4, soon())
        program.go.set()
        await closing
        return [(await first).value, (await queued).value]

    assert run(scenario, observe_batch=sizes.append) == [0, 4]
    assert sizes == [1, 1]
