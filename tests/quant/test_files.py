"""Files are written whole or not at all."""

import os

import pytest

from bitwright.quant import InputError, atomic_path, cache_folder, output_folder, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_unwritable_places_are_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output folder .*file/x cannot be written: Not a dir"):
        output_folder(tmp_path / "file" / "x")
    with pytest.raises(InputError, match=r"cannot write .*missing/a: No such file or directory"):
        write_text(tmp_path / "missing" / "a", "x")


def test_the_cache_moves_with_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    assert cache_folder("a", "b") == tmp_path / "cache" / "a" / "b"
