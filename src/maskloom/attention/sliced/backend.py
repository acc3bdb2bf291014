"""Attention on the CPU with what torch's own lacks there: score mods, the log-sum-exp, sinks; in bands, without the keys
that the mask hides."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskloom.attention.backends.base import Backend, Prepared
from maskloom.attention.dropout.passes import IN_TWO_PASSES, in_two_passes
from maskloom.attention.request import Attended, Request
from maskloom.core.torch_state import is_tracing

if TYPE_CHECKING:
    from maskloom.attention.sliced.function import InBands


class Sliced(Backend):
    """Some queries at a time, and the keys that they see, with a backward that makes the scores again."""

    name = "sliced"
    what = "some queries at a time, with the keys that they see; the backward makes their scores again"
    where = "the CPU, for score mods that learn or do more than add, log-sum-exp and sinks"
    why = "torch's own attention lacks this; hidden keys are skipped"
    drops = IN_TWO_PASSES
    hides_scores = True
    skipped = "for some queries at a time, the keys before the first and after the last that one of them sees"

    def refuse(self, request: Request) -> str | None:
        if request.device.type != "cpu":
            return f"it is for the CPU; the tensors are on {request.device}"
        if is_tracing():
            return _UNTRACED
        if any(type(tensor) not in _PLAIN for tensor in (request.query, request.key, request.value)):
            return "it takes plain tensors, and no subclass of torch.Tensor"
        return None if request.score_mod is None else _refused_score(request)

    def refuse_in_graph(self, request: Request) -> str | None:
        return _UNTRACED

    def run(self, request: Request) -> Attended:
        return in_two_passes(_attended, request)

    def prepare(self, request: Request) -> Prepared | None:
        made = _made(request)
        return None if made.work.holds_mask else Prepared(made.bare().with_score, made.work.nbytes)


def _attended(request: Request) -> Attended:
    return _made(request)(request.query, request.key, request.value)


def _made(request: Request) -> "InBands":
    from maskloom.attention.sliced.function import InBands  # not at import: few calls need it
    from maskloom.attention.sliced.work import work_of

    return InBands(work_of(request))


_UNTRACED = "torch cannot trace its backward (torch.compile, torch.export); reference can be traced"
_PLAIN = (Tensor, torch.nn.Parameter)


def _refused_score(request: Request) -> str | None:
    if request.reading is None:
        return "which tensors score_mod learns is not known"
    if request.deterministic and request.reading.learned:
        return "the gradients of what score_mod learns are not the same at every run"
    return None
