"""Memory that is lent: never to two at once, and to the next when it is free."""

import gc
import threading

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.loader.memory import ReusedMemory


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2000), st.sampled_from(["u1", "u2", "i4", "f4", "i8"]), st.integers(0, 5)),
        min_size=1,
        max_size=60,
    )
)
def test_what_somebody_keeps_is_never_written_to(steps: list[tuple[int, str, int]]) -> None:
    """Arrays, views and tensors are kept or let go in any order; every kept one holds what was put there."""
    memory, kept = ReusedMemory(), []
    for number, (size, dtype, forgotten) in enumerate(steps):
        array = memory.lend((size,), dtype)
        assert array.shape == (size,)
        assert array.dtype == np.dtype(dtype)
        assert array.flags.writeable
        array[:] = number
        holders = [array, array[size // 2 :].reshape(-1, 1), torch.from_numpy(array)[: size // 3 + 1]]
        kept.append((number, holders[number % 3]))
        del array, holders
        if forgotten < len(kept):
            del kept[forgotten]
        for expected, holder in kept:
            assert (np.asarray(holder) == np.array(expected, str(holder.dtype).replace("torch.", ""))).all()


def test_free_memory_is_lent_again_and_memory_in_use_is_not() -> None:
    memory = ReusedMemory()
    first = memory.lend((100, 7), np.float32)
    place = first.ctypes.data
    second = memory.lend((100, 7), np.float32)
    assert second.ctypes.data != place
    view = torch.from_numpy(first)[3:5].numpy()
    del first
    gc.collect()
    assert memory.lend((10,), np.uint8).ctypes.data != place
    del view
    gc.collect()
    again = memory.lend((90, 7), np.float32)
    assert again.ctypes.data == place
    del again
    assert memory.lend((101, 7), np.float32).ctypes.data == place  # there is room for a little more


def test_threads_may_share_it() -> None:
    memory, wrong = ReusedMemory(), []

    def work(number: int) -> None:
        for _ in range(300):
            array = memory.lend((5000,), np.int64)
            array[:] = number
            if (array != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
