"""The documentation as a site: its examples run, it builds without warnings, it loads nothing."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in PAGES])
def test_the_examples_of_a_page_print_what_is_shown(path):
    from bitwright.rtl import DESIGNS
    from bitwright.sim import PES

    before = [(table, set(table)) for table in (PES, DESIGNS)]
    text = path.read_text(encoding="utf-8")
    example = doctest.DocTestParser().get_doctest(
        text, {"__name__": "__main__"}, path.name, str(path), 0
    )
    try:
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    finally:  # a page may add rows to the tables
        for table, names in before:
            for name in set(table) - names:
                del table[name]
    assert result.attempted >= 1
    assert result.failed == 0


def test_pages_with_examples_are_found():
    assert len(PAGES) >= 5


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_has_every_page(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} >= pages
    assert "The weights: values() * scale" in (site / "api" / "quant.html").read_text("utf-8")
    assert "`sim/" not in (site / "index.html").read_text("utf-8")


def test_the_site_loads_nothing_from_elsewhere(site):
    loading = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//", re.I)
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert [page.name for page in pages if loading.search(page.read_text("utf-8"))] == []
    imports = [css for css in site.rglob("*.css") if "@import url(http" in css.read_text("utf-8")]
    assert imports == []
