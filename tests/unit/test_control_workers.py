"""The worker pool: who gets what, who waits, and what a loss costs. No sockets, no clock but trio's own."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.errors import AgentFailed, Busy, ComityError, InvalidName, NoWorker, UnexpectedMessage, WorkerLost
from comity.v1 import control_pb2 as pb
from comity_node.control.workers import Capacity, SkillQueue, WorkerLimits, WorkerPool

ORGANIZATION = "mercy.example"


class FakeWorker:
    """The worker's end of a stream, in memory."""

    def __init__(self) -> None:
        self._to_pool, self._from_worker = trio.open_memory_channel[pb.WorkRequest](math.inf)
        self._from_pool: list[pb.WorkResponse] = []
        self._arrived = trio.Event()
        self.cancelled: list[int] = []
        self.ended: ComityError | str = ""

    # the pool's end
    async def receive(self) -> pb.WorkRequest:
        return await self._from_worker.receive()

    async def send(self, message: pb.WorkResponse) -> None:
        self.send_nowait(message)

    def send_nowait(self, message: pb.WorkResponse) -> None:
        self._from_pool.append(message)
        self._arrived.set()

    # the worker's end
    async def serve(self, pool: WorkerPool) -> None:
        try:
            await pool.serve(self)
            self.ended = "in order"
        except ComityError as error:
            self.ended = error
        finally:
            self._from_worker.close()

    def hello(self, name: str = "generator", skills: tuple[str, ...] = ("generate",)) -> None:
        self.say(hello=pb.WorkerHello(agent=name, skills=skills))

    def say(self, **message: Any) -> None:
        self._to_pool.send_nowait(pb.WorkRequest(**message))

    def done(self, item: pb.WorkItem, result: object = None, *, error: str = "", credits: int = 1) -> None:
        body = result if isinstance(result, bytes) else json.dumps(result).encode()
        self.say(done=pb.WorkDone(id=item.id, result=body, error=error, credits=credits))

    async def item(self) -> pb.WorkItem:
        """The next item; notes what else comes."""
        while True:
            while self._from_pool:
                message = self._from_pool.pop(0)
                if message.HasField("item"):
                    return message.item
                if message.WhichOneof("message") == "cancel":
                    self.cancelled.append(message.cancel)
            self._arrived = trio.Event()
            await self._arrived.wait()

    def has_item(self) -> bool:
        return any(message.HasField("item") for message in self._from_pool)

    def die(self) -> None:
        self._to_pool.close()


def in_trio(test: Callable[[WorkerPool, trio.Nursery], Awaitable[None]], **limits: Any) -> None:
    async def main() -> None:
        with trio.fail_after(1000):
            pool = WorkerPool(ORGANIZATION, limits=WorkerLimits(**limits))
            async with trio.open_nursery() as nursery:
                await test(pool, nursery)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def connect(
    pool: WorkerPool, nursery: trio.Nursery, *, credits: int = 1, skills: tuple[str, ...] = ("generate",)
) -> FakeWorker:
    worker = FakeWorker()
    nursery.start_soon(worker.serve, pool)
    worker.hello(skills=skills)
    worker.say(credits=credits)
    await trio.testing.wait_all_tasks_blocked()
    return worker


class Caller:
    """One call in the background, and how it went."""

    def __init__(
        self, pool: WorkerPool, nursery: trio.Nursery, payload: object, deadline_s: float = 100, skill: str = "generate"
    ) -> None:
        self.result: object = None
        self.error: ComityError | None = None
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self._pool, self._payload, self._deadline_s, self._skill = pool, payload, deadline_s, skill
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                self.result = await self._pool.call(self._skill, self._payload, deadline_s=self._deadline_s)
            except ComityError as error:
                self.error = error
        self.over.set()


def test_what_can_be_done_of_a_skill_is_known() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        assert pool.capacity("generate") == Capacity(0, None)
        worker = await connect(pool, nursery, credits=2)
        callers = [Caller(pool, nursery, {}) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        assert pool.capacity("generate") == Capacity(at_once=2, seconds=None)
        assert pool.capacity("other") == Capacity(0, None)
        await trio.sleep(4)
        worker.done(await worker.item(), {})
        await callers[0].over.wait()
        known = pool.capacity("generate")
        assert known.at_once == 2
        assert known.seconds == pytest.approx(4, abs=0.1)
        worker.die()
        await trio.testing.wait_all_tasks_blocked()
        assert pool.capacity("generate") == Capacity(0, None), "what nobody offers is forgotten"
        for caller in callers:
            caller.scope.cancel()

    in_trio(test)


def test_who_fails_at_once_is_not_taken_for_fast() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery)
        failing = Caller(pool, nursery, {})
        worker.done(await worker.item(), error="no model")
        await failing.over.wait()
        assert pool.capacity("generate") == Capacity(at_once=1, seconds=None)
        good = Caller(pool, nursery, {})
        item = await worker.item()
        await trio.sleep(4)
        worker.done(item, {})
        await good.over.wait()
        again = Caller(pool, nursery, {})
        worker.done(await worker.item(), error="no model")
        await again.over.wait()
        assert pool.capacity("generate").seconds == pytest.approx(4, abs=0.1)

    in_trio(test)


def test_a_worker_gets_the_input_and_the_caller_the_result() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery)
        caller = Caller(pool, nursery, {"count": 3}, deadline_s=30)
        item = await worker.item()
        assert (item.skill, json.loads(item.input), item.deadline_ms) == ("generate", {"count": 3}, 30_000)
        worker.done(item, {"records": []})
        await caller.over.wait()
        assert caller.result == {"records": []}

    in_trio(test)


def test_agents_skills_and_changed_tell_who_is_there() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        assert (pool.skills(), pool.agents()) == ((), ())
        changed = pool.changed
        worker = await connect(pool, nursery, credits=2, skills=("repair", "generate"))
        assert changed.is_set()
        await connect(pool, nursery, credits=3)
        (agent,) = pool.agents()
        assert str(agent.agent_id) == "spiffe://mercy.example/agent/generator"
        assert (agent.skills, agent.workers, agent.credits) == (("generate", "repair"), 2, 5)
        changed = pool.changed
        worker.die()
        await changed.wait()
        assert pool.skills() == ("generate",)

    in_trio(test)


@pytest.mark.invariant("R4")
def test_a_worker_gets_no_more_than_its_credits_and_the_rest_waits_in_order() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery, credits=2)
        callers = []
        for number in range(4):
            callers.append(Caller(pool, nursery, number))
            await trio.testing.wait_all_tasks_blocked()
        held = [await worker.item(), await worker.item()]
        assert not worker.has_item()
        worker.done(held[0], "first", credits=0)
        await trio.testing.wait_all_tasks_blocked()
        assert not worker.has_item()  # done without a credit brings no new item
        worker.say(credits=1)
        third = await worker.item()
        assert [json.loads(item.input) for item in (*held, third)] == [0, 1, 2]

    in_trio(test)


def test_credits_are_capped() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery, credits=1_000_000)
        for number in range(10):
            Caller(pool, nursery, number)
        await trio.testing.wait_all_tasks_blocked()
        assert pool.agents()[0].running == 4
        worker.say(credits=1_000_000)
        await trio.testing.wait_all_tasks_blocked()
        assert pool.agents()[0].running == 4

    in_trio(test, credits=4)


def test_the_least_loaded_worker_is_picked() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        workers = [await connect(pool, nursery, credits=4) for _ in range(3)]
        for number in range(6):
            Caller(pool, nursery, number)
        await trio.testing.wait_all_tasks_blocked()
        for worker in workers:
            assert {(await worker.item()).id, (await worker.item()).id}
            assert not worker.has_item()

    in_trio(test)


def test_a_worker_of_another_skill_gets_nothing() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        reviewer = await connect(pool, nursery, skills=("review",))
        generator = await connect(pool, nursery)
        Caller(pool, nursery, 1)
        await generator.item()
        Caller(pool, nursery, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert not reviewer.has_item()

    in_trio(test)


@pytest.mark.invariant("R4")
def test_a_full_queue_says_busy() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        await connect(pool, nursery, credits=1)
        callers = []
        for number in range(4):
            callers.append(Caller(pool, nursery, number))
            await trio.testing.wait_all_tasks_blocked()
        assert isinstance(callers[3].error, Busy)
        assert [caller.over.is_set() for caller in callers] == [False, False, False, True]
        callers[1].scope.cancel()  # its place is free again
        await callers[1].over.wait()
        late = Caller(pool, nursery, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert not late.over.is_set()

    in_trio(test, waiting=2)


def test_no_room_before_the_deadline_is_busy() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        await connect(pool, nursery, credits=0)
        with pytest.raises(Busy, match="no worker had room within 3 s"):
            await pool.call("generate", None, deadline_s=3)

    in_trio(test)


def test_nobody_offers_the_skill() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        begun = trio.current_time()
        with pytest.raises(NoWorker, match=r"'generate'.*comity\.worker"):
            await pool.call("generate", None, deadline_s=100)
        assert trio.current_time() - begun == pytest.approx(5)
        with pytest.raises(NoWorker):  # that long already: no need to wait again
            await pool.call("generate", None, deadline_s=100)
        assert trio.current_time() - begun == pytest.approx(5)

    in_trio(test, grace_s=5)


def test_a_worker_that_comes_back_within_the_grace_is_fine() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        await trio.sleep(60)
        (await connect(pool, nursery)).die()
        await trio.testing.wait_all_tasks_blocked()
        caller = Caller(pool, nursery, 1)
        await trio.sleep(4.9)
        worker = await connect(pool, nursery)
        worker.done(await worker.item(), "here again")
        await caller.over.wait()
        assert caller.result == "here again"

    in_trio(test, grace_s=5)


@pytest.mark.invariant("R3")
def test_a_lost_worker_costs_a_retry_on_another() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        first = await connect(pool, nursery)
        caller = Caller(pool, nursery, "work")
        await first.item()
        second = await connect(pool, nursery)
        first.die()
        item = await second.item()
        assert json.loads(item.input) == "work"
        second.done(item, "done")
        await caller.over.wait()
        assert caller.result == "done"
        assert pool.counters()["worker_losses"] == 1

    in_trio(test)


def test_work_of_a_lost_worker_goes_before_what_waits() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        first = await connect(pool, nursery)
        Caller(pool, nursery, "old")
        await first.item()
        Caller(pool, nursery, "new")
        await trio.testing.wait_all_tasks_blocked()
        first.die()
        await trio.testing.wait_all_tasks_blocked()
        second = await connect(pool, nursery, credits=2)
        assert [json.loads((await second.item()).input) for _ in range(2)] == ["old", "new"]

    in_trio(test)


def test_after_three_retries_the_caller_hears_of_it() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        caller = Caller(pool, nursery, "poison")
        for _ in range(4):
            worker = await connect(pool, nursery)
            await worker.item()
            worker.die()
            await trio.testing.wait_all_tasks_blocked()
        assert isinstance(caller.error, WorkerLost)
        assert "4 workers died" in str(caller.error)

    in_trio(test)


def test_lost_and_nobody_left_is_worker_lost() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery)
        caller = Caller(pool, nursery, "work")
        await worker.item()
        worker.die()
        await caller.over.wait()
        assert isinstance(caller.error, WorkerLost)

    in_trio(test)


@pytest.mark.parametrize(
    ("result", "error", "said"),
    [
        (b"", "agent 'generator', skill 'generate': ValueError: no", "ValueError: no"),
        (b"{", "", "not JSON"),
        (b"\xff\xfe", "", "not JSON"),
        (b'{"a": NaN}', "", "NaN is no JSON number"),
        (b"[" * 100_000, "", "not JSON"),
        (b'"' + b"x" * 100 + b'"', "", "and may have 100"),
    ],
)
def test_what_an_agent_does_wrong_is_its_failure(result: bytes, error: str, said: str) -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery)
        caller = Caller(pool, nursery, None)
        worker.done(await worker.item(), result, error=error)
        await caller.over.wait()
        assert isinstance(caller.error, AgentFailed)
        assert said in str(caller.error)
        after = Caller(pool, nursery, None)  # the worker goes on
        worker.done(await worker.item(), "fine")
        await after.over.wait()
        assert after.result == "fine"

    in_trio(test, payload=100 if "may have" in said else 4 * 1024 * 1024)


@pytest.mark.parametrize("payload", [{1, 2}, float("nan"), "x" * 200])
def test_an_input_that_cannot_be_sent_fails_at_once(payload: object) -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery)
        with pytest.raises(AgentFailed, match="the input"):
            await pool.call("generate", payload, deadline_s=1)
        assert not worker.has_item()

    in_trio(test, payload=100)


def test_too_slow_is_the_agents_failure_and_the_worker_is_told() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery, credits=1)
        caller = Caller(pool, nursery, None, deadline_s=2)
        item = await worker.item()
        await caller.over.wait()
        assert isinstance(caller.error, AgentFailed)
        assert "took longer than 2 s" in str(caller.error)
        following = Caller(pool, nursery, "next")
        await trio.testing.wait_all_tasks_blocked()
        assert not worker.has_item()  # the worker still holds the cancelled one
        worker.done(item, error="cancelled")
        assert json.loads((await worker.item()).input) == "next"
        assert worker.cancelled == [item.id]
        assert not following.over.is_set()

    in_trio(test)


def test_a_cancelled_caller_cancels_the_work() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery, credits=2)
        caller = Caller(pool, nursery, None)
        item = await worker.item()
        caller.scope.cancel()
        await caller.over.wait()
        Caller(pool, nursery, "next")
        await worker.item()
        assert worker.cancelled == [item.id]

    in_trio(test)


@pytest.mark.invariant("R5")
def test_a_leaving_worker_gets_no_more_and_is_let_go_when_it_is_done() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery, credits=3)
        caller = Caller(pool, nursery, "held")
        item = await worker.item()
        worker.say(leaving=pb.WorkerLeaving())
        await trio.testing.wait_all_tasks_blocked()
        assert pool.skills() == ()
        assert worker.ended == ""
        later = Caller(pool, nursery, "later")
        worker.done(item, "finished")
        await caller.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert (caller.result, worker.ended) == ("finished", "in order")
        assert not worker.has_item()
        await later.over.wait()
        assert isinstance(later.error, NoWorker)

    in_trio(test)


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (pb.WorkRequest(credits=3), UnexpectedMessage),
        (pb.WorkRequest(hello=pb.WorkerHello(agent="Generator", skills=["generate"])), InvalidName),
        (pb.WorkRequest(hello=pb.WorkerHello(agent="../x", skills=["generate"])), InvalidName),
        (pb.WorkRequest(hello=pb.WorkerHello(agent="generator")), UnexpectedMessage),
        (
            pb.WorkRequest(hello=pb.WorkerHello(agent="generator", skills=[f"s{n}" for n in range(65)])),
            UnexpectedMessage,
        ),
        (pb.WorkRequest(hello=pb.WorkerHello(agent="generator", skills=["no spaces"])), InvalidName),
    ],
)
def test_a_bad_hello_is_refused(hello: pb.WorkRequest, error: type[ComityError]) -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = FakeWorker()
        nursery.start_soon(worker.serve, pool)
        worker._to_pool.send_nowait(hello)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(worker.ended, error)
        assert pool.agents() == ()

    in_trio(test)


@pytest.mark.parametrize(
    "message",
    [
        {"done": pb.WorkDone(id=99)},
        {"hello": pb.WorkerHello(agent="generator", skills=["generate"])},
        {},
    ],
)
def test_a_worker_that_breaks_the_protocol_is_cut(message: dict[str, Any]) -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery)
        worker.say(**message)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(worker.ended, UnexpectedMessage)
        assert pool.agents() == ()

    in_trio(test)


@pytest.mark.invariant("S7")
def test_workers_are_limited_and_a_silent_one_is_cut() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        await connect(pool, nursery)
        await connect(pool, nursery)
        third = await connect(pool, nursery)
        assert isinstance(third.ended, Busy)
        silent = FakeWorker()
        nursery.start_soon(silent.serve, pool)
        await trio.sleep(11)
        assert isinstance(silent.ended, UnexpectedMessage)

    in_trio(test, workers=2)


ACTIONS = ("connect", "die", "leave", "finish", "fail", "call", "give up")


@pytest.mark.invariant("R4")
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7)), max_size=40))
def test_whatever_happens_no_credit_is_overdrawn_and_every_call_ends(actions: list[tuple[str, int]]) -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        workers: list[FakeWorker] = []
        held: dict[FakeWorker, list[pb.WorkItem]] = {}
        callers: list[Caller] = []

        async def settle() -> None:
            await trio.testing.wait_all_tasks_blocked()
            for worker in workers:
                while worker.has_item():
                    held[worker].append(await worker.item())
                assert len(held[worker]) <= 2, "more than its credits"

        for action, choice in actions:
            if action == "connect" and len(workers) < 4:
                workers.append(await connect(pool, nursery, credits=2))
                held[workers[-1]] = []
            elif action == "call":
                callers.append(Caller(pool, nursery, len(callers), deadline_s=50))
            elif action == "give up" and callers:
                callers[choice % len(callers)].scope.cancel()
            elif workers and action in ("die", "leave", "finish", "fail"):
                worker = workers[choice % len(workers)]
                if worker.ended:
                    workers.remove(worker)
                elif action == "die":
                    worker.die()
                    workers.remove(worker)
                elif action == "leave":
                    worker.say(leaving=pb.WorkerLeaving())
                elif held[worker]:
                    worker.done(held[worker].pop(0), "fine", error="failed" if action == "fail" else "")
            await settle()
        for worker in workers:
            worker.die()
        for caller in callers:
            await caller.over.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert pool.agents() == ()
        assert pool._waiting == {}

    in_trio(test)


def test_queues_say_how_much_there_is_to_do() -> None:
    async def test(pool: WorkerPool, nursery: trio.Nursery) -> None:
        worker = await connect(pool, nursery, credits=2, skills=("repair", "generate"))
        for skill in ("generate", "repair", "repair", "paint"):
            Caller(pool, nursery, None, skill=skill)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(2)
        assert pool.queues() == (
            SkillQueue("generate", workers=1, running=1, free=0, waiting=0, waiting_ms=0),
            SkillQueue("paint", workers=0, running=0, free=0, waiting=1, waiting_ms=2000),
            SkillQueue("repair", workers=1, running=1, free=0, waiting=1, waiting_ms=2000),
        )
        worker.say(credits=3)
        await trio.testing.wait_all_tasks_blocked()
        found = {each.skill: each for each in pool.queues()}
        assert (found["repair"].running, found["repair"].waiting, found["repair"].free) == (2, 0, 2)
        worker.say(leaving=pb.WorkerLeaving())
        await trio.testing.wait_all_tasks_blocked()
        assert [each.skill for each in pool.queues()] == ["paint"]

    in_trio(test)
