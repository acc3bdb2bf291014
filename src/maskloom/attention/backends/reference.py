"""The specification of attention, as a backend."""

from typing import Any

from maskloom.attention.backends.base import Backend
from maskloom.attention.request import Attended, Request
from maskloom.attention.tables import kept_table
from maskloom.attention.written_out import attention_in_chunks


class Reference(Backend):
    """The specification of attention, as a backend."""

    name = "reference"
    what = "the specification, in chunks of queries"
    where = "where nothing else can"
    why = "nothing else can do this"
    drops = "the probabilities, by which it multiplies values, become 0 or larger"

    def refuse(self, request: Request) -> str | None:
        return None

    def run(self, request: Request) -> Attended:
        query, key, value = request.query, request.key, request.value
        table = kept_table(query, key, request.mask)
        mask = request.mask if table is None else table
        options: dict[str, Any] = {"score_mod": request.score_mod, "scale": request.scale, "dropout": request.dropout}
        return Attended(*attention_in_chunks(query, key, value, mask, **options))
