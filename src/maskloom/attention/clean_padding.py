"""Padding that never leaks: what lies in padded positions replaced by zeros, on the way in and on the way back.

A hidden key has probability 0, but 0 · NaN is NaN, in the forward pass (values) and in the backward pass (queries, and the
incoming gradient, at hidden queries). So hidden keys, values and queries become 0, and so does the gradient that comes in at
hidden queries. From then on all is finite there, and 0 times it is 0: what every backend gives for hidden positions, 0
for output and gradients and -inf for the log-sum-exp, needs no filling. Each tensor is written once, in one direction:

|                       | forward              | backward             |
|-----------------------|----------------------|----------------------|
| query, key, value     | zeros at its padding | as it comes          |
| output, log-sum-exp   | as they come         | zeros at the padding |

Queries and keys leak in the backward alone, where a backend chooses what a hidden score becomes, and adds nothing to it.
There a forward without gradients cleans values alone.

Where gradients of hidden positions are not known to be 0, they are filled too: where no padding is known among the queries
(key_padding), so that NaN in a query that sees nothing reaches keys that nobody sees. (NaN at a real position shows in the
gradients of its batch row, those of its padding too.) A score_mod whose derivative is infinite at hidden positions harms
nothing: the reference and Triton's kernel mask its product with 0.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.request import Attended, Request
from maskloom.attention.zeros import zeros_backward, zeros_both_ways, zeros_forward, zeros_in_each
from maskloom.core.cache import cached_with
from maskloom.core.symbols import is_one_of
from maskloom.core.words import brief
from maskloom.masks.dense import table_sizes
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.program.program import MaskMod


class Hidden(NamedTuple):
    """Where a mask is known to hide. keys: bool (B or 1, K); queries: bool (B or 1, Q), None if it hides none."""

    keys: Tensor
    queries: Tensor | None


def known_hidden(request: Request) -> Hidden:
    """Where the request's mask hides.

    Raises:
        ValueError: no padding is known in the mask, or that of an attention of other sizes.
    """
    batch, heads, q_len, kv_len = request.sizes
    mask, device = request.mask_mod, request.query.device
    if mask is not None and not isinstance(request.mask, BlockMask):

        def fits() -> object:
            return table_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device=device)

        cached_with(mask, ("fits", batch, heads, q_len, kv_len, device), fits)
    keys = None if mask is None else cached_with(mask, ("hidden keys", kv_len), lambda: known_padding(mask, kv_len))
    if mask is None or keys is None:
        raise ValueError(
            "clean_padding needs a mask that says where padding is: lengths, real, padding, key_padding, documents or "
            f"from_dense, alone or joined to others with &, shifted or not; got {brief(mask)}"
        )
    queries = cached_with(mask, ("hidden queries", q_len), lambda: known_hidden_queries(mask, q_len))
    for rows, length in ((keys, kv_len), (queries, q_len)):
        if rows is not None and (not is_one_of(rows.shape[0], 1, batch) or rows.shape[1] != length):
            raise ValueError(
                f"the attention has (batch, length) = {(batch, length)}, and its mask knows padding for {tuple(rows.shape)}"
            )
    return Hidden(keys, queries)


def hidden_in(mask_mod: MaskMod, q_len: int, kv_len: int) -> tuple[Tensor, ...] | None:
    """What `hidden_of` takes, computed from a mask; None if no padding is known in it."""
    keys, queries = known_padding(mask_mod, kv_len), known_hidden_queries(mask_mod, q_len)
    return None if keys is None else (keys,) if queries is None else (keys, queries)


def hidden_of(found: tuple[Tensor, ...]) -> Hidden:
    """Where a mask hides, from hidden keys and, if there are any, hidden queries."""
    return Hidden(found[0], found[1] if len(found) > 1 else None)


def cleaned(
    query: Tensor, key: Tensor, value: Tensor, hidden: Hidden, *, values_alone: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with zeros where their mask hides.

    Args:
        values_alone: no gradient is wanted, and the kernel hides scores whatever they are (`Backend.hides_scores`).
    """
    keys = hidden.keys[:, None, :, None]
    if values_alone:
        return query, key, zeros_forward(value, keys)
    if hidden.queries is None:
        return query, zeros_both_ways(key, keys), zeros_both_ways(value, keys)
    query, key, value = zeros_in_each(query, key, value, hidden.queries[:, None, :, None], keys)
    return query, key, value


def zero_hidden_gradients(attended: Attended, hidden: Hidden) -> Attended:
    """The same, but no gradient passes at hidden queries: a NaN there would reach what all queries share."""
    if hidden.queries is None:
        return attended
    rows, lse = hidden.queries[:, None], attended.lse
    return Attended(zeros_backward(attended.out, rows[..., None]), None if lse is None else zeros_backward(lse, rows))
