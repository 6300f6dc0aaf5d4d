"""Texts to measure on."""

import platform
import re
import sys
from types import SimpleNamespace

import pytest

from bitwright.quant import InputError, load_text


def test_the_default_is_the_first_40000_characters_of_the_help_topics():
    from pydoc_data.topics import topics

    text = load_text()
    assert text.name == (
        f"pydoc_data.topics of Python {platform.python_version()}, first 40,000 characters"
    )
    assert len(text.content) == 40_000
    first, second, *_ = sorted(topics)
    assert text.content.startswith(topics[first] + "\n\n" + topics[second][:10])


def test_a_file(tmp_path):
    (tmp_path / "my.txt").write_bytes("naïve\r\n".encode())
    text = load_text(tmp_path / "my.txt")
    assert (text.name, text.content) == ("my.txt", "naïve\r\n")
    assert load_text(str(tmp_path / "my.txt")) == text


@pytest.mark.parametrize("content", [b"", b" \n\t "])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "my.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"my\.txt is empty; it must hold at least one window"):
        load_text(tmp_path / "my.txt")


def test_a_missing_file():
    with pytest.raises(
        InputError,
        match="^cannot read text missing.txt: No such file or directory; name a UTF-8 file or wiki",
    ):
        load_text("missing.txt")


def test_a_folder(tmp_path):
    with pytest.raises(InputError, match=f"^cannot read text {tmp_path}: Is a directory; "):
        load_text(tmp_path)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "my.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"my\.txt is not UTF-8 \(byte 2 is 0xef\); convert it first$"
    ):
        load_text(tmp_path / "my.txt")


def fake_datasets(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_wikitext2(monkeypatch):
    def load_dataset(path, name, split):
        assert (path, name, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
        return {"text": ["", " = Robert Boulter = \n"]}

    fake_datasets(monkeypatch, load_dataset)
    text = load_text("wikitext2")
    assert text.content == "\n\n = Robert Boulter = \n"
    assert text.name == "WikiText-2 test split (raw)"


def test_wikitext2_offline(monkeypatch):
    def load_dataset(path, name, split):
        raise ConnectionError("no route to host\nmore lines")

    fake_datasets(monkeypatch, load_dataset)
    message = "text wikitext2 cannot be fetched (no route to host); go online, or name a UTF-8 file"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_text("wikitext2")


def test_wikitext2_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # makes the import fail
    with pytest.raises(
        InputError,
        match=r"^text wikitext2 needs the datasets package; pip install 'bitwright\[hub\]', or",
    ):
        load_text("wikitext2")
