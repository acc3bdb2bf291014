"""The corpus: the functions of Python's own standard library, one outermost function in each sequence."""

import ast
import hashlib
import math
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
VALIDATION_SHARE = 0.05

Over = Literal["truncate", "split", "drop"]


class Function(NamedTuple):
    """A function of a file: where it stands, ``json/decoder.py:69``, and its text without the indentation of its class."""

    place: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Functions, split by file: all functions of a file are for training, or all for validation."""

    training: list[Function]
    validation: list[Function]

    @classmethod
    def read(cls, folder: Path) -> "Corpus":
        """All functions of a folder's Python files, without those of its tests."""
        if not folder.is_dir():
            raise SystemExit(f"there is no folder {folder} to read Python files from")
        files = [path.relative_to(folder) for path in sorted(folder.rglob("*.py"))]
        files = [path for path in files if not LEFT_OUT & set(path.parts[:-1])]
        by_file = {path: list(_functions_of(folder, path)) for path in files}
        by_file = {path: functions for path, functions in by_file.items() if functions}
        if len(by_file) < 2:
            raise SystemExit(f"{folder} has {len(by_file)} Python files with functions; a split by file needs 2")
        held_out = set(sorted(by_file, key=_digest_of_path)[: math.ceil(len(by_file) * VALIDATION_SHARE)])
        return cls(
            [function for path, functions in by_file.items() if path not in held_out for function in functions],
            [function for path, functions in by_file.items() if path in held_out for function in functions],
        )

    def digest(self) -> str:
        """A number that tells corpora apart: of every function, its place, and the side of the split."""
        found = hashlib.sha256()
        for side in (self.training, self.validation):
            for function in side:
                found.update(_utf8(f"{function.place}\0{function.text}\0"))
            found.update(b"\1")
        return found.hexdigest()[:16]


def _functions_of(folder: Path, path: Path) -> Iterator[Function]:
    try:
        with tokenize.open(folder / path) as file:
            text = file.read()
    except (UnicodeDecodeError, SyntaxError) as error:
        raise SystemExit(f"{folder / path} is not text: {error}") from None
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise SystemExit(f"{folder / path} is no Python of this version: {error}") from None
    lines = text.splitlines(keepends=True)
    for node in _outermost(tree):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        source = "".join(lines[first - 1 : node.end_lineno])
        yield Function(f"{path.as_posix()}:{first}", textwrap.dedent(source))


def _outermost(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
        else:
            yield from _outermost(child)


def _digest_of_path(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode()).digest()


# -- tokens ------------------------------------------------------------------------------------------------------------


class Tokenizer(Protocol):
    """Text to token ids, and back. The id ``end`` stands before and behind each sequence."""

    vocab_size: int
    end: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def state(self) -> str:
        """What `tokenizer_from` makes it from."""


class Bytes:
    """A token for each byte of UTF-8, and one for the end."""

    vocab_size, end = 257, 256

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def state(self) -> str:
        return "bytes"


class BytePairs:
    """Byte pairs that are often neighbours are one token: BPE of Hugging Face's ``tokenizers``."""

    def __init__(self, state: str) -> None:
        library = _tokenizers()
        try:
            self._made = library.Tokenizer.from_str(state)
        except Exception as error:  # the library has no type of its own
            raise ValueError(f"it is no tokenizer: {error}") from None
        self.vocab_size = self._made.get_vocab_size()
        self.end = self._made.token_to_id("<end>")

    @classmethod
    def trained(cls, functions: list[Function], vocab_size: int) -> "BytePairs":
        """Train on these functions."""
        library = _tokenizers()
        made = library.Tokenizer(library.models.BPE())
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        if vocab_size <= len(alphabet):
            raise SystemExit(f"--bpe is above {len(alphabet)}: the end and all bytes are tokens; got {vocab_size}")
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=["<end>"], initial_alphabet=sorted(alphabet), show_progress=False
        )
        made.train_from_iterator((function.text for function in functions), trainer)
        return cls(made.to_str())

    def encode(self, text: str) -> list[int]:
        return self._made.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._made.decode(ids, skip_special_tokens=True)

    def state(self) -> str:
        return self._made.to_str()


def tokenizer_from(state: str) -> Tokenizer:
    """The inverse of ``state()``."""
    return Bytes() if state == "bytes" else BytePairs(state)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise SystemExit("--bpe needs a package: pip install tokenizers") from None
    return tokenizers


@dataclass(frozen=True)
class Sequences(Dataset[dict[str, Any]]):
    """Token ids of functions, each with the end before and behind it; the data set of a DataLoader.

    Attributes:
        tokens: int64 (length,) of each.
        places: where each function stands.
        bytes_per_token: of UTF-8, over the tokens that are predicted.
        over: how many functions were longer than the capacity.
        lost: the share of all tokens that was left out with them.
    """

    tokens: list[Tensor]
    places: list[str]
    bytes_per_token: float
    over: int
    lost: float

    @classmethod
    def of(cls, functions: list[Function], tokenizer: Tokenizer, capacity: int, over: Over) -> "Sequences":
        """At most ``capacity`` tokens in each: longer ones are truncated, split or dropped, and counted."""
        if capacity < 2:
            raise SystemExit(f"the capacity is at least 2 tokens, one to read and one to predict; got {capacity}")
        end = tokenizer.end
        whole = [torch.tensor([end, *tokenizer.encode(function.text), end]) for function in functions]
        pieces = [_fitted(tokens, capacity, over) for tokens in whole]
        kept = [piece for found in pieces for piece in found]
        if not kept:
            raise SystemExit(f"all {len(whole)} functions are longer than the capacity {capacity}, and dropped")
        places = [function.place for function, found in zip(functions, pieces, strict=True) for _ in found]
        total = sum(map(len, whole))
        size = sum(len(_utf8(function.text)) + 1 for function in functions)
        longer = sum(len(tokens) > capacity for tokens in whole)
        return cls(kept, places, size / (total - len(whole)), longer, 1 - sum(map(len, kept)) / total)

    def some(self, count: int) -> "Sequences":
        """Sequences from all over, of about so many tokens together."""
        every = max(1, round(sum(self.lengths()) / count))
        return replace(self, tokens=self.tokens[::every], places=self.places[::every])

    def lengths(self) -> list[int]:
        return list(map(len, self.tokens))

    def unigram_entropy(self) -> float:
        """Nats for each token that is predicted, by how often each occurs: what a model knows that reads no context."""
        counts = torch.cat([tokens[1:] for tokens in self.tokens]).bincount().double()
        return float(torch.special.entr(counts / counts.sum()).sum())

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[index], "place": self.places[index]}


def _fitted(tokens: Tensor, capacity: int, over: Over) -> list[Tensor]:
    if len(tokens) <= capacity:
        return [tokens]
    return {"truncate": [tokens[:capacity]], "split": list(tokens.split(capacity)), "drop": []}[over]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
