"""``FifoLock`` serves threads in the order of their arrival."""

import threading
import time

import pytest

from tpdm.sampling.batching.micro_batcher import FifoLock


def test_threads_enter_in_the_order_of_arrival_one_at_a_time():
    lock, order, inside = FifoLock(), [], []

    def go(name):
        with lock:
            inside.append(name)
            assert inside == [name]
            order.append(name)
            time.sleep(0.001)
            inside.remove(name)

    threads = [threading.Thread(target=go, args=(name,)) for name in range(20)]
    with lock:
        for thread in threads:
            thread.start()
            time.sleep(0.002)  # it waits before the next one arrives
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == list(range(20))


def test_an_error_releases_the_lock():
    lock, order = FifoLock(), []

    def go():
        with lock:
            order.append("after")

    with pytest.raises(KeyError), lock:
        raise KeyError
    thread = threading.Thread(target=go, daemon=True)  # if the lock were not released, it would wait forever
    thread.start()
    thread.join(10)
    assert order == ["after"]
