"""The bookkeeping of the engine: no request is lost or answered twice, bounds hold, and no group is shut out."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tpdm.serving.engine.interface import EngineStopped, QueueFull
from tpdm.serving.engine.scheduler import Scheduler


def filled(groups, slots=1, limit=100, ahead=0):
    queue = Scheduler(limit, slots, ahead)
    for i, group in enumerate(groups):
        queue.submit(f"{group}{i}", group)
    return queue


def served(queue):
    """Keys in the order in which they are taken, one at a time."""
    order = []
    while (key := queue.take(0.0)) is not None:
        order.append(key)
        queue.end(key, "finished")
    return order


def test_groups_are_served_in_turn_and_each_in_order():
    assert served(filled("aaabbc")) == ["a0", "b3", "c5", "a1", "b4", "a2"]


def test_a_burst_does_not_shut_out_who_comes_later():
    queue = filled("a" * 50)
    queue.take(0.0)
    queue.submit("late", "b")
    queue.end("a0", "finished")
    assert [queue.take(0.0)] == ["a1"]
    queue.end("a1", "finished")
    assert queue.take(0.0) == "late"


def test_no_more_are_taken_than_places_and_those_ahead():
    queue = filled("aaaa", slots=1, ahead=1)
    assert [queue.take(0.0) for _ in range(3)] == ["a0", "a1", None]
    queue.seat("a0")
    assert queue.take(0.0) is None
    queue.unseat("a0", 1.0)  # its place is free while it is decoded
    assert queue.take(1.0) == "a2"


def test_a_full_queue_says_when_to_come_again():
    queue = filled("aaa", slots=2, limit=1)
    with pytest.raises(QueueFull, match="1 waiting already") as refusal:
        queue.submit("more", "a")
    assert refusal.value.retry_after == queue.retry_after() > 0
    assert (queue.running, queue.waiting, queue.refused) == (2, 1, 1)


def test_the_estimate_follows_how_long_images_hold_their_place():
    queue = Scheduler(1, 4)
    for i in range(100):
        queue.submit(str(i), "a")
        queue.take(10.0 * i)
        queue.seat(str(i))
        queue.unseat(str(i), 10.0 * i + 8.0)
        queue.end(str(i), "finished")
    assert queue.retry_after() == pytest.approx(8.0 / 4, rel=0.01)


def test_a_stopped_queue_takes_nothing_new_and_keeps_what_it_has():
    queue = filled("ab")
    queue.stop()
    with pytest.raises(EngineStopped, match="send it again"):
        queue.submit("late", "a")
    assert served(queue) == ["a0", "b1"]


def test_cancelling_and_deadlines():
    queue = Scheduler(10, 1, ahead=0)
    queue.submit("runs", "a", deadline=5.0)
    queue.submit("waits", "a", deadline=3.0)
    queue.take(0.0)
    assert queue.next_deadline() == 3.0
    assert queue.overdue(4.0) == ["waits"]
    assert queue.ask_to_end("waits", "expired") == "waiting"
    assert queue.ask_to_end("waits", "cancelled") is None
    assert queue.ask_to_end("runs", "cancelled") == "taken"
    assert queue.overdue(6.0) == []
    assert queue.end("runs", "finished") == "cancelled"
    assert queue.end("runs", "finished") is None
    assert dict(queue.ended) == {"expired": 1, "cancelled": 1}


class QueueMachine(RuleBasedStateMachine):
    """Random lives of requests, against the simplest model: a dictionary of places, and who was told what."""

    def __init__(self):
        super().__init__()
        self.slots, self.limit, self.ahead = 2, 3, 1
        self.queue = Scheduler(self.limit, self.slots, self.ahead)
        self.places, self.groups, self.asked, self.answers = {}, {}, {}, {}
        self.accepted = self.now = 0
        self.overtaken = set()  # (head of a waiting group, group that was served meanwhile)

    def at(self, *places):
        return [key for key, place in self.places.items() if place in places]

    @rule(group=st.sampled_from("abc"), patience=st.integers(1, 30))
    def submit(self, group, patience):
        key = str(self.accepted)
        room = len(self.at("waiting", "taken", "seated")) < self.slots + self.limit
        if not room:
            with pytest.raises(QueueFull):
                self.queue.submit(key, group, self.now + patience)
            return
        self.queue.submit(key, group, self.now + patience)
        self.accepted += 1
        self.places[key], self.groups[key] = "waiting", group

    @rule()
    def take(self):
        busy, waiting = len(self.at("taken", "seated")), self.at("waiting")
        key = self.queue.take(self.now)
        assert (key is None) == (busy >= self.slots + self.ahead or not waiting)
        if key is None:
            return
        group = self.groups[key]
        assert key == next(k for k in waiting if self.groups[k] == group)  # first come, first served
        # While somebody heads the queue of its group, every other group is served once at most.
        heads = {self.groups[k]: k for k in reversed(waiting)}
        for head in heads.values():
            if self.groups[head] != group:
                assert (head, group) not in self.overtaken
                self.overtaken.add((head, group))
        self.places[key] = "taken"

    @precondition(lambda self: self.at("taken") and len(self.at("seated")) < self.slots)
    @rule(data=st.data())
    def seat(self, data):
        key = data.draw(st.sampled_from(self.at("taken")))
        self.queue.seat(key)
        self.places[key] = "seated"

    @precondition(lambda self: self.at("seated"))
    @rule(data=st.data())
    def unseat(self, data):
        key = data.draw(st.sampled_from(self.at("seated")))
        self.queue.unseat(key, self.now)
        self.places[key] = "unseated"

    @precondition(lambda self: self.at("taken", "seated", "unseated"))
    @rule(data=st.data(), outcome=st.sampled_from(["finished", "failed"]))
    def end(self, data, outcome):
        key = data.draw(st.sampled_from(self.at("taken", "seated", "unseated")))
        self.told(key, self.queue.end(key, outcome), self.asked.get(key, outcome))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def end_again(self, data):
        key = data.draw(st.sampled_from(sorted(self.answers)))
        assert self.queue.end(key, "failed") is None
        assert self.queue.ask_to_end(key, "cancelled") is None

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def cancel(self, data):
        self.ask(data.draw(st.sampled_from(sorted(self.places))), "cancelled")

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds):
        self.now += seconds
        for key in self.queue.overdue(self.now):
            self.ask(key, "expired")
        assert self.queue.next_deadline() > self.now

    def ask(self, key, why):
        place = self.queue.ask_to_end(key, why)
        assert place == self.places[key]
        self.asked.setdefault(key, why)
        if place == "waiting":
            self.told(key, self.asked[key], self.asked[key])

    def told(self, key, outcome, expected):
        assert outcome == expected
        assert key not in self.answers
        self.answers[key] = outcome
        del self.places[key]

    @invariant()
    def bounds_hold_and_nobody_is_lost(self):
        queue = self.queue
        assert queue.waiting <= self.limit
        assert queue.running <= self.slots + len(self.at("unseated"))
        assert len(queue) == len(self.places)
        assert sum(queue.ended.values()) == len(self.answers)
        assert len(self.places) + len(self.answers) == self.accepted

    def teardown(self):
        while self.places:
            for key in self.at("taken", "seated", "unseated"):
                self.told(key, self.queue.end(key, "finished"), self.asked.get(key, "finished"))
            self.take()
        assert (len(self.queue), len(self.answers)) == (0, self.accepted)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_requests_ahead_are_taken_several_at_once():
    queue = Scheduler(limit=20, slots=2, ahead=4)
    for n in range(12):
        queue.submit(str(n), "a")
    taken = []
    while queue.has_next:
        taken.append(queue.take(0.0))
    assert taken == list("012345")  # the places and four ahead
    for n in range(2):
        queue.seat(str(n))
    queue.unseat("0", 1.0)
    queue.seat("2")
    assert not queue.has_next  # three are ahead
    queue.unseat("1", 1.0)
    assert [queue.take(1.0), queue.take(1.0), queue.take(1.0)] == ["6", "7", None]
