"""The loop that keeps Ray actors, with a Ray that is played: how many there are, and what a stop waits for."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from comity.client import Client
from comity.errors import ControlError
from comity.ray import pool
from comity.ray.scaling import Scaler, ScalingSettings
from comity.worker import Report

DONE = {name: 0 for name in Report.__dataclass_fields__}


class RayError(Exception):
    """Ray's own."""


class RayTaskError(RayError):
    """Likewise."""


class Ref:
    """A result that comes later, or never."""

    def __init__(self) -> None:
        self.value: Any = None

    def say(self, value: object) -> None:
        self.value = value


class Method:
    """A method of an actor."""

    def __init__(self, called: Callable[[], Ref]) -> None:
        self.remote = called


class Handle:
    """An actor: serves until it is told to leave, and then until `left`."""

    def __init__(self, ray: Ray) -> None:
        self.serving, self.skill, self.leaving = Ref(), Ref(), False
        self.serve, self.skills, self.leave = Method(lambda: self.serving), Method(self._skills), Method(self._leave)
        self.ray = ray
        ray.started.append(self)

    def _skills(self) -> Ref:
        self.ray.asked.append(self)
        return self.skill

    def _leave(self) -> Ref:
        self.leaving = True
        if self.ray.leaves_at_once:
            self.left()
        return Ref()

    def left(self) -> None:
        self.serving.say(DONE)


class Ray:
    """As much of the module as the pool uses."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, leaves_at_once: bool = True) -> None:
        self.started: list[Handle] = []
        self.asked: list[Handle] = []
        self.leaves_at_once = leaves_at_once
        self.waited: Callable[[], None] = lambda: None

    def remote(self, **_: object) -> Callable[[type], SimpleNamespace]:
        return lambda _: SimpleNamespace(remote=lambda *_: Handle(self))

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        assert ref.value is not None, "the loop waits for somebody who may never answer"
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def wait(self, refs: Sequence[Ref], num_returns: int = 1, timeout: float = 0) -> tuple[list[Ref], list[Ref]]:
        if timeout:
            self.waited()
        ready = [ref for ref in refs if ref.value is not None][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def kill(self, handle: Handle) -> None:
        handle.serving.say(RayError("killed"))


class Node:
    """Says how long its queue is."""

    def __init__(self) -> None:
        self.waiting = 0

    def status(self) -> Any:
        if self.waiting < 0:
            raise ControlError("no answer")
        return SimpleNamespace(loads=[SimpleNamespace(skill="label", running=0, waiting=self.waiting)])


def run(monkeypatch: pytest.MonkeyPatch, ray: Ray, node: Node, rounds: Sequence[Callable[[], None]]) -> pool.RayReport:
    """Run the loop; what it waits for each time is the next of `rounds`, and it is stopped after the last."""
    monkeypatch.setattr(pool, "ray_module", lambda: ray)
    over, todo = threading.Event(), list(rounds)

    def waited() -> None:
        if todo:
            todo.pop(0)()
        if not todo:
            over.set()

    ray.waited = waited
    scaler = Scaler(ScalingSettings(1, 3, 0.0), 1)
    return pool._Pool(scaler, cast("Client", node), {}, (), 30.0).run(over, 0.1)


def test_those_that_leave_count_until_they_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, node = Ray(leaves_at_once=False), Node()
    seen: list[tuple[int, int]] = []

    def see() -> None:
        there = [each for each in ray.started if each.serving.value is None]
        seen.append((len(there), sum(each.leaving for each in there)))

    def known() -> None:
        ray.started[0].skill.say(("label",))
        node.waiting = 3

    def quiet() -> None:
        see()
        node.waiting = 0

    def busy() -> None:
        see()
        node.waiting = 9

    def left() -> None:
        see()
        for each in ray.started:
            if each.leaving:
                each.left()

    def end() -> None:
        see()
        ray.leaves_at_once = True

    report = run(monkeypatch, ray, node, [known, quiet, busy, left, see, end])
    assert seen[:3] == [(3, 0), (3, 2), (3, 2)], "two leave, and nobody takes their place yet"
    assert seen[-1] == (3, 0)
    assert report.most == 3
    assert report.killed == 0


def test_an_actor_that_does_not_say_its_skills_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, node = Ray(), Node()
    node.waiting = 2
    report = run(monkeypatch, ray, node, [lambda: None] * 3)
    assert len(ray.asked) == 1
    assert (report.most, report.killed) == (1, 0)


def test_another_actor_is_asked_where_the_first_one_died(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, node, clock = Ray(), Node(), itertools.count(100.0, 60.0)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    node.waiting = 2

    def die() -> None:
        ray.started[0].skill.say(RayError("died"))
        ray.started[0].serving.say(RayError("died"))

    report = run(monkeypatch, ray, node, [die, lambda: None, lambda: None])
    assert ray.asked == ray.started
    assert (len(ray.started), report.most, report.replaced) == (2, 1, 1)
