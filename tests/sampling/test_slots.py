"""Slots go to the runs in the order of their requests, and a slot that is given back goes to the next one at once."""

from tpdm.sampling.batching.denoiser import FifoScheduler, Slot


class Batcher:
    """Records the changes of the running slots."""

    def __init__(self):
        self.running, self.changes = [], []

    def update(self, added, removed=None):
        if removed in self.running:
            self.running.remove(removed)
        self.running += added
        if added or removed is not None:
            self.changes.append(([slot.key for slot in added], None if removed is None else removed.key))


def make(num_slots, keys):
    batcher = Batcher()
    scheduler = FifoScheduler(batcher, num_slots)
    slots = {key: Slot(batcher, scheduler, key) for key in keys}
    for slot in slots.values():
        slot.request()
    return batcher, slots


def test_slots_are_granted_first_come_first_served():
    batcher, slots = make(2, "abcd")
    assert [slot.key for slot in batcher.running] == ["a", "b"]
    slots["b"].release(finished=True)
    slots["a"].release()
    assert [slot.key for slot in batcher.running] == ["c", "d"]
    # In one step each, so that no batch is computed between the two.
    assert batcher.changes[2:] == [(["c"], "b"), (["d"], "a")]


def test_a_slot_that_is_released_while_it_waits_leaves_the_line():
    batcher, slots = make(1, "abc")
    slots["b"].release()
    slots["a"].release()
    assert [slot.key for slot in batcher.running] == ["c"]


def test_a_slot_is_requested_once_and_may_be_released_again():
    batcher, slots = make(1, "ab")
    slots["a"].request()
    slots["a"].release(finished=True)
    slots["a"].release()
    assert [slot.key for slot in batcher.running] == ["b"]
