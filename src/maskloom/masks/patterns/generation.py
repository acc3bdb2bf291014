"""Masks for decoding: trees of drafts, and beams."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.core.checks import by_position, count_by_row, integers, readable
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, mask_dataclass, shown
from maskloom.masks.lookups import among_first, of_row

__all__ = ["tree", "beams"]


@mask_dataclass
class Tree(Mask):
    """See `tree`."""

    ancestors: Tensor
    prefix: int | Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        nodes, prefix = self.ancestors.shape[-1], of_row(self.prefix, b)
        q_node, kv_node = q_idx - prefix, kv_idx - prefix
        rows = (b,) if self.ancestors.ndim == 3 else ()
        is_ancestor = self.ancestors[(*rows, q_node.clamp(0, nodes - 1), kv_node.clamp(0, nodes - 1))]
        of_prompt = (kv_idx >= 0) & (kv_node < 0) & (kv_node <= q_node) & (q_node < nodes)
        return of_prompt | (among_first(q_node, nodes) & among_first(kv_node, nodes) & is_ancestor)

    def __repr__(self) -> str:
        return f"tree(int64{list(self.ancestors.shape[:-1])}, prefix={shown(self.prefix)})"


def tree(parents: Tensor | Sequence[int], *, prefix: int | Tensor | Sequence[int] = 0) -> Tree:
    """A node of a tree sees itself, its ancestors, and the whole prompt before the tree: speculative decoding.

    ::

        tree([-1, 0, 0, 1], prefix=2)    k0 k1 k2 k3 k4 k5       the tree, by positions
                              prompt q0   x
                                     q1   x  x                   2 ── 3 ── 5
                              node 0 q2   x  x  x                └─── 4
                              node 1 q3   x  x  x  x
                              node 2 q4   x  x  x     x
                              node 3 q5   x  x  x  x     x

    Positions are absolute: first the prompt, which is causal, and then the nodes in any order. If only nodes are
    queries, and the prompt is in the cache, ``shifted(tree(parents, prefix=n), q_offset=n)`` numbers the queries from
    the first node; with n of shape (B,) the tree of each row starts after its own prompt. Positions after the tree see
    nothing. The mask holds a table of ancestors, bool (N, N) or (B, N, N), computed on the parents' device in log2(N)
    steps: later writes into the parents have no effect. The mask holds a prefix tensor itself, and follows writes into
    it.

    Source: Miao et al. 2023 (SpecInfer), tree attention; Cai et al. 2024 (Medusa), the same mask.

    Args:
        parents: integers (N,), or (B, N) with one tree for each batch row: the number of each node's parent, -1 for a
            root. There may be several roots.
        prefix: the length of the prompt, at least 0: one int for all rows, or integers (B,), one for each batch row. A
            tensor, also one without dimensions, may change between steps without recompilation.

    Raises:
        TypeError: not integers. ValueError: another shape, a parent that is not a node, nodes that are their own
            ancestors, a negative prefix (all checked on the CPU only), a prefix for another number of rows than the
            parents have.
    """
    table = by_position("parents", integers("parents", parents).long(), "N")
    nodes = table.shape[-1]
    if readable(table) and not bool(((table >= -1) & (table < nodes)).all()):
        wrong = table[(table < -1) | (table >= nodes)]
        raise ValueError(f"parents are numbers of nodes, -1 (a root) to {nodes - 1}; got {int(wrong[0])}")
    return Tree(_ancestors(table), _checked_prefix(prefix, table))


def beams(parents: Sequence[Tensor | Sequence[int]], *, prefix: int | Tensor | Sequence[int] = 0) -> Tree:
    """Beam search without moving the cache: a token sees the prompt and its own beam's history, by parent pointers.

    ::

        beams([[-1, -1], [1, 1], [0]], prefix=1)   k0 k1 k2 k3 k4 k5
                                        prompt q0   x
                                step 0, beam 0 q1   x  x
                                        beam 1 q2   x     x
                                step 1, beam 0 q3   x     x  x
                                        beam 1 q4   x     x     x
                                step 2, beam 0 q5   x     x  x     x

    Tokens are ordered by step, and within a step by beam; steps may have different numbers of beams. A token sees
    itself, the token of the previous step that its pointer names, the token that this one's pointer names, and so on,
    and the whole prompt. It sees no other beam, not even one that was dropped. The result is `tree` of these tokens.

    A cache that is reordered at each step (Hugging Face's ``_reorder_cache``) gives the same attention. As in `tree`,
    parents are read once, and writes into the prefix are followed.

    Args:
        parents: for each step integers (beams,), or (B, beams): the beam of the previous step that each beam continues;
            -1 in the first step, which continues the prompt.
        prefix: the length of the prompt, as in `tree`.

    Raises:
        TypeError: not integers. ValueError: no step, a pointer to a beam that the previous step does not have (checked
            on the CPU only).
    """
    steps = [by_position("parents", integers("parents", step).long(), "beams") for step in parents]
    if not steps:
        raise ValueError("beams has the pointers of each step; got no step")
    if len({step.shape[:-1] for step in steps}) > 1:
        shapes = " and ".join(str(tuple(step.shape)) for step in steps)
        raise ValueError(f"parents has shape (beams,) in each step, or (B, beams) in each; got {shapes}")
    nodes, first, before = [], 0, 0  # the previous step has `before` tokens, from node `first` on
    for number, step in enumerate(steps):
        _check_pointers(step, number, before)
        nodes.append(step + first if number else step)
        first, before = first + before, step.shape[-1]
    return tree(torch.cat(nodes, dim=-1), prefix=prefix)


def _ancestors(parents: Tensor) -> Tensor:
    """Which node is an ancestor of which, itself included: bool (..., N, N), descendant by ancestor.

    Pointer jumping: each step doubles the number 2^i of nearest ancestors that are known for a node.
    """
    nodes = parents.shape[-1]
    # an extra last node is the parent of all roots, and of itself
    none = parents.new_full((*parents.shape[:-1], 1), nodes)
    jump = torch.cat([torch.where(parents < 0, nodes, parents), none], dim=-1)
    seen = torch.eye(nodes + 1, dtype=torch.bool, device=parents.device).expand(*jump.shape, -1)
    for _ in range(nodes.bit_length()):  # `seen` has the nearest 2^i ancestors, `jump` the next one
        seen = seen | seen.take_along_dim(jump[..., None], dim=-2)
        jump = jump.take_along_dim(jump, dim=-1)
    if readable(parents) and bool((jump < nodes).any()):
        raise ValueError(f"parents has a cycle: node {int((jump < nodes).nonzero()[0, -1])} never comes to a root")
    return seen[..., :nodes, :nodes].contiguous()


def _check_pointers(step: Tensor, number: int, before: int) -> None:
    least, most = (0, before - 1) if number else (-1, -1)
    if readable(step) and not bool(((step >= least) & (step <= most)).all()):
        words = f"beams of the step before, 0 to {most}" if number else "-1 in the first step"
        raise ValueError(f"parents are {words}; got {brief(step.tolist())} in step {number}")


def _checked_prefix(prefix: int | Tensor | Sequence[int], parents: Tensor) -> int | Tensor:
    if isinstance(prefix, Tensor) and prefix.ndim == 0:
        return integers("prefix", prefix)
    checked = count_by_row("prefix", prefix)
    if isinstance(checked, Tensor) and parents.ndim == 2 and len(checked) != len(parents):
        raise ValueError(f"parents has {len(parents)} batch rows and prefix has {len(checked)}")
    return checked
