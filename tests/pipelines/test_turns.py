import threading
import time

import pytest

from tpdm.sampling.batching.micro_batcher import FifoLock


def test_turns_go_in_the_order_of_arrival_one_at_a_time():
    turns, order, inside = FifoLock(), [], []

    def go(name):
        with turns:
            inside.append(name)
            assert inside == [name]
            order.append(name)
            time.sleep(0.001)
            inside.remove(name)

    threads = [threading.Thread(target=go, args=(name,)) for name in range(20)]
    with turns:
        for thread in threads:
            thread.start()
            time.sleep(0.002)  # it stands in the line before the next one comes
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == list(range(20))


def test_an_error_hands_the_turn_over():
    turns, order = FifoLock(), []

    def go():
        with turns:
            order.append("after")

    with pytest.raises(KeyError), turns:
        raise KeyError
    thread = threading.Thread(target=go, daemon=True)  # were the turn not handed over, it would wait for ever
    thread.start()
    thread.join(10)
    assert order == ["after"]
