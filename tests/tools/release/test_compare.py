"""Archives are compared in words."""

import io
import tarfile
import zipfile

import pytest

from tools.release.compare import differences

FILES = {"a.py": b"one", "b.py": b"two"}


def wheel(path, files=FILES, *, mode=0o644, time=(2030, 5, 7, 0, 0, 0), level=6):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, time)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content, compresslevel=level)
    return path


def sdist(path, files=FILES, *, uid=0):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid = len(content), uid
            archive.addfile(info, io.BytesIO(content))
    return path


def test_equal_archives_have_no_differences(tmp_path):
    for make, name in ((wheel, "one.whl"), (sdist, "one.tar.gz")):
        assert list(differences(make(tmp_path / "a" / name), make(tmp_path / "b" / name))) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"mode": 0o755}, ["a.py has mode 644 and 755", "b.py has mode 644 and 755"]),
        ({"time": (2030, 5, 8, 0, 0, 0)}, ["a.py is of (2030, 5, 7, 0, 0, 0) and (2030, 5, 8, 0, 0, 0)"]),
        ({"files": FILES | {"b.py": b"three"}}, ["b.py has other content: 3 and 5 bytes"]),
        ({"files": {"a.py": b"one"}}, ["b.py is missing"]),
        ({"files": FILES | {"c.py": b""}}, ["c.py is there too"]),
        ({"files": dict(reversed(FILES.items()))}, ["its files are in another order"]),
        ({"files": {"a.py": b"one" * 99}, "level": 1}, ["a.py has other content: 3 and 297 bytes", "b.py is missing"]),
    ],
)
def test_differences_of_wheels_are_named(tmp_path, other, said):
    found = list(differences(wheel(tmp_path / "a" / "one.whl"), wheel(tmp_path / "b" / "one.whl", **other)))
    assert set(said) <= set(found)


def test_differences_of_sdists_are_named(tmp_path):
    one, other = sdist(tmp_path / "a" / "one.tar.gz"), sdist(tmp_path / "b" / "other.tar.gz", uid=7)
    assert list(differences(one, other)) == [
        "its name is other.tar.gz",
        "a.py belongs to (0, 0, '', '') and (7, 0, '', '')",
        "b.py belongs to (0, 0, '', '') and (7, 0, '', '')",
    ]


def test_other_compression_is_a_difference(tmp_path):
    files = {"a.py": b"one two three " * 999}
    one, other = (wheel(tmp_path / name / "one.whl", files, level=level) for name, level in (("a", 1), ("b", 9)))
    assert list(differences(one, other)) == [
        "its files are equal, and its bytes are not: compression or headers differ"
    ]
