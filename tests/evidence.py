"""How far attention may be from the truth: some times as far as the plain reference in the same dtype, and a little more.

The truth is the reference in float64; the plain reference does every step in the dtype. On the CPU it is twice as far,
because the largest ratio seen is 1.6 (gradients of values in bfloat16 with shared heads, which are summed in another order);
on a GPU three times, because 2.8 was seen on an H100 (two queries in bfloat16, every backend; float32 with a score_mod,
Triton). A little more is half a rounding step, and two
where the plain reference is exact because the truth is 0: the gradient of the one query that sees one key (1.02 steps at
most were seen, in float32 on the CPU and on an H100: benchmarks/grid.py). Errors are |x - truth| over the whole tensor,
relative to |truth|, or to the incoming gradient where that is larger.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.attention.merge import with_sinks
from maskloom.attention.written_out import attention_in_chunks
from maskloom.scores.base import ScoreMod

TRUTH = 1e-14  # how well the truth knows itself: float64 sums in another order differ by some 1e-15


def plain_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    score_mod: ScoreMod | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference with every step in the dtype of query: `maskloom.reference` computes half types in float32."""
    out, lse = attention_in_chunks(query, key, value, mask, score_mod=score_mod, scale=scale, dtype=query.dtype)
    return (out, lse) if sinks is None else with_sinks(out, lse, sinks)


@dataclass
class Evidence:
    """Relative errors of output and gradients, ours and those of the plain reference in the same dtype.

    Attributes:
        rounded: what rounding that the plain reference does not do adds to ours.
    """

    ours: dict[str, float]
    plain: dict[str, float]
    dtype: torch.dtype
    on_gpu: bool = False
    rounded: float = 0.0

    def check(self, *, more: dict[str, float] | None = None) -> None:
        """Fail where ours is further from the truth than evidence allows, and ``more`` of some results."""
        times = 3 if self.on_gpu else 2
        for name, error in self.ours.items():
            steps = 0.5 if self.plain[name] else 2
            least = max(steps * torch.finfo(self.dtype).eps, TRUTH) + self.rounded
            bound = (more or {}).get(name, 0.0) + times * self.plain[name] + least
            assert error <= bound, f"{name}: relative error {error:.2e}, plain reference {self.plain[name]:.2e}"

    @property
    def worst(self) -> float:
        return max(self.ours.values())


def gather(
    attention: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    table: Tensor | None,
    score_mod: ScoreMod | Callable[..., ScoreMod] | None = None,
    scale: float | None = None,
    learned: tuple[Tensor, ...] = (),
    plain: Callable[..., tuple[Tensor, Tensor]] = plain_reference,
) -> Evidence:
    """Run ``attention(query, key, value)`` forward and backward and compare with truth and plain reference.

    Args:
        table: the mask, bool, broadcastable to (B, H, Q, K).
        learned: tensors that the score_mod learns: ``attention(query, key, value, *learned)`` gets them too, and
            ``score_mod(*learned)`` makes it. Their gradients are compared as well.
        plain: the reference, or something made of it if attention is more than that.
    """

    def plainly(q, k, v, *learned):
        bend = score_mod(*learned) if learned else score_mod
        return plain(q, k, v, table, score_mod=bend, scale=scale)[0]

    generator = torch.Generator(device=query.device).manual_seed(7)
    shape = (*query.shape[:-1], value.shape[-1])
    grad = torch.randn(shape, generator=generator, device=query.device, dtype=torch.float32).to(query.dtype)
    inputs = (query, key, value, *learned)
    truth = _run(plainly, inputs, grad, torch.float64)
    ours = _run(attention, inputs, grad, query.dtype)
    same_dtype = _run(plainly, inputs, grad, query.dtype)
    least = float(grad.double().norm())
    return Evidence(_errors(ours, truth, least), _errors(same_dtype, truth, least), query.dtype, query.is_cuda)


def gather_lse(
    attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *, table: Tensor
) -> list[Evidence]:
    """Evidence of the log-sum-exp, which ``attention`` gives in float32 or more, and of its gradients for queries and keys.

    A GPU's kernel keeps it, in float32, and takes the probabilities of a query from it again, for the gradients. Its rounding
    step is in all of them then. The gradient of a key sums over many queries and so is nearer to the truth in the plain
    reference: 1.6e-7 where torch's own kernel and ours had 7.3e-7, at 1,000 queries in float32 on an H100.
    """

    def plainly(q, k, v):
        return plain_reference(q, k, v, table)[1].to(q.dtype)

    inputs = (query, key, value)
    truth = _run_lse(plainly, inputs, torch.float64)
    ours, same_dtype = (_run_lse(run, inputs, query.dtype) for run in (attention, plainly))
    wide = torch.promote_types(query.dtype, torch.float32)
    evidence = []
    largest = truth["lse"].nan_to_num(neginf=0.0).abs().max()
    kept = float(largest) * torch.finfo(torch.float32).eps if query.is_cuda else 0.0
    for names, dtype, rounded in ((["lse"], wide, 0.0), (["dq", "dk"], query.dtype, kept)):
        errors = [{name: _relative(results[name], truth[name]) for name in names} for results in (ours, same_dtype)]
        evidence.append(Evidence(errors[0], errors[1], dtype, query.is_cuda, rounded))
    return evidence


def _run_lse(attention, inputs, dtype) -> dict[str, Tensor]:
    query, key, value = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs)
    lse = attention(query, key, value)
    lse[lse > -torch.inf].sum().backward()
    return {"lse": lse.detach(), "dq": query.grad, "dk": key.grad}


def _relative(found: Tensor, exact: Tensor) -> float:
    """The error of all together; queries that see nothing have -inf in both, or it is infinite."""
    difference = torch.where(found == exact, 0, found.double() - exact)
    return float(difference.norm().nan_to_num(nan=torch.inf) / exact[exact > -torch.inf].norm().clamp_min(1e-30))


def _run(attention, inputs, grad, dtype) -> dict[str, Tensor]:
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    out = attention(*leaves)
    out.backward(grad.to(dtype))
    names = ["dq", "dk", "dv", *(f"learned {place}" for place in range(len(inputs) - 3))]
    return {"out": out.detach(), **{name: leaf.grad for name, leaf in zip(names, leaves, strict=True)}}


def _errors(results: dict[str, Tensor], truth: dict[str, Tensor], least: float) -> dict[str, float]:
    errors = {}
    for name, exact in truth.items():
        scale = exact.norm() if name == "out" else exact.norm().clamp_min(least)
        difference = (results[name].double() - exact).norm() / scale.clamp_min(1e-30)
        errors[name] = float(difference.nan_to_num(nan=float("inf")))
    return errors
