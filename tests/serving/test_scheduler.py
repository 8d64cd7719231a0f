"""The scheduler of the engine: no request is lost or answered twice, bounds hold, and no group is blocked."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tpdm.serving.engine.interface import EngineStopped, QueueFull
from tpdm.serving.engine.scheduler import Scheduler


def filled(groups, slots=1, limit=100, ahead=0):
    scheduler = Scheduler(limit, slots, ahead)
    for i, group in enumerate(groups):
        scheduler.submit(f"{group}{i}", group)
    return scheduler


def served(scheduler):
    """Keys in the order in which they are started, one at a time."""
    order = []
    while (key := scheduler.start(0.0)) is not None:
        order.append(key)
        scheduler.end(key, "finished")
    return order


def admit(scheduler, key):
    scheduler.request_slot(key)
    return scheduler.admit()


def test_groups_are_served_in_turn_and_each_in_order():
    assert served(filled("aaabbc")) == ["a0", "b3", "c5", "a1", "b4", "a2"]


def test_a_burst_does_not_block_a_later_group():
    scheduler = filled("a" * 50)
    scheduler.start(0.0)
    scheduler.submit("late", "b")
    scheduler.end("a0", "finished")
    assert [scheduler.start(0.0)] == ["a1"]
    scheduler.end("a1", "finished")
    assert scheduler.start(0.0) == "late"


def test_no_more_are_started_than_slots_and_those_ahead():
    scheduler = filled("aaaa", slots=1, ahead=1)
    assert [scheduler.start(0.0) for _ in range(3)] == ["a0", "a1", None]
    assert admit(scheduler, "a0") == ["a0"]
    assert scheduler.start(0.0) is None
    scheduler.release_slot("a0", 1.0, finished=True)  # its slot is free while it is decoded
    assert scheduler.start(1.0) == "a2"


def test_slots_go_to_encoded_requests_in_the_order_in_which_they_ask():
    scheduler = filled("abc", slots=1, ahead=2)
    for _ in range(3):
        scheduler.start(0.0)
    assert admit(scheduler, "c2") == ["c2"]
    assert admit(scheduler, "b1") == []
    assert admit(scheduler, "a0") == []
    scheduler.release_slot("b1", 0.0, finished=False)  # aborted in the line
    scheduler.release_slot("c2", 0.0, finished=False)
    assert scheduler.admit() == ["a0"]
    scheduler.release_slot("c2", 0.0, finished=False)  # again, which changes nothing
    assert scheduler.admit() == []
    assert scheduler.retry_after() == 1.0  # aborted images do not count


def test_a_full_queue_gives_the_seconds_to_the_next_try():
    scheduler = filled("aaa", slots=2, limit=1)
    with pytest.raises(QueueFull, match="queue limit: 1") as refusal:
        scheduler.submit("more", "a")
    assert refusal.value.retry_after == scheduler.retry_after() > 0
    assert (scheduler.running, scheduler.waiting, scheduler.refused) == (2, 1, 1)


def test_the_estimate_follows_how_long_images_use_their_slot():
    scheduler = Scheduler(1, 4)
    for i in range(100):
        scheduler.submit(str(i), "a")
        scheduler.start(10.0 * i)
        admit(scheduler, str(i))
        scheduler.release_slot(str(i), 10.0 * i + 8.0, finished=True)
        scheduler.end(str(i), "finished")
    assert scheduler.retry_after() == pytest.approx(8.0 / 4, rel=0.01)


def test_a_stopped_scheduler_accepts_nothing_and_keeps_its_requests():
    scheduler = filled("ab")
    scheduler.stop()
    with pytest.raises(EngineStopped, match="Send the request again"):
        scheduler.submit("late", "a")
    assert served(scheduler) == ["a0", "b1"]


def test_cancelling_and_deadlines():
    scheduler = Scheduler(10, 1, ahead=0)
    scheduler.submit("runs", "a", deadline=5.0)
    scheduler.submit("waits", "a", deadline=3.0)
    scheduler.start(0.0)
    assert scheduler.next_deadline() == 3.0
    assert scheduler.expired(4.0) == ["waits"]
    assert scheduler.abort("waits", "expired") == "waiting"
    assert scheduler.abort("waits", "cancelled") is None
    assert scheduler.abort("runs", "cancelled") == "encoding"
    assert scheduler.expired(6.0) == []
    assert scheduler.end("runs", "finished") == "cancelled"
    assert scheduler.end("runs", "finished") is None
    assert dict(scheduler.ended) == {"expired": 1, "cancelled": 1}


class SchedulerMachine(RuleBasedStateMachine):
    """Random lives of requests, compared with the simplest model: a dictionary of states, a line, and the answers."""

    def __init__(self):
        super().__init__()
        self.slots, self.limit, self.ahead = 2, 3, 1
        self.scheduler = Scheduler(self.limit, self.slots, self.ahead)
        self.states, self.groups, self.aborted, self.answers = {}, {}, {}, {}
        self.line = []  # encoded requests without a slot
        self.accepted = self.now = 0
        self.overtaken = set()  # (head of a waiting group, group that was served meanwhile)

    def at(self, *states):
        return [key for key, state in self.states.items() if state in states]

    @rule(group=st.sampled_from("abc"), patience=st.integers(1, 30))
    def submit(self, group, patience):
        key = str(self.accepted)
        room = len(self.at("waiting", "encoding", "denoising")) < self.slots + self.limit
        if not room:
            with pytest.raises(QueueFull):
                self.scheduler.submit(key, group, self.now + patience)
            return
        self.scheduler.submit(key, group, self.now + patience)
        self.accepted += 1
        self.states[key], self.groups[key] = "waiting", group

    @rule()
    def start(self):
        busy, waiting = len(self.at("encoding", "denoising")), self.at("waiting")
        key = self.scheduler.start(self.now)
        assert (key is None) == (busy >= self.slots + self.ahead or not waiting)
        if key is None:
            return
        group = self.groups[key]
        assert key == next(k for k in waiting if self.groups[k] == group)  # first come, first served
        # While a request heads the queue of its group, every other group is served once at most.
        heads = {self.groups[k]: k for k in reversed(waiting)}
        for head in heads.values():
            if self.groups[head] != group:
                assert (head, group) not in self.overtaken
                self.overtaken.add((head, group))
        self.states[key] = "encoding"

    @precondition(lambda self: set(self.at("encoding")) - set(self.line))
    @rule(data=st.data())
    def request_slot(self, data):
        key = data.draw(st.sampled_from(sorted(set(self.at("encoding")) - set(self.line))))
        self.scheduler.request_slot(key)
        self.line.append(key)
        self.admit()

    def admit(self):
        free = self.slots - len(self.at("denoising"))
        admitted, self.line = self.line[:free], self.line[free:]
        assert self.scheduler.admit() == admitted
        for key in admitted:
            self.states[key] = "denoising"

    @precondition(lambda self: self.at("encoding", "denoising", "decoding"))
    @rule(data=st.data(), finished=st.booleans())
    def release_slot(self, data, finished):
        key = data.draw(st.sampled_from(self.at("encoding", "denoising", "decoding")))
        self.release(key, finished)

    def release(self, key, finished=False):
        self.scheduler.release_slot(key, self.now, finished)
        if key in self.line:
            self.line.remove(key)
        if self.states[key] == "denoising":
            self.states[key] = "decoding"
        self.admit()

    @precondition(lambda self: self.at("encoding", "denoising", "decoding"))
    @rule(data=st.data(), outcome=st.sampled_from(["finished", "failed"]))
    def end(self, data, outcome):
        key = data.draw(st.sampled_from(self.at("encoding", "denoising", "decoding")))
        self.release(key)
        self.answer(key, self.scheduler.end(key, outcome), self.aborted.get(key, outcome))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def end_again(self, data):
        key = data.draw(st.sampled_from(sorted(self.answers)))
        assert self.scheduler.end(key, "failed") is None
        assert self.scheduler.abort(key, "cancelled") is None

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def cancel(self, data):
        self.abort(data.draw(st.sampled_from(sorted(self.states))), "cancelled")

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds):
        self.now += seconds
        for key in self.scheduler.expired(self.now):
            self.abort(key, "expired")
        assert self.scheduler.next_deadline() > self.now

    def abort(self, key, reason):
        state = self.scheduler.abort(key, reason)
        assert state == self.states[key]
        self.aborted.setdefault(key, reason)
        if state == "waiting":
            self.answer(key, self.aborted[key], self.aborted[key])

    def answer(self, key, outcome, expected):
        assert outcome == expected
        assert key not in self.answers
        self.answers[key] = outcome
        del self.states[key]

    @invariant()
    def bounds_hold_and_no_request_is_lost(self):
        scheduler = self.scheduler
        assert len(self.at("denoising")) <= self.slots
        assert scheduler.waiting <= self.limit
        assert scheduler.running <= self.slots + len(self.at("decoding"))
        assert len(scheduler) == len(self.states)
        assert sum(scheduler.ended.values()) == len(self.answers)
        assert len(self.states) + len(self.answers) == self.accepted

    def teardown(self):
        while self.states:
            for key in self.at("encoding", "denoising", "decoding"):
                self.release(key)
                self.answer(key, self.scheduler.end(key, "finished"), self.aborted.get(key, "finished"))
            self.start()
        assert (len(self.scheduler), len(self.answers)) == (0, self.accepted)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_requests_ahead_are_started_several_at_once():
    scheduler = Scheduler(limit=20, slots=2, ahead=4)
    for n in range(12):
        scheduler.submit(str(n), "a")
    started = []
    while scheduler.has_next:
        started.append(scheduler.start(0.0))
    assert started == list("012345")  # the slots and four ahead
    for n in range(3):
        scheduler.request_slot(str(n))
    assert scheduler.admit() == ["0", "1"]
    scheduler.release_slot("0", 1.0, finished=True)
    assert scheduler.admit() == ["2"]
    assert not scheduler.has_next  # three are ahead
    scheduler.release_slot("1", 1.0, finished=True)
    assert [scheduler.start(1.0), scheduler.start(1.0), scheduler.start(1.0)] == ["6", "7", None]
