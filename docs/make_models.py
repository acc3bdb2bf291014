"""Tables of whole models and of decoding, from committed rows."""

from docs.make_backends import table
from docs.make_plots import rows_of

_MODEL = {
    "sdpa, dense": "SDPA with a dense mask",
    "torch flex": "torch's compiled FlexAttention",
    "torch varlen": "torch's varlen",
    "attend, auto": "`attend`",
    "attend, flash": '`attend`, backend="flash"',
    "attend, triton": '`attend`, backend="triton"',
}

_STEP = {
    "attend": "`attend`",
    "sdpa, ready mask": "SDPA",
    "sdpa, folded, ready mask": "SDPA, folded",
    "flex, compiled, ready block mask": "compiled FlexAttention",
}


def whole_model() -> str:
    """A training step of a whole model by each way to attend, padded and packed."""
    rows = rows_of("model_step")
    lines = ["batch | attention | step, ms | of SDPA with a dense mask | first step, s"]
    for row in rows:
        form, _, contender = row["contender"].partition(": ")
        lines.append(
            f"{form} | {_MODEL[contender]} | {float(row['step_ms']):.1f} | {float(row['of_dense']):.2f} | {row['compile_s']}"
        )
    return table(lines)


def in_short() -> list[tuple[str, str, str, str]]:
    """What the README says of whole models: the batch, milliseconds of a step with torch alone and with `attend`, and torch's way."""
    rows = {row["contender"]: row for row in rows_of("model_step")}
    found = []
    for form, way in (("padded", "sdpa, dense"), ("packed", "torch varlen")):
        theirs, ours = rows[f"{form}: {way}"], rows[f"{form}: attend, auto"]
        what = f"training step of a model, {form}, {float(theirs['real']):.0%} real"
        found.append((what, theirs["step_ms"], ours["step_ms"], _MODEL[way]))
    return found


def decoding() -> str:
    """The GPU's time of one step of decoding, for whole caches."""
    rows = [row for row in rows_of("decoding") if float(row["filled"]) == 1]
    lines = [" | ".join(["batch", "cache", "queries", *_STEP.values(), "over reading the cache"])]
    for kind in dict.fromkeys((row["batch"], row["cache"], row["queries"]) for row in rows):
        found = {row["contender"]: row for row in rows if (row["batch"], row["cache"], row["queries"]) == kind}
        times = [f"{float(found[name]['gpu_ms']):.3f}" if name in found else "–" for name in _STEP]
        batch, cache, queries = kind
        lines.append(
            " | ".join([batch, f"{int(cache):,}", queries, *times, f"{float(found['attend']['of_reading']):.2f}"])
        )
    return table(lines)
