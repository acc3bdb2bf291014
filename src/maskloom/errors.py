"""maskloom's own errors. Other bad input raises ValueError or TypeError, as in torch."""


class FallbackError(RuntimeError):
    """The fused kernel would not have run, and something much slower would have run in its place."""


class ParseError(ValueError):
    """A text that is not a mask; the message marks the place."""
