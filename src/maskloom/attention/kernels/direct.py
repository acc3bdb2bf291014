"""Calls of a compiled graph, without what torch.compile asks before each of its calls.

Before each call torch.compile asks whether a graph is for these arguments, some hundred and seventy questions, and takes the
graph's inputs out of them. Where a plan already knows that nothing differs, the graph that ran for it before gets its inputs
at once. It is found by what ran: the first call notes which graph torch.compile chose, and what went into it.
"""

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Found = tuple[Tensor, Tensor | None]


class _Run(NamedTuple):
    """A graph that ran, what went in, and what came out."""

    called: Callable[..., Any]
    inputs: tuple[Any, ...]
    outs: Any


class _Noting(threading.local):
    """The runs of one thread; None while nobody asks for them."""

    runs: list[_Run] | None = None


_noting = _Noting()


def noted(compiler: Any) -> Callable[[Any, Any], Callable[..., Any]]:
    """A backend of torch.compile by its name, or itself, whose graphs can be called again by `DirectCalls`."""

    def compiling(graph: Any, inputs: Any) -> Callable[..., Any]:
        from torch._dynamo.backends.registry import lookup_backend  # at the first compilation: it takes a second

        run = lookup_backend(compiler)(graph, inputs)
        return run if _records_cuda_graphs() else _Noted(run)

    return compiling


def _records_cuda_graphs() -> bool:
    """Whether torch's compiler makes CUDA graphs of what it compiles: these must know where each step begins."""
    config = sys.modules.get("torch._inductor.config")
    return config is not None and bool(config.triton.cudagraphs)


class _Noted:
    """A compiled graph whose runs can be noted. Not a function: one that knew itself would outlive its last use."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *given: Any) -> Any:
        outs = self._run(*given)
        if _noting.runs is not None:
            _noting.runs.append(_Run(self, given, outs))
        return outs


@contextmanager
def _runs() -> Iterator[list[_Run]]:
    before, _noting.runs = _noting.runs, []
    try:
        yield _noting.runs
    finally:
        _noting.runs = before


class _Graph(NamedTuple):
    """A graph and the places of its inputs.

    Attributes:
        called: a weak reference: whatever drops the graph, ``torch.compiler.reset`` say, ends its calls.
        numbers: the inputs that are no tensors of the caller; None elsewhere.
        places: for each tensor, which input it is, and which of those that are given.
        out, lse: which results these are; None where there is no log-sum-exp.
        state: whether torch's settings are as they were: gradients, autocast, precision, threads.
    """

    called: Callable[[], Callable[..., Any] | None]
    numbers: list[Any]
    places: list[tuple[int, int]]
    out: int
    lse: int | None
    state: Any


class DirectCalls:
    """The graphs of one kind of call: whatever a graph may depend on is equal for all of a kind, but for values of tensors,
    and for how those that are given lie in memory."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _Graph | None] = {}

    def __call__(self, given: Sequence[Tensor], held: Sequence[Tensor], compiled: Callable[[], Found]) -> Found:
        """``compiled()``, or the graph that it ran before.

        Args:
            given: query, key and value, and what a score mod reads.
            held: all others that it reads.
        """
        if not _is_plain_now():
            return compiled()
        key = _key(given)
        graph = self._graphs.get(key, _UNKNOWN)
        if graph is None:
            return compiled()
        called = graph.called()
        if called is not None and graph.state.check():
            return _outs_of(graph, called, (*given, *held))
        with _runs() as runs:
            found = compiled()
        if len(self._graphs) < _MOST or key in self._graphs:
            self._graphs[key] = _graph_of(runs, given, held, found)
        return found


_MOST = 16
"""Maximum number of ways to lie in memory that are known of one kind."""

_UNKNOWN = _Graph(lambda: None, [], [], 0, None, None)


def _key(given: Sequence[Tensor]) -> Hashable:
    """What torch.compile asks of tensors beside shape, dtype and device; and which are one tensor, that is one input."""
    names = [*map(id, given)]
    laid = [(one.stride(), one.storage_offset(), one.requires_grad, one.is_inference(), one.is_neg()) for one in given]
    return (*map(names.index, names), *laid)


def _outs_of(graph: _Graph, called: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Found:
    inputs = graph.numbers.copy()
    for at, place in graph.places:
        inputs[at] = tensors[place]
    outs = called(*inputs)
    return outs[graph.out], None if graph.lse is None else outs[graph.lse]


def _graph_of(runs: list[_Run], given: Sequence[Tensor], held: Sequence[Tensor], found: Found) -> _Graph | None:
    """The graph that ran; None where it was not one, or had inputs of which it is not known what they are."""
    if len(runs) != 1 or len({*map(id, given), *map(id, held)}) < len({*map(id, given)}) + len(held):
        return None  # one input may be two tensors, which differ at the next call
    called, inputs, outs = runs[0]
    places = _places_of(inputs, (*given, *held))
    out, lse = (_place_in(outs, one) for one in found)
    if places is None or out is None or (found[1] is not None and lse is None):
        return None
    known = {at for at, _ in places}
    numbers = [None if at in known else value for at, value in enumerate(inputs)]
    return _Graph(weakref.ref(called), numbers, places, out, lse, _torch_dynamo().guards.GlobalStateGuard())


def _places_of(inputs: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> list[tuple[int, int]] | None:
    places = []
    for at, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            continue
        place = _place_in(tensors, value)
        if place is not None:
            places.append((at, place))
        elif not _is_number(value):
            return None
    return places


def _place_in(values: Sequence[Any], wanted: Tensor | None) -> int | None:
    return next((place for place, value in enumerate(values) if value is wanted), None)


def _is_number(value: Tensor) -> bool:
    """Whether it is what torch.compile makes of a Python float."""
    return value.ndim == 0 and value.dtype == torch.float64 and value.device.type == "cpu" and not value.requires_grad


def _is_plain_now() -> bool:
    """Whether nothing around the call changes what a graph does: hooks on what is saved for a backward (checkpointing), a
    function mode, torch.compile around it, or a stance in which nothing compiled shall run."""
    return (
        torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        and torch._C._len_torch_function_stack() == 0
        and _torch_dynamo().eval_frame.get_eval_frame_callback() is None
        and _dynamo()._stance.stance == "default"
    )


@functools.cache
def _dynamo() -> Any:
    from torch._dynamo import eval_frame  # not at import: it takes seconds

    return eval_frame


@functools.cache
def _torch_dynamo() -> Any:
    """The part of it that is in C++."""
    from torch._C import _dynamo

    return _dynamo
