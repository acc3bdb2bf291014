"""``maskloom demo``: the main job end to end, and one clear line for each bad input."""

import os
import sys

import pytest
import torch
from typer.testing import CliRunner

from maskloom import demo
from maskloom.cli import app
from maskloom.nn import multihead

runner = CliRunner()


def run(*arguments, **how):
    return runner.invoke(app, ["demo", *map(str, arguments)], env={"COLUMNS": "200"}, **how)


def test_the_zen_of_python(tmp_path):
    result = run("--out", tmp_path)
    assert result.exit_code == 0, result.output
    for words in (
        "19 of 2 to 13 words, 137 words in all",
        "causal & padding(bool[19, 13])",
        "skipped",
        "sdpa: FlexAttention has no backward on the CPU",
        "Right: output and 4 gradients agree with the dense reference in float64",
    ):
        assert words in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.png", "tiles.png"]
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_file_of_ones_own(tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("ein Wort\n\n$x_1$ und Ähnliches 漢字 mehr\r\nkurz\n", encoding="utf-8")
    result = run("--text", text, "--out", tmp_path / "new" / "folder", "--heads", 3, "--dim", 15)
    assert result.exit_code == 0, result.output
    assert "3 of 1 to 5 words, 8 words in all" in result.output
    assert (tmp_path / "new" / "folder" / "tiles.png").exists()


def test_the_zen_has_nineteen_aphorisms(capsys):
    lines = demo.zen_of_python()
    assert len(lines) == 19
    assert lines[0] == "Beautiful is better than ugly."
    assert capsys.readouterr().out == ""


def test_a_wrong_result_is_told_and_fails(tmp_path, monkeypatch):
    attend = multihead.attend
    monkeypatch.setattr(multihead, "attend", lambda q, k, v, mask, **how: attend(q, k, v, None))
    result = run("--out", tmp_path)
    assert result.exit_code == 1
    assert "Wrong: out differs by" in result.output
    assert "Right" not in result.output


def bad_files(tmp_path):
    made = {name: tmp_path / name for name in ("empty", "blank", "wide", "long", "binary", "folder", "missing")}
    made["empty"].write_bytes(b"")
    made["blank"].write_bytes(b"\n")
    made["wide"].write_bytes(b"x" * 2**20)
    made["long"].write_bytes(b"word " * 2**18)
    made["binary"].write_bytes(b"caf\xe9")
    made["folder"].mkdir()
    return made


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "has no words; each line is a sequence of words"),
        ("blank", "has no words"),
        ("wide", "sequence 1 has a word of 1048576 characters; at most 256"),
        ("long", "sequence 1 has 262144 words; the demo takes at most 1024"),
        ("binary", "is not UTF-8 text: unexpected end of data at byte 3"),
        ("folder", "is a directory; --text takes a file"),
        ("missing", "cannot be read: No such file or directory"),
    ],
)
def test_bad_text(tmp_path, name, words):
    path = bad_files(tmp_path)[name]
    check_refused(run("--text", path, "--out", tmp_path / "out"), f"{path}", words)
    assert not (tmp_path / "out").exists()


def test_too_many_words_for_the_check(tmp_path):
    text = tmp_path / "many"
    text.write_text(f"{'word ' * 1000}\n" * 20)
    check_refused(run("--text", text, "--out", tmp_path / "out"), "the dense check 160000000 scores")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--heads", 7], "--dim is a multiple of --heads, both at least 1; got --dim 64 and --heads 7"),
        (["--heads", 0], "got --dim 64 and --heads 0"),
        (["--dim", 10**9, "--heads", 1], "--dim is at most 4096"),
        (["--device", "abacus"], "--device is auto, cpu, cuda or cuda:N; got abacus"),
        (["--device", "meta"], "--device is auto, cpu, cuda or cuda:N; got meta"),
        (["--text", "x" * 5000], "cannot be read: File name too long"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used"),
    ],
)
def test_bad_options(tmp_path, arguments, words):
    check_refused(run("--out", tmp_path / "out", *arguments), words)
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("mine")
    check_refused(run("--out", tmp_path / "taken"), "cannot be a directory: File exists")
    assert (tmp_path / "taken").read_text() == "mine"


def test_output_that_cannot_be_written(tmp_path, monkeypatch):
    access = os.access  # the tests may run as root, who may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    check_refused(run("--out", tmp_path), "cannot be written to")
    assert not list(tmp_path.iterdir())


def show(*arguments):
    return runner.invoke(app, ["show", *map(str, arguments)], env={"COLUMNS": "80"})


def test_show_in_the_terminal():
    result = show("causal & window(back=1)", "--q", 3, "--kv", 5)
    assert result.exit_code == 0, result.output
    assert result.output.split("\n") == ["x · · · ·", "x x · · ·", "· x x · ·", ""]
    for row in (["--row", 1], ["--batch", 1]):
        result = show("causal", "--q", 3, "--batch", "lengths=1,2", *row)
        assert result.output.split("\n") == ["x · ·", "x x ·", "· · ·", "batch row 1 of 2, all heads", ""]
    both = show("causal", "--batch", "lengths=1,2", "--batch", "all")
    assert both.output.split("\n") == [
        "x ·",
        "· ·",
        "batch row 0 of 2, all heads",
        "",
        "x ·",
        "x x",
        "batch row 1 of 2, all heads",
        "",
    ]


def test_show_takes_sizes_from_tables():
    assert show("documents(offsets=[0,2,3])").output.split("\n") == ["x x ·", "x x ·", "· · x", ""]
    assert len(show("causal").output.split("\n")) == 33
    assert show("causal", "--q", 99, "--rows", "97:99", "--keys", "96:99").output == "x x ·\nx x x\n"


def test_show_of_long_masks_is_as_wide_as_the_terminal():
    result = show("causal", "--q", 1 << 20)
    lines = result.output.rstrip().split("\n")
    assert {len(line) for line in lines[:-1]} == {80} and len(lines) <= 49
    assert lines[-1].startswith("1048576 queries × 1048576 keys, a character is ")


def test_show_in_colour_where_there_is_colour(monkeypatch):
    from rich.console import Console

    from maskloom.show.command import terminal_of

    monkeypatch.setenv("COLORFGBG", "0;15")
    console = Console(force_terminal=True, color_system="256", width=50, height=30)
    terminal = terminal_of(console)
    assert (terminal.width, terminal.lines, terminal.colour, terminal.is_light) == (50, 27, True, True)
    assert not terminal_of(Console(force_terminal=True, color_system=None)).colour


def test_show_as_a_picture(tmp_path):
    result = show("sinks(2)", "--q", 5, "--out", tmp_path / "mask.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")


def test_show_as_a_page(tmp_path):
    path = tmp_path / "new" / "mask.html"
    result = show("causal", "--batch", "lengths=5,3,9", "--html", path, "--out", tmp_path / "mask.png")
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(path), str(tmp_path / "mask.png")]
    assert path.read_text("utf-8").startswith("<!doctype html>") and (tmp_path / "mask.png").exists()
    assert '"chosen":[0,1,2]' in path.read_text("utf-8")
    one = show("causal", "--batch", "lengths=5,3,9", "--batch", 1, "--html", path)
    assert one.exit_code == 0 and '"chosen":[1]' in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["causal", "--html", "mask.png"], "a page is saved as .html or .htm; got suffix '.png'"),
        (["causal", "--rows", "0:5", "--html", "mask.html"], "a page shows all queries and keys"),
        (["causl"], "no mask is called 'causl'; is causal meant?\n  causl\n  ^^^^^\n"),
        (["causal", "--batch", "lengths"], "--batch is a name and its values"),
        (["causal", "--batch", "lengths=1,x"], "no mask is called 'x'"),
        (["causal", "--batch", "lengths=1,2", "--row", 5], "batch is from 0 to 1"),
        (["causal", "--row", "one"], "--row is a number, at least 0, or all; got one"),
        (
            ["causal", "--batch", 1, "--batch", "all"],
            "the batch row to show is a number, or all, and given once; got --batch 1 and --batch all",
        ),
        (["causal", "--batch", 0, "--row", 1], "and given once; got --batch 0 and --row 1"),
        (["causal", "--row", ""], "--row is a number, at least 0, or all; got"),
        (["causal", "--head", "one"], "--head is a number, at least 0, or all; got one"),
        (["causal", "--rows", "5"], "--rows is start:stop, such as 0:64; got 5"),
        (["causal", "--keys", "5:99"], "keys is slice(start, stop) with 0 <= start < stop <= 32; got (5, 99)"),
        (["window(back=1" + "0" * 30 + ")"], "back is a number of positions, at most 1073741824"),
        (["lengths([causal])"], "lens are integers, a tensor or a list of them; got [causal]"),
        (["causal", "--out", "mask.gif"], "a figure is saved as .png, .svg or .pdf"),
    ],
)
def test_bad_show(arguments, words):
    result = show(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("maskloom show: ")
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["show", "causal", "--row", "0", "--row", "1"], "--row"),
        (["show", "causal", "--q=5", "--kv", "7", "--q=5"], "--q"),
        (["show", "causal", "--out", "a.png", "--out", "b.png"], "--out"),
        (["explain", "causal", "--block-size", "16", "--block-size", "32"], "--block-size"),
        (["demo", "--heads", "2", "--heads", "4"], "--heads"),
    ],
)
def test_an_option_of_one_value_is_given_once(arguments, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': it takes one value; got 2" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_flag_twice_is_the_flag():
    assert runner.invoke(app, ["show", "--help", "--help"]).exit_code == 0


def test_explain():
    result = runner.invoke(app, ["explain", "causal & window(back=100)", "--q", "1000"])
    assert result.exit_code == 0, result.output
    for words in (
        "B=1 H=1 Q=1000 KV=1000",
        "64 tiles of 128 × 128, decided by",
        "simpler, and equal: window(back=100, ahead=0)",
        "  visited alone  visited without it",
        "         1         56.3 %              23.7 %",
    ):
        assert words in result.output
    refused = runner.invoke(app, ["explain", "causal()"])
    assert refused.exit_code == 2
    assert "causal is itself a mask" in refused.stderr


def test_bench(tmp_path, monkeypatch):
    refused = runner.invoke(app, ["bench", "nothing"])
    assert refused.exit_code == 2
    assert "there are attention, attention_gpu, attn_gym_masks, blocks, blocks_gpu, compile, " in refused.stderr
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "quick.py").write_text("import sys; print('ran', sys.argv[1:])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert runner.invoke(app, ["bench", "quick", "--lengths", "3"]).output == "ran ['--lengths', '3']\n"
    monkeypatch.chdir(tmp_path / "benchmarks")
    assert "run it in a checkout" in runner.invoke(app, ["bench", "../quick"]).stderr


def test_env():
    result = runner.invoke(app, ["env"])
    assert result.exit_code == 0
    assert f"torch         {torch.__version__}" in result.output


def check_refused(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("maskloom demo: ")
    assert "Traceback" not in result.output
    for part in words:
        assert part in result.stderr
