"""The page as text, its command, and figures for a paper."""

import json
import re

import pytest

from bitwright.commands.codesign import codesign as codesign_command
from bitwright.commands.report import report
from bitwright.experiments import read_results, report_page, write_publication, write_report
from bitwright.output import command_line, remembered
from bitwright.quant import InputError

SHOWN = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.S)


@pytest.mark.parametrize("kind", ["codesign", "sweep", "search"])
def test_the_same_results_give_the_same_bytes(kind, request, tmp_path):
    folder = request.getfixturevalue(f"{kind}_folder")
    pages = [write_report(folder, tmp_path / name)[0].read_bytes() for name in "ab"]
    assert pages[0] == pages[1]
    figures = [write_publication(read_results(folder), tmp_path / f"{name}-f") for name in "ab"]
    assert set(figures[0]) == {
        f"{name}.{ending}"
        for name in ("pareto", "energy", "latency", "formats", "area")
        for ending in ("pdf", "svg", "png")
        if (kind, name) != ("search", "area")  # its rows have none
    }
    for name, path in figures[0].items():
        assert path.read_bytes() == figures[1][name].read_bytes(), name
    assert figures[0]["pareto.pdf"].read_bytes()[:4] == b"%PDF"


def test_figures_are_two_columns_wide(codesign_folder, tmp_path):
    paths = write_publication(read_results(codesign_folder), tmp_path)
    for name, path in paths.items():
        if name.endswith(".svg"):
            text = path.read_text()
            width = re.search(r'<svg [^>]*width="([\d.]+)pt"', text)
            assert float(width[1]) == pytest.approx(7.2 * 72)
            assert "w4g64-bitmod" in text


def test_the_page_allows_its_own_two_scripts_and_no_network(sweep_folder):
    page = report_page(read_results(sweep_folder))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[\w+/=]{44}' ?){2}", rules["script-src"])
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri",
                          "form-action"}  # fmt: skip
    assert len(re.findall(r"<script\b", page)) == 3 and "plotly.js v" in page
    assert page.count("</script>") == 3


def test_labels_stay_inside_the_data(sweep_folder, tmp_path):
    evil = "</script><script>alert(1)</script><!-- \u2028 & $title"
    document = json.loads((sweep_folder / "results.json").read_text())
    document["records"][0]["recipe"] = evil
    document["meta"]["name"] = evil
    document["meta"]["commit"] = evil
    (tmp_path / "results.json").write_text(json.dumps(document))
    page = report_page(read_results(tmp_path))
    assert "alert(1)</script>" not in page and page.count("</script>") == 3
    (data,) = SHOWN.findall(page)
    assert not set(data) & set("<>&\u2028")
    (recipe,) = [c for c in json.loads(data)["columns"] if c["name"] == "recipe"]
    assert evil.replace("\u2028", "").split() == [
        word for label in recipe["values"] if "alert" in label for word in label.split()
    ]
    assert "<title>sweep &lt;/script&gt;&lt;script&gt;" in page


def test_labels_in_figures_are_no_mathematics(sweep_folder, tmp_path):
    document = json.loads((sweep_folder / "results.json").read_text())
    names = ("$\\frac{1$", "_hidden", "\u6f22\u5b57", "<b>&", "a" * 400)
    for record, name in zip(document["records"], names, strict=False):
        record["name"] = name
    (tmp_path / "results.json").write_text(json.dumps(document))
    paths = write_publication(read_results(tmp_path), tmp_path / "f")
    text = paths["pareto.svg"].read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in text and "<b>" not in text


def test_the_command(sweep_folder, tmp_path, invoke):
    out = tmp_path / "page.html"
    answer = json.loads(
        invoke(report, str(sweep_folder), "--out", str(out), "--figures", str(tmp_path / "f"),
               "--json")
    )  # fmt: skip
    assert (answer["kind"], answer["points"]) == ("sweep", 6)
    assert answer["report"] == str(out) and answer["bytes"] == out.stat().st_size
    assert len(answer["figures"]) == 15
    assert str(tmp_path / "f" / "pareto.pdf") in answer["figures"]


def test_where_the_command_cannot_write(sweep_folder, tmp_path, invoke):
    with pytest.raises(InputError, match="is a folder; name a file, such as .*report.html"):
        invoke(report, str(sweep_folder), "--out", str(tmp_path))
    with pytest.raises(InputError, match="cannot write .*: No such file or directory"):
        invoke(report, str(sweep_folder), "--out", str(tmp_path / "no" / "page.html"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output folder .* cannot be written"):
        invoke(report, str(sweep_folder), "--figures", str(tmp_path / "file"))


def test_nothing_to_draw_is_refused(sweep_folder, tmp_path):
    document = json.loads((sweep_folder / "results.json").read_text())
    document["records"] = document["records"][5:]
    document["records"][0]["shape"] = "elsewhere"
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="no point has numbers to draw"):
        write_publication(read_results(tmp_path), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_the_command_line_is_quoted_and_without_its_output_folder():
    assert command_line() is None
    with remembered(["codesign", "--model", "my model; rm -rf x", "--out", "o", "--json"]):
        assert command_line() == "bitwright codesign --model 'my model; rm -rf x'"
    with remembered(["codesign", "--out=o", "--tokens", "256"]):
        assert command_line() == "bitwright codesign --tokens 256"
    assert command_line() is None


def test_codesign_writes_the_page_and_its_command(tmp_path, invoke):
    words = ["--model", "tiny", "--recipes", "w4g64-bitmod", "--tokens", "256", "--window", "256",
             "--energy-layers", "0", "--no-verify"]  # fmt: skip
    with remembered(["codesign", *words, "--out", str(tmp_path)]):
        printed = invoke(codesign_command, *words, "--out", str(tmp_path))
    assert "report.html" in printed
    meta = json.loads((tmp_path / "results.json").read_text())["meta"]
    assert meta["command"] == "bitwright codesign " + " ".join(words)
    assert str(tmp_path) not in (tmp_path / "report.html").read_text(encoding="utf-8")
