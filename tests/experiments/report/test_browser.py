"""The page in a real browser: everything is there, works, and does nothing else."""

import json
import shutil
import time

import pytest

from bitwright.experiments import write_report

#: Markup for HTML, and for plotly, which knows <b> and entities.
EVIL = "<b>&amp;<img src=x onerror=alert(1)>"
PLOTTED = "document.getElementById('pareto').data.slice(1).reduce((n, t) => n + t.x.length, 0)"
COUNT = "document.getElementById('count').textContent"
CELLS = "[...document.querySelectorAll('#values tbody tr')].map(r => r.children[{}].textContent)"

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")


@pytest.fixture(scope="module")
def page(browser, codesign_folder, tmp_path_factory):
    """A report in which a recipe, a setting and a card hold HTML."""
    document = json.loads((codesign_folder / "results.json").read_text())
    document["records"][1]["recipe"] = EVIL
    document["records"][1]["config"]["format"] = EVIL
    document["records"][1]["prefill"]["layers"][3]["name"] = EVIL
    document["meta"]["text"] = EVIL
    document["meta"]["card"][EVIL] = document["meta"]["card"].pop("w4g64-bitmod")
    document["meta"]["card"][EVIL]["wires"] = EVIL
    document["provenance"][0]["source"] = EVIL
    folder = tmp_path_factory.mktemp("page")
    (folder / "results.json").write_text(json.dumps(document))
    path, _ = write_report(folder)
    browser.open(path)
    return browser


def settled(browser):
    """After an event: plotly draws before the next frame."""
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_every_figure_and_table_is_there(page):
    drawn = page.run(
        "[...document.querySelectorAll('.js-plotly-plot')].map(d => [d.closest('section')"
        ".querySelector('h2').textContent, d.querySelectorAll('svg.main-svg').length > 0])"
    )
    assert drawn == [
        ["Points", True],
        ["Energy", True],
        ["Energy", True],
        ["Latency", True],
        ["Latency", True],
        ["Roofline", True],
        ["Area", True],
        ["Formats by layer", True],
    ]
    marks = "document.querySelectorAll('{}').length"
    assert page.run(marks.format("#pareto .scatterlayer .points path")) == 3
    # 10 products in two phases; 3 bars of a figure of 4 parts; a heat map is one picture.
    assert page.run(marks.format("#roofline .scatterlayer .points path")) == 20
    assert page.run(marks.format("#energy .figure:nth-of-type(1) .bars .point")) >= 12
    assert page.run(marks.format("#formats .heatmaplayer image")) == 1
    assert page.run(marks.format("#cards dt")) > 8
    assert page.run(marks.format("#provenance tbody tr")) > 50
    command = page.run("document.getElementById('command').textContent")
    assert command == "bitwright codesign --model tiny"


def test_a_filter_changes_the_points(page):
    assert page.run(PLOTTED) == 3 and page.run(COUNT).startswith("3 of 3 points drawn")
    labels = page.run(
        "[...document.querySelectorAll('#filters fieldset')].map(f => f.firstChild.textContent)"
    )
    place = labels.index("pe") + 1
    box = (
        f"#filters fieldset:nth-of-type({place}) label:last-of-type input"  # fp16, by the alphabet
    )
    page.click(box)
    settled(page)
    assert page.run(PLOTTED) == 2 and page.run(COUNT).startswith("2 of 3 points drawn")
    assert len(page.run(CELLS.format(0))) == 2
    page.click(box)
    settled(page)
    assert page.run(PLOTTED) == 3


def test_only_the_front(page):
    whole = page.run(COUNT)
    front = int(whole.split(", ")[1].split()[0])
    values = page.run("everyone.map(p => data.axes.map(name => value(name, p)))")
    best = [a for a in values if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in values)]
    assert front == len(best)
    page.run("document.getElementById('choose-x').value = 'bits_per_weight';"
             "document.getElementById('choose-x').dispatchEvent(new Event('change'))")  # fmt: skip
    settled(page)
    assert page.run("document.getElementById('pareto').layout.xaxis.title.text") == (
        "bits_per_weight"
    )
    page.run("document.getElementById('choose-y').value = 'area_mm2';"
             "document.getElementById('choose-y').dispatchEvent(new Event('change'))")  # fmt: skip
    page.click("#only-pareto")
    settled(page)
    # The array of fp16 PEs is the smallest, the 3-bit recipe has the fewest bits; the 4-bit one
    # has the area of the 3-bit one.
    assert page.run(PLOTTED) == 2
    page.click("#only-pareto")
    settled(page)
    assert page.run(PLOTTED) == 3


def test_a_click_on_a_head_sorts(page):
    heads = page.run("[...document.querySelectorAll('#values th')].map(h => h.textContent)")
    place = heads.index("bits_per_weight")
    before = page.run(CELLS.format(place))
    head = f"#values th:nth-child({place + 1}) button"
    page.click(head)
    settled(page)
    up = page.run(CELLS.format(place))
    page.click(head)
    settled(page)
    down = page.run(CELLS.format(place))
    assert up == sorted(before, key=float) and down == up[::-1] and before != up
    sort = f"document.querySelector('#values th:nth-child({place + 1})').ariaSort"
    assert page.run(sort) == "descending"


def test_labels_are_text(page):
    for design in ("formats", "roofline"):
        page.run(
            f"(() => {{ const s = document.querySelector('#{design} select'); s.value = "
            f"{json.dumps(EVIL)}; s.dispatchEvent(new Event('change')); }})()"
        )
    settled(page)
    text = page.run("document.body.textContent")
    assert text.count(EVIL) >= 6
    where = "[...document.querySelectorAll('{} text')].some(t => t.textContent.includes({}))"
    for figure, label in (("#energy .xtick", EVIL[:27]), ("#formats .colorbar", EVIL)):
        assert page.run(where.format(figure, json.dumps(label))), figure
    assert page.run("document.querySelectorAll('img, [onerror]').length") == 0
    assert page.run("document.title").count(EVIL) == 1


def test_hovering_shows_text(page):
    page.run("document.getElementById('pareto').scrollIntoView({block: 'center'})")
    x, y = page.run(
        "(() => { const d = document.getElementById('pareto');"
        " const n = d.data.findIndex(t => (t.text ?? []).some(s => s.includes('img')));"
        " const all = [...d.querySelectorAll('.scatterlayer .trace')];"
        " const r = all[n].querySelector('.points path').getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for step in (30, 0):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
        time.sleep(0.2)
    shown = "[...document.querySelectorAll('#pareto .hovertext')].map(h => h.textContent).join()"
    assert EVIL in page.run(shown)


def test_nothing_went_wrong_and_nothing_was_asked_for(page):
    """Last in the file: everything above was done to the page."""
    settled(page)
    assert page.problems == [] and page.dialogs == []
    local = [url for url in page.requests if not url.startswith("data:")]
    assert len(local) == 1 and local[0].startswith("file:///")


def test_many_points_are_drawn_by_webgl(browser, tmp_path, request):
    """20,000 points: the table shows the first 1,000 and says so."""
    record = request.getfixturevalue("sweep_folder")
    document = json.loads((record / "results.json").read_text())
    first = document["records"][:5]
    document["records"] = [
        {**first[n % 5], "name": f"p{n}", "area_mm2": 1 + n * 1e-3, "rows": 8 + n % 7}
        for n in range(20_000)
    ]
    (tmp_path / "results.json").write_text(json.dumps(document))
    browser.open(write_report(tmp_path)[0])
    assert browser.run(COUNT).startswith("20,000 of 20,000 points drawn")
    assert browser.run("document.getElementById('pareto').data[1].type") == "scattergl"
    assert browser.run("document.querySelectorAll('#pareto .gl-canvas').length") == 3
    assert len(browser.run(CELLS.format(0))) == 1000
    note = browser.run("document.querySelector('#values .note').textContent")
    assert note.startswith("The first 1,000 of 20,000 rows, as sorted")
    # The driver without a GPU tells of slow reads; that is not the page's.
    assert [p for p in browser.problems if "GL Driver Message" not in str(p)] == []


def test_a_search_starts_with_its_knee(browser, search_folder):
    browser.open(write_report(search_folder)[0])
    assert browser.run("document.querySelector('#formats select').value") == "mixed-001"
    assert browser.run("document.querySelector('#roofline .none').textContent") == (
        "The file has no matrix products by layer, which a roofline is made of."
    )
    assert browser.run(PLOTTED) == 3 and browser.problems == []
