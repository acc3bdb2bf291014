"""A list of operations as one CUDA graph: one launch in place of some dozens, whose launches take longer than their work.

The graph reads copies of the inputs at fixed addresses, and writes all results into one buffer, which is copied after each
run: results belong to whoever gets them, as those of the list do. Temporaries of all graphs of a stream share their memory.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.core.forks import fork_safe_lock
from maskloom.core.words import brief

Tensors = tuple[Tensor, ...]

_allowed = False


def cuda_graphs(allowed: bool) -> None:
    """Allow that block masks are built by CUDA graphs, or no longer: on a GPU the host then launches one thing, not dozens.

    While a graph is captured, for some milliseconds when a kind of mask comes for the third time, no other thread of the
    program may wait for the device: CUDA makes that an error (``cudaErrorStreamCaptureUnsupported``), there and here. So it
    is off until you say that no thread does. What was captured before goes on.

    Args:
        allowed: for all block masks that this process builds.

    Raises:
        TypeError: not a bool.
    """
    global _allowed
    if not isinstance(allowed, bool):
        raise TypeError(f"allowed is True or False; got {brief(allowed)}")
    _allowed = allowed


def are_allowed() -> bool:
    """Whether block masks may be built by CUDA graphs."""
    return _allowed


_ATTEMPTS = (3, 10, 100)
"""The runs at which it is captured, the later ones if that failed before: it takes some milliseconds, and memory that stays."""

_ALIGNED = 16  # bytes


class _Place(NamedTuple):
    """Where a result lies in the buffer: its dtype, and size, strides and offset in elements of that."""

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Graph(NamedTuple):
    inputs: list[Tensor]
    graph: Any
    buffer: Tensor
    places: dict[int, _Place]


class CapturedCalls:
    """A function of tensors on a GPU, captured at its third run. All runs are on one stream.

    Args:
        function: launches operations on inputs of fixed shapes and strides; it neither waits nor writes into them.
        given: for each result, the number of the input that it is, or a tensor that it always is; None if it is computed.
    """

    def __init__(self, function: Callable[..., Tensors], given: Sequence[int | Tensor | None]) -> None:
        self._function, self._given = function, given
        self._computed = [at for at, known in enumerate(given) if known is None]
        self._runs = 0
        self._graph: _Graph | None = None
        self._lock = fork_safe_lock()  # the copies of the inputs are shared

    def __call__(self, inputs: Sequence[Tensor]) -> Tensors:
        """The results of the function."""
        if self._graph is None:
            if not _allowed:
                return self._function(*inputs)
            self._runs += 1
            if self._runs not in _ATTEMPTS or not self._may_capture(inputs):
                return self._function(*inputs)
            self._graph = self._captured(inputs)
            if self._graph is None:
                return self._function(*inputs)
        static, graph, buffer, places = self._graph
        with self._lock:
            torch._foreach_copy_(static, list(inputs))
            graph.replay()
            buffer = buffer.clone()
        typed = {place.dtype: buffer.view(place.dtype) for place in places.values()}
        return tuple(
            torch.as_strided(typed[places[at].dtype], *places[at][1:]) if known is None else _as_given(known, inputs)
            for at, known in enumerate(self._given)
        )

    def _may_capture(self, inputs: Sequence[Tensor]) -> bool:
        """Whether there is something to capture, and the inputs can be copied as they lie."""
        return bool(self._computed) and not any(map(_repeats, inputs)) and not any(map(_lies_far, inputs))

    def _captured(self, inputs: Sequence[Tensor]) -> _Graph | None:
        """The graph; None where the operations cannot be captured."""
        results = self._function(*inputs)
        found, nbytes = _places([results[at] for at in self._computed])
        places, device = dict(zip(self._computed, found, strict=True)), inputs[0].device
        buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)
        static = list(map(_like, inputs))
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(now)
        try:
            with torch.cuda.stream(aside), _uncollected():
                graph.capture_begin(pool=_memory_of(now), capture_error_mode="thread_local")
                try:
                    outs = self._function(*static)
                    for at, place in places.items():
                        _into(buffer, place).copy_(_once(outs[at]))
                finally:
                    graph.capture_end()
        except RuntimeError:  # an operation that cannot be captured, or no memory for it
            _end_what_failed(aside)
            return None
        now.wait_stream(aside)
        _first_graphs.setdefault(_name_of(now), graph)
        return _Graph(static, graph, buffer, places)


@contextmanager
def _uncollected() -> Iterator[None]:
    """A context without garbage collection: what it frees on a GPU, another graph say, would end the capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _end_what_failed(stream: torch.cuda.Stream) -> None:
    """Capture something else: torch's generator believes until then that it is captured (2.11), and refuses to give numbers."""
    with torch.cuda.stream(stream):
        one, graph = torch.ones(1, device=stream.device), torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        one.add_(1)
        graph.capture_end()


_first_graphs: dict[tuple[int | None, int], Any] = {}
"""The first graph of each stream, kept for its memory: all graphs of a stream run one after the other, and share that."""


def _memory_of(stream: torch.cuda.Stream) -> Any:
    first = _first_graphs.get(_name_of(stream))
    return None if first is None else first.pool()


def _name_of(stream: torch.cuda.Stream) -> tuple[int | None, int]:
    return stream.device_index, stream.cuda_stream


def _as_given(known: int | Tensor, inputs: Sequence[Tensor]) -> Tensor:
    return known if isinstance(known, Tensor) else inputs[known]


def _repeats(tensor: Tensor) -> bool:
    """Whether it shows one entry at several places."""
    return any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _lies_far(tensor: Tensor) -> bool:
    """Whether it lies so far from the beginning of its memory that a copy, which lies as far, would be large."""
    return int(tensor.storage_offset()) * tensor.itemsize > _MOST_BEFORE


_MOST_BEFORE = 1 << 22  # bytes


def _once(tensor: Tensor) -> Tensor:
    """The entries of a tensor without what expands it."""
    size = [1 if step == 0 else size for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(size, tensor.stride())


def _like(tensor: Tensor) -> Tensor:
    """A copy that lies as the tensor does, from the beginning of its memory on."""
    reach = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    offset = int(tensor.storage_offset())
    memory = torch.empty(max(0, reach) + offset, dtype=tensor.dtype, device=tensor.device)
    return memory.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def _places(results: Sequence[Tensor]) -> tuple[list[_Place], int]:
    """Where results lie one behind the other, and the bytes of all."""
    places, end = [], 0
    for result in results:
        once = _once(result)
        steps = torch.empty(once.shape, device="meta").stride()
        stride = tuple(0 if old == 0 else new for old, new in zip(result.stride(), steps, strict=True))
        places.append(_Place(result.dtype, tuple(result.shape), stride, end // result.itemsize))
        end += -(-once.numel() * result.itemsize // _ALIGNED) * _ALIGNED
    return places, end


def _into(buffer: Tensor, place: _Place) -> Tensor:
    """The part of the buffer for the entries of a result, each once."""
    size = [1 if step == 0 else size for size, step in zip(place.size, place.stride, strict=True)]
    return torch.as_strided(buffer.view(place.dtype), size, place.stride, place.offset)
