"""The example that decodes writes for each prompt of a batch what it writes for it alone."""

from examples import decoding


def test_each_prompt_gets_what_it_gets_alone(capsys):
    written = decoding.main(steps=5)
    lines = capsys.readouterr().out.splitlines()
    assert [len(tokens) for tokens in written] == [5, 5, 5]
    assert len(lines) == 3 and all(line.endswith("as alone") for line in lines)
