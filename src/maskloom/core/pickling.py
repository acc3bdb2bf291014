"""What a DataLoader worker can send: objects that pickle can handle.

A worker pickles its batch in a separate thread. An error there is only printed, the batch is lost, and the training
loop waits for it forever. So a block mask is checked when a worker builds it, and the error is raised in the worker. A
mask may never leave the worker (it may only give a table there), so it is checked when it is sent; so is a block mask
that was built outside the worker. If it cannot be pickled, an object that raises the error on arrival is sent in its
place.
"""

import pickle
import sys
import threading
import types
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

from torch import Tensor

from maskloom.core.words import brief

_FEEDER = "QueueFeederThread"  # multiprocessing's name for the thread that pickles


class _State(threading.local):
    """State of one thread."""

    stays = False  # whether objects built now stay in this process
    probes = False  # whether it pickles only as a test


_state = _State()


def check_can_be_sent(held: object) -> None:
    """Raise a TypeError, in a DataLoader worker, if an object for a batch cannot be pickled."""
    if in_worker() and not _state.stays:
        words = why_not_pickled(held)
        if words is not None:
            raise TypeError(words)


class stays_here:  # noqa: N801 - a context manager, written out: one of contextlib takes the time of an operation
    """Objects built in this context stay in this process: they are not checked."""

    def __enter__(self) -> None:
        self._before, _state.stays = _state.stays, True

    def __exit__(self, *_: object) -> None:
        _state.stays = self._before


def in_worker() -> bool:
    """Whether this process is a DataLoader worker."""
    loaders = sys.modules.get("torch.utils.data")
    return loaders is not None and loaders.get_worker_info() is not None


def why_not_pickled(held: object) -> str | None:
    """Which object in it cannot be pickled, and what to write instead; None if all can. Tensors are not copied."""
    probe = _Probe()
    before, _state.probes = _state.probes, True
    try:
        probe.dump(held)
    except Exception as error:
        return (
            f"a DataLoader worker sends its batch by pickle, and {_described(probe.last)} cannot be pickled ({brief(error)}): "
            "define it at the top level of a module, a mask that reads tensors or numbers as a class there, with them as its "
            "fields (maskloom.masks.mask_dataclass); or build the block mask in the training loop, of tensors that the worker sends"
        )
    finally:
        _state.probes = before
    return None


class _Probe(ForkingPickler):
    """Pickles like a worker, writes nothing, and remembers the last object that it reached."""

    def __init__(self) -> None:
        super().__init__(_Nowhere(), 5, True, lambda buffer: None)  # large buffers are handed out, not copied
        self.last: object = None

    def reducer_override(self, held: Any) -> Any:
        self.last = held
        if not isinstance(held, Tensor):
            return NotImplemented
        if held.requires_grad and not held.is_leaf:
            raise TypeError("it is part of a graph of gradients; detach it")
        return int, ()  # a tensor would be moved to shared memory


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def _described(held: object) -> str:
    if isinstance(held, types.FunctionType):
        code = held.__code__
        return f"the function {held.__qualname__} (line {code.co_firstlineno} of {code.co_filename})"
    if isinstance(held, type):
        return f"the class {held.__qualname__} of {held.__module__}"
    return f"{brief(held)}, of {type(held).__module__}.{type(held).__qualname__}"


# -- when it is sent ---------------------------------------------------------------------------------------------------


def stand_in(held: object) -> tuple[Any, ...] | None:
    """For ``__reduce_ex__``: what a worker sends if the object cannot be pickled; None to pickle it normally."""
    if threading.current_thread().name != _FEEDER or _state.probes or not in_worker():
        return None
    words = why_not_pickled(held)
    return None if words is None else (_refuse, (words,))


def _refuse(words: str) -> NoReturn:
    raise TypeError(words)


def reduced(held: object) -> Any:
    """The reduction of one of torch's objects for other processes, as `ForkingPickler` expects it."""
    return stand_in(held) or held.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
