"""The table of who makes which batch: order, bounds and late helpers, by simulated time."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader.streaming.claims import Claims


@dataclass
class Simulation:
    """A stream whose threads and tasks take simulated seconds."""

    num_batches: int = 400
    threads: int = 2
    thread_seconds: float = 0.1
    tasks: int = 0
    task_seconds: float = 0.2
    consumer_seconds: float = 0.0
    lost_every: int = 0  # of the tasks' batches, one in so many never comes, and holds its place
    window: int = 32
    now: float = 0.0
    by_tasks: int = 0
    twice: int = 0
    most_held: int = 0
    _queue: list[int] = field(default_factory=list)
    _asked: list[int] = field(default_factory=list)
    _running: dict[int, float] = field(default_factory=dict)
    _working: dict[int, float] = field(default_factory=dict)
    _held: dict[int, str] = field(default_factory=dict)

    def run(self) -> float:
        """Returns the seconds of the whole stream."""
        self.claims = Claims(self.num_batches, 1 + self.threads, self.window, lambda: self.now)
        for turn in range(self.num_batches):
            while True:
                self._hand_out(turn)
                if self.claims.is_made(turn):
                    break
                self._advance(min(self._ends(), default=self.now + 0.2))
            assert self.claims.take() == turn
            self.by_tasks += self._held.pop(turn) == "task"
            self._advance(self.now + self.consumer_seconds)
        return self.now

    def _ends(self) -> list[float]:
        return [end for end in [*self._running.values(), *self._working.values()] if end < float("inf")]

    def _hand_out(self, turn: int) -> None:
        while (number := self.claims.for_threads()) is not None:
            self.claims.begin(number)
            self.twice += number in self._asked or number in self._working
            self._queue.append(number)
        while (number := self.claims.for_tasks(2 * self.tasks)) is not None:
            assert turn < number < turn + self.window
            self.claims.ask(number)
            self._asked.append(number)
        self._start()
        self.most_held = max(self.most_held, len({*self._held, *self._running, *self._queue}))

    def _start(self) -> None:
        while self._queue and len(self._running) < self.threads:
            self._running[self._queue.pop(0)] = self.now + self.thread_seconds
        while self._asked and len(self._working) < self.tasks:
            number = self._asked.pop(0)
            lost = self.lost_every and number % self.lost_every == 0
            self._working[number] = float("inf") if lost else self.now + self.task_seconds

    def _advance(self, until: float) -> None:
        while (end := min(self._ends(), default=until)) <= until:
            self.now = max(self.now, end)
            for kind, working, there in (
                ("thread", self._running, self.claims.made),
                ("task", self._working, self.claims.arrived),
            ):
                for number in [number for number, when in working.items() if when <= self.now]:
                    del working[number]
                    if there(number):
                        assert number >= self.claims.next  # else nobody would ever take it
                        assert number not in self._held
                        self._held[number] = kind
            self._start()
            if not self._ends():
                break
        self.now = max(self.now, until)


def test_threads_alone_make_all_in_their_time() -> None:
    assert Simulation().run() == pytest.approx(400 * 0.1 / 2, rel=0.02)


def test_tasks_add_their_rate_to_that_of_threads() -> None:
    """20 a second by threads and 20 by 4 tasks."""
    simulation = Simulation(tasks=4)
    assert simulation.run() == pytest.approx(400 / 40, rel=0.1)
    assert simulation.by_tasks == pytest.approx(200, rel=0.15)
    assert simulation.twice <= 20


@pytest.mark.parametrize("consumer_seconds", [0.06, 0.2])
def test_tasks_make_next_to_nothing_where_threads_keep_up(consumer_seconds: float) -> None:
    simulation = Simulation(tasks=4, consumer_seconds=consumer_seconds)
    assert simulation.run() == pytest.approx(400 * consumer_seconds, rel=0.05)
    assert simulation.by_tasks <= 12  # while the first batches are made


@pytest.mark.parametrize("task_seconds", [0.5, 3.0, 1000.0])
def test_slow_tasks_cost_nothing(task_seconds: float) -> None:
    """Not even those that are so slow that threads make their batches again."""
    alone = Simulation().run()
    assert Simulation(tasks=4, task_seconds=task_seconds).run() <= alone * 1.05


def test_a_batch_that_is_said_to_be_lost_is_free_at_once() -> None:
    claims = Claims(100, 2, 32, lambda: 0.0)
    assert claims.for_tasks(1) == 2
    claims.ask(2)
    assert claims.for_tasks(1) is None
    claims.lost(2)
    assert claims.for_tasks(1) == 2


def test_what_is_lost_costs_little() -> None:
    alone = Simulation(num_batches=1200).run()
    assert Simulation(num_batches=1200, tasks=4, lost_every=400).run() < 0.8 * alone


@settings(max_examples=200)
@given(
    st.builds(
        Simulation,
        num_batches=st.integers(0, 60),
        threads=st.integers(1, 5),
        thread_seconds=st.floats(0.01, 3),
        tasks=st.integers(0, 6),
        task_seconds=st.floats(0.01, 20),
        consumer_seconds=st.sampled_from([0.0, 0.05, 1.0]),
        lost_every=st.integers(0, 7),
        window=st.integers(8, 40),
    )
)
def test_every_batch_gets_its_turn_and_memory_is_bounded(simulation: Simulation) -> None:
    alone = Simulation(
        num_batches=simulation.num_batches,
        threads=simulation.threads,
        thread_seconds=simulation.thread_seconds,
        consumer_seconds=simulation.consumer_seconds,
    ).run()
    # A batch that tasks don't bring is waited for as long as threads make those that they have begun.
    assert simulation.run() <= alone + (simulation.num_batches + 1) * simulation.thread_seconds * 2 + 1
    # A thread may still be making what a task has brought meanwhile.
    assert simulation.most_held <= simulation.window + simulation.threads
