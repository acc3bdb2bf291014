"""A forked child finds every lock free, and nothing half loaded."""

import gc
import importlib.machinery
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import maskloom as loom
from maskloom.blocks.lifecycle import BlockMaskCache
from maskloom.core import forks
from tests.attention.test_attend import inputs
from tests.blocks.random_masks import differing

PACKAGE = Path(loom.__file__).parent
LOCKS = (type(threading.Lock()), type(threading.RLock()))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def child(function: Callable[[], object]) -> int:
    """Run it in a forked child; its exit status, or minus the signal that ended it: 14 where it hung."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)  # a guard against hanging for ever, not a limit: a busy machine is slow
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def use() -> None:
    """All that takes locks."""
    q, k, v = inputs()
    mask = loom.causal & loom.lengths(torch.tensor([5, 7, 11]))
    for _ in range(3):
        loom.block_mask(loom.lengths(torch.tensor([40, 30])), 48, 48, block_size=16, device="cpu")
        loom.attend(q, k, v, mask)
    CACHE.get(loom.window(back=3), 64, 64, device="cpu")


CACHE = BlockMaskCache()


def all_locks() -> list:
    """Every lock that anything of maskloom reaches, found as the garbage collector finds what is used."""
    use()
    waiting: list = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "maskloom"]
    waiting.append(CACHE)
    seen, found = {id(one): one for one in waiting}, []
    while waiting:
        one = waiting.pop()
        if isinstance(one, LOCKS):
            found.append(one)
            continue
        for held in gc.get_referents(one):
            if id(held) not in seen and not _is_of_others(held):
                seen[id(held)] = held
                waiting.append(held)
    return found


def _is_of_others(held: object) -> bool:
    """Whether it belongs to Python, torch or others, who have locks of their own."""
    if isinstance(held, types.ModuleType):
        return held.__name__.split(".")[0] != "maskloom"
    if isinstance(held, (type, types.FunctionType)):
        return (held.__module__ or "").split(".")[0] != "maskloom"
    return type(held).__module__.split(".")[0] not in ("maskloom", "builtins", "collections", "_thread", "functools")


def test_every_lock_is_one_that_a_fork_frees():
    locks = all_locks()
    assert len(locks) >= 6  # of four modules, of what is kept, of a cache
    assert all(lock in forks._locks for lock in locks)


def test_no_file_makes_a_lock_of_its_own():
    makes = re.compile(r"\b(R?Lock|Condition|Semaphore|Event|cached_property)\(|@(functools\.)?cached_property")
    assert [path.name for path in PACKAGE.rglob("*.py") if makes.search(path.read_text())] == ["forks.py"]


def test_a_child_finds_all_locks_free():
    held, done = threading.Event(), threading.Event()

    def hold_all() -> None:
        for lock in all_locks():
            lock.acquire()
        forks.loading.release()  # for which a fork would wait
        held.set()
        done.wait()

    thread = threading.Thread(target=hold_all, daemon=True)
    thread.start()
    held.wait()
    try:
        assert child(use) == 0
    finally:
        for lock in all_locks_of(thread):
            lock._at_fork_reinit()
        done.set()
        thread.join()


def all_locks_of(thread: threading.Thread) -> list:
    return [lock for lock in list(forks._locks) if f"owner={thread.ident} " in repr(lock)]


def test_a_fork_waits_for_what_is_being_loaded():
    loading, forked = threading.Event(), []

    def load() -> None:
        with forks.loading:
            loading.set()
            threading.Event().wait(0.2)
            forked.append(bool(forked))

    thread = threading.Thread(target=load)
    thread.start()
    loading.wait()
    assert child(lambda: forked[0] is False or os._exit(2)) == 0  # the child was made after the end of it
    thread.join()
    assert child(use) == 0


def test_nothing_is_loaded_that_a_fork_does_not_wait_for():
    ran = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, timeout=300)
    assert ran.stdout == "[]\n", ran.stderr[-2000:]


LOADS = f"""
import sys, torch
sys.path.insert(0, {str(PACKAGE.parent)!r})
import maskloom as loom
from maskloom.core import forks
seen = []
def hook(event, arguments):
    if event == "import" and not forks.loading._is_owned():
        seen.append(arguments[0])
sys.addaudithook(hook)
q, k, v = torch.randn(3, 2, 2, 9, 8).unbind(0)
mask = loom.causal & loom.lengths(torch.tensor([9, 4]))
loom.block_mask(mask, 64, 64, block_size=16)
loom.block_mask(lambda b, h, i, j: torch.stack([i, j]).sort().values[0] > 3, 64, 64, block_size=16, device="cpu")
loom.attend(q, k, v, mask)
loom.attend(q.requires_grad_(), k, v, mask).sum().backward()
loom.MultiheadFlexAttention(16, 16, 2)(torch.randn(2, 9, 16), loom.causal)
loom.blocks.summary(loom.block_mask(loom.causal, 300, 300, device="cpu"))
print(seen)
"""


class Rows(torch.utils.data.Dataset):
    """What a worker makes of a length: tables, and an attention, for which it loads torch's compiler."""

    def __init__(self, attends: bool) -> None:
        self.attends = attends

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> tuple:
        mask = loom.causal & loom.lengths(torch.tensor([3 * row + 1]))
        q = torch.arange(3 * 16 * 4, dtype=torch.float).view(3, 1, 1, 16, 4).sin().unbind()
        return loom.block_mask(mask, 16, 16, block_size=8), loom.attend(*q, mask) if self.attends else q[0]


def one(items: list) -> tuple:
    return items[0]


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_start_while_threads_build(start):
    done, rows = threading.Event(), Rows(start == "fork")

    def build() -> None:
        while not done.wait(1e-3):
            rows[3]

    threads = [threading.Thread(target=build, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4 if start == "fork" else 1):
            loader = torch.utils.data.DataLoader(
                rows, num_workers=1, collate_fn=one, multiprocessing_context=start, timeout=240
            )
            for row, (blocks, out) in enumerate(loader):
                expected = rows[row]
                assert differing(blocks, expected[0]) == [] and torch.equal(out, expected[1])
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_what_is_computed_once_is_kept_with_its_object():
    class Square:
        def __init__(self, side: int) -> None:
            self.side, self.asked = side, 0

        @forks.computed_once
        def area(self) -> int:
            """Its area."""
            self.asked += 1
            return self.side**2

    squares = [Square(3), Square(5)]
    assert [square.area for square in squares * 2] == [9, 25, 9, 25]
    assert [square.asked for square in squares] == [1, 1]
    assert Square.area.__doc__ == "Its area."


def test_a_lock_is_gone_with_its_owner():
    gc.collect()
    before = len(forks._locks)
    cache = BlockMaskCache()
    assert len(forks._locks) == before + 2  # its own, and that of what it keeps
    del cache
    gc.collect()
    assert len(forks._locks) == before


def test_a_cache_does_not_pickle():
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(BlockMaskCache())


SLOW = """
import threading
begun.set()
threading.Event().wait(0.3)
done.append(1)
"""


class Finder:
    """Finds one module, which takes its time."""

    def __init__(self, **names: object) -> None:
        self.names = names

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "torch.slow" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(SLOW, self.names)


def test_a_fork_waits_for_what_torch_is_importing(monkeypatch):
    begun, done = threading.Event(), []
    monkeypatch.setattr(sys, "meta_path", [Finder(begun=begun, done=done), *sys.meta_path])
    thread = threading.Thread(target=importlib.import_module, args=("torch.slow",))
    thread.start()
    begun.wait()
    assert list(forks._half_loaded()) == ["torch.slow"]
    assert child(lambda: done == [1] or os._exit(2)) == 0
    thread.join()
    monkeypatch.delitem(sys.modules, "torch.slow")


AFTER_THREADS = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(PACKAGE.parent)!r})
import maskloom as loom
torch.set_num_threads(2)
torch.aminmax(torch.rand(64, 1000), dim=1)  # OpenMP's threads are there from now on
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    mask = loom.causal & loom.lengths(torch.tensor([9, 4]))
    loom.block_mask(mask, 9, 9, block_size=4)
    loom.block_mask(loom.documents(torch.arange(9) // 4) | mask, 9, 9, block_size=4)
    loom.blocks.explain_block_mask(loom.window(back=2) & mask, 9, 9, block_size=4)
    os._exit(0)  # torch's own attention uses threads however small it is, and would hang
print(os.waitpid(pid, 0)[1])
"""


def test_a_child_of_a_process_that_used_threads_builds_masks():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ran = subprocess.run(
        [sys.executable, "-c", AFTER_THREADS], capture_output=True, text=True, timeout=300, env=environment
    )
    assert ran.stdout == "0\n", ran.stderr[-2000:]
