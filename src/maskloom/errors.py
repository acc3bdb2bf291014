"""The one error of maskloom's own. Bad input raises ValueError or TypeError, as in torch."""


class FallbackError(RuntimeError):
    """The fused kernel would not have run, and something much slower would have run in its place."""
