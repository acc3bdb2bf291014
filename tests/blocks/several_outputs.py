"""aten's operations that give several tensors, and arguments for them, as their schemas have them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_SIZE = 4
_OF_OTHERS = ("backward", "cudnn", "miopen", "mps", "mkldnn", "fbgemm", "quantize", "rnn", "lstm", "gru", "qparams",
              "embedding_bag", "batch_norm_", "sparse", "nested", "_fused_", "flash", "attention", "dropout", "rrelu",
              "packed", "sobol", "flatten_dense")  # fmt: skip
_PRIVATE = ("_foreach", "_aminmax", "_linalg", "_unique", "_lu_with_info")  # what public functions come down to
_INTS = {"dim": 0, "k": 2, "split_size": 2, "chunks": 2, "C": 2, "HxW": _SIZE, "sections": 2, "indices": 2}
_ASKED_FOR = ("return_inverse", "return_counts", "training", "train")


def _rows() -> dict[str, Tensor]:
    """Tables of two rows: a row is what an operation gets."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-3, 4, (2, _SIZE), generator=generator)
    square = torch.randn(2, _SIZE, _SIZE, generator=generator)
    definite = square @ square.mT + _SIZE * torch.eye(_SIZE)
    return {
        "integers": numbers,
        "floats": numbers + torch.rand(2, _SIZE, generator=generator),
        "matrices": square,
        "positive definite": definite,
        "channels": torch.randn(2, 1, 3, _SIZE, generator=generator),
        "images": torch.randn(2, 1, 2, _SIZE, _SIZE, generator=generator),
        "volumes": torch.randn(2, 1, 2, 2, _SIZE, _SIZE, generator=generator),
    }


ROWS = _rows()


def operations() -> Iterator[Any]:
    """Every operation that gives several tensors and writes into none, but those of one backend and of gradients."""
    for schema in torch._C._jit_get_all_schemas():
        name = schema.name.removeprefix("aten::")
        public = not name.startswith("_") or name.startswith(_PRIVATE)
        if schema.name == name or schema.is_mutable or not public or any(word in name for word in _OF_OTHERS):
            continue
        packet = getattr(torch.ops.aten, name, None)
        overload = getattr(packet, schema.overload_name or "default", None)
        if overload is not None and _gives_several(schema):
            yield overload


def _gives_several(schema: Any) -> bool:
    kinds = [str(item.type) for item in schema.returns]
    return sum("Tensor" in kind for kind in kinds) > 1 or any("List[Tensor]" in kind for kind in kinds)


def call(operation: Any, row: Tensor) -> Any:
    """The operation on a row, all other arguments made up."""
    args = [(item, _argument(item, row)) for item in operation._schema.arguments]
    by_place = [value for item, value in args if not item.kwarg_only]
    return operation(*by_place, **{item.name: value for item, value in args if item.kwarg_only})


def _argument(item: Any, row: Tensor) -> Any:
    kind = str(item.type)
    if kind == "Tensor":
        return row
    if kind == "List[Tensor]":
        return [row, row + 1]
    if item.has_default_value() and item.name not in ("dim", *_ASKED_FOR):
        return item.default_value
    if "List[int]" in kind:
        of_rows = {"normalized_shape": [row.shape[-1]], "split_sizes": [1] * row.shape[0], "sections": [1, 1]}
        return of_rows.get(item.name, [2] * max(1, row.ndim - 2))
    if "int" in kind:
        return _INTS.get(item.name, 1)
    if "number" in kind:
        return [2, 3] if "List" in kind else 2
    return {"float": 0.5, "bool": item.name in _ASKED_FOR, "List[bool]": [True] * 3, "str": "ij"}.get(kind)


def runs_on(operation: Any, kind: str) -> bool:
    """Whether it takes a row of that kind."""
    try:
        call(operation, ROWS[kind][0].clone())
    except Exception:
        return False
    return True
