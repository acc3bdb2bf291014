"""What would be released, and what forbids it."""

import datetime
import subprocess

import pytest

import maskloom as loom
from tests.test_surface import PACKAGE
from tools.release.state import RefusedError, entries_of, release_of, version_of

TODAY = datetime.date(2030, 5, 7)
CHANGELOG = "# Changelog\n\n## 0.3.0 - 2030-05-06\n\n- Something.\n\n## 0.2.0 - 2029-01-01\n\n- All.\n"
CITATION = 'cff-version: 1.2.0\nversion: 0.3.0\ndate-released: "2030-05-06"\n'


def git(root, *words):
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *names, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path):
    """A repository whose version 0.3.0 can be released."""
    package = tmp_path / "src" / "maskloom"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A package."""\n\n__version__ = "0.3.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "CITATION.cff").write_text(CITATION)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(root):
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "All")


def test_a_release_that_can_be_made(root):
    release = release_of(root, TODAY)
    assert (release.version, release.tag, release.date, release.problems) == (
        "0.3.0", "v0.3.0", datetime.date(2030, 5, 6), (),
    )  # fmt: skip
    assert release.epoch == datetime.datetime(2030, 5, 6, tzinfo=datetime.UTC).timestamp()
    assert len(release.commit) == 40


def test_the_version_is_in_one_place():
    root = PACKAGE.parents[1]
    assert version_of(root) == loom.__version__
    assert "\nversion" not in (root / "pyproject.toml").read_text()


def test_a_changed_tree_is_refused(root):
    for number in range(7):
        (root / f"new_{number}").write_text("")
    assert release_of(root, TODAY).problems == (
        "the tree has changes that are not committed: new_0, new_1, new_2, new_3, new_4, ...",
    )


def test_a_tag_that_exists_is_refused(root):
    git(root, "tag", "v0.3.0")
    [problem] = release_of(root, TODAY).problems
    assert problem.startswith("the tag v0.3.0 exists: 0.3.0 is released. Put the next version into src/maskloom/")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("## 0.3.0 - 2030-05-06\n\n- Something.\n", "", 'CHANGELOG.md has no entry "## 0.3.0 - 2030-05-07"'),
        ("## 0.3.0 - 2030-05-06", "## 0.3.0", "the entry has no date: \"## 0.3.0 - 2030-05-07\"; got ''"),
        ("0.3.0 - 2030-05-06", "0.3.0 - May 6", "got 'May 6'"),
        ("2030-05-06", "2030-05-08", "the entry of 0.3.0 is of 2030-05-08, which is after today, 2030-05-07"),
        ("- Something.\n", "", "the entry of 0.3.0 is empty"),
        ("## 0.3.0", "## Unreleased\n\n- More.\n\n## 0.3.0", 'lines under "Unreleased": move them under "## 0.3.0'),
        ("## 0.3.0", "## 0.4.0 - 2031-01-01\n\n## 0.3.0", "has 0.4.0 before 0.3.0: the newest version comes first"),
    ],
)
def test_a_changelog_that_does_not_say_it_is_refused(root, old, new, words):
    (root / "CHANGELOG.md").write_text(CHANGELOG.replace(old, new, 1))
    commit(root)
    assert words in "\n".join(release_of(root, TODAY).problems)


def test_an_empty_part_of_what_is_unreleased_is_no_matter(root):
    (root / "CHANGELOG.md").write_text(CHANGELOG.replace("## 0.3.0", "## Unreleased\n\n## 0.3.0", 1))
    commit(root)
    assert release_of(root, TODAY).problems == ()
    assert list(entries_of(root)) == ["Unreleased", "0.3.0", "0.2.0"]


def test_a_citation_of_another_version_is_refused(root):
    (root / "CITATION.cff").write_text(CITATION.replace("0.3.0", "0.2.0"))
    commit(root)
    assert release_of(root, TODAY).problems == ("CITATION.cff has version: 0.2.0; it is 0.3.0",)


def test_a_version_that_is_none_is_refused(root):
    (root / "src" / "maskloom" / "__init__.py").write_text('__version__ = "0.3.dev1"\n')
    commit(root)
    assert "a version is three numbers, such as 0.2.0; src/maskloom/__init__.py has '0.3.dev1'" in (
        release_of(root, TODAY).problems
    )
    (root / "src" / "maskloom" / "__init__.py").write_text("")
    with pytest.raises(RefusedError, match=r"^src/maskloom/__init__\.py has no __version__$"):
        release_of(root, TODAY)


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="is no checkout of git with a commit"):
        release_of(tmp_path, TODAY)
