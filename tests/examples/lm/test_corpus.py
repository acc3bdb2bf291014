"""The corpus: which functions are sequences, how they are split, and what is said of files that are none."""

import math

import pytest
from lm.corpus import BytePairs, Bytes, Corpus, Sequences, tokenizer_from

FILES = {
    "one.py": "import os\n\n@cache\ndef first(x):\n    def inner(): return x\n    return inner\n",
    "two.py": "class A:\n    async def method(self):\n        return 'é'\n\n    class B:\n        def deep(self): pass\n",
    "sub/three.py": "if True:\n    def within():\n        return 3\nx = lambda: 5\n",
    "test/test_four.py": "def left_out(): pass\n",
    "site-packages/five.py": "def left_out(): pass\n",
    "none.py": "x = 7\n",
}


def folder_of(path, files):
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def corpus(tmp_path):
    return Corpus.read(folder_of(tmp_path, FILES))


def test_outermost_functions_are_sequences(corpus):
    found = {function.place: function.text for function in corpus.training + corpus.validation}
    assert found == {
        "one.py:3": "@cache\ndef first(x):\n    def inner(): return x\n    return inner\n",
        "two.py:2": "async def method(self):\n    return 'é'\n",
        "two.py:6": "def deep(self): pass\n",
        "sub/three.py:2": "def within():\n    return 3\n",
    }


def test_the_split_is_by_file(tmp_path):
    files = {f"f{number}.py": f"def f(): return {number}\ndef g(): return {number}\n" for number in range(60)}
    corpus = Corpus.read(folder_of(tmp_path, files))
    sides = [{function.place.split(":")[0] for function in side} for side in (corpus.training, corpus.validation)]
    assert sides[0] & sides[1] == set() and [len(side) for side in sides] == [57, 3]
    assert [len(side) for side in (corpus.training, corpus.validation)] == [114, 6]


def test_the_digest_tells_corpora_apart(tmp_path, corpus):
    assert Corpus.read(tmp_path).digest() == corpus.digest()
    (tmp_path / "one.py").write_text(FILES["one.py"].replace("return x", "return y"))
    changed = Corpus.read(tmp_path).digest()
    (tmp_path / "one.py").write_text(FILES["one.py"])
    (tmp_path / "two.py").rename(tmp_path / "moved.py")
    assert len({corpus.digest(), changed, Corpus.read(tmp_path).digest()}) == 3


def test_a_file_says_its_own_encoding(tmp_path):
    text = "# -*- coding: latin-1 -*-\ndef f(): return 'é'\n".encode("latin-1")
    corpus = Corpus.read(folder_of(tmp_path, {"latin.py": text, "other.py": "def g(): pass\n"}))
    assert any("'é'" in function.text for function in corpus.training + corpus.validation)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.py": b"def f(): pass\n\xff\xfe", "b.py": "def g(): pass"}, r"a\.py is not text: "),
        ({"a.py": b"x = '\x00'", "b.py": "def g(): pass"}, r"a\.py is no Python of this version: .*null byte"),
        ({"a.py": "def f(:\n", "b.py": "def g(): pass"}, r"a\.py is no Python of this version: invalid syntax"),
        ({"a.py": "def f(): pass"}, "has 1 Python files with functions; a split by file needs 2"),
    ],
)
def test_what_is_no_corpus_is_said(tmp_path, files, words):
    with pytest.raises(SystemExit, match=words):
        Corpus.read(folder_of(tmp_path, files))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"there is no folder .*nowhere to read Python files from"):
        Corpus.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("over", "lengths", "lost"), [("truncate", [11, 2], 9 / 22), ("split", [11, 9, 2], 0), ("drop", [2], 20 / 22)]
)
def test_what_is_longer_than_the_capacity_is_counted(corpus, over, lengths, lost):
    functions = [corpus.training[0]._replace(text="x" * size) for size in (18, 0)]
    found = Sequences.of(functions, Bytes(), 11, over)
    assert found.lengths() == lengths and found.over == 1 and found.lost == pytest.approx(lost)
    assert len(found.places) == len(found) and found[0]["place"] == functions[0].place


def test_nothing_left_is_an_error(corpus):
    with pytest.raises(SystemExit, match="all 2 functions are longer than the capacity 3, and dropped"):
        Sequences.of([corpus.training[0]] * 2, Bytes(), 3, "drop")


def test_the_unigram_entropy_is_that_of_what_is_predicted(corpus):
    functions = [corpus.training[0]._replace(text="aab")]
    found = Sequences.of(functions, Bytes(), 13, "drop")
    assert found.tokens[0].tolist() == [256, 97, 97, 98, 256]
    assert found.unigram_entropy() == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert found.bytes_per_token == 1


def test_byte_pairs_give_the_text_back(corpus):
    pytest.importorskip("tokenizers")
    made = BytePairs.trained(corpus.training, 300)
    again = tokenizer_from(made.state())
    text = "def within():\n    return 'é' + x\n"
    assert again.encode(text) == made.encode(text) and again.decode(again.encode(text)) == text
    assert len(made.encode(text)) < len(text) and made.end not in made.encode(text + "<end>")[:-1]
    with pytest.raises(SystemExit, match="--bpe is above 256: the end and all bytes are tokens; got 200"):
        BytePairs.trained(corpus.training, 200)


def test_bytes_give_the_text_back():
    text = "é = '\udc80'\n"
    assert tokenizer_from("bytes").decode(Bytes().encode("é = 3")) == "é = 3"
    assert len(Bytes().encode(text)) == 11
