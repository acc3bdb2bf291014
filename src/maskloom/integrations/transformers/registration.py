"""Make maskloom known to transformers, under one name for both halves."""

import inspect
import warnings
from collections.abc import Iterable

import transformers
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from maskloom.integrations.transformers.keywords import ignore as ignore_keywords

NAME = "maskloom"
"""What ``attn_implementation`` is set to."""

KNOWN = (5, 17), (5, 24)
"""The first and the last version of transformers, (major, minor), that this was tried with."""


def register(*, ignore: Iterable[str] = ()) -> None:
    """Make ``attn_implementation="maskloom"`` known to transformers, for all models of this process.

    ::

        import maskloom.integrations.transformers as hf

        hf.register()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="maskloom")

    Both halves are registered together, the function that makes masks and the function that attends: with the second alone
    transformers would make no mask at all. A second call changes nothing but ``ignore``.

    Args:
        ignore: keywords that a model gives to its attention, and that change nothing in it. A keyword that is not known is
            an error otherwise.

    Raises:
        ImportError: a transformers whose mask functions take other arguments (before 5.17 some do).
        TypeError: ``ignore`` is one text, or holds something else than names.

    Warns:
        UserWarning: a version of transformers that this was not tried with.
    """
    names = _checked_names(ignore)
    _check_version()
    from maskloom.integrations.transformers.attention import attention  # here: it stands on the whole house
    from maskloom.integrations.transformers.masks import layer_mask
    from maskloom.integrations.transformers.positions import listen

    ignore_keywords(names)
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, layer_mask)
    listen(NAME)


def _checked_names(ignore: Iterable[str]) -> set[str]:
    if isinstance(ignore, str):
        raise TypeError(f'ignore is a list of keywords: ignore=["{ignore}"]')
    names = set(ignore)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"ignore holds names of keywords; got {type(name).__name__}: {name!r}")
    return names


def _check_version() -> None:
    taken = inspect.signature(masking_utils.sdpa_mask).parameters
    if not {"q_length", "q_offset", "kv_offset", "mask_function"} <= set(taken):
        raise ImportError(
            f"transformers {transformers.__version__} makes masks in another way; maskloom needs {_text(KNOWN[0])} or newer"
        )
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not KNOWN[0] <= version <= KNOWN[1]:
        warnings.warn(
            f'attn_implementation="{NAME}" was tried with transformers {_text(KNOWN[0])} to {_text(KNOWN[1])}; this is '
            f'{transformers.__version__}. Compare some outputs with "eager"',
            stacklevel=3,
        )


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
