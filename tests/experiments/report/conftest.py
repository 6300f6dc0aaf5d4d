"""Folders of results, and a real browser to look at their reports.

The browser is driven over the Chrome DevTools Protocol through two pipes: Chromium reads messages
from file descriptor 3 and writes to 4 (--remote-debugging-pipe), each a JSON document that ends in
a zero byte. So no port is opened and no driver is needed.
"""

import json
import os
import select
import shutil
import subprocess
import time

import pytest

from bitwright.experiments import CodesignConfig, codesign
from bitwright.quant import load_model, resolve_recipe

SECONDS = 120  # for one answer, on a machine that does much else


class Browser:
    """One page of a headless Chromium; `problems` and `requests` fill as it works."""

    def __init__(self, folder):
        program = shutil.which("chromium")
        assert program
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def descriptors():
            os.dup2(to_read, 10)
            os.dup2(to_write, 11)
            os.dup2(10, 3)
            os.dup2(11, 4)

        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--remote-debugging-pipe",
                "--disable-gpu",
                "--enable-unsafe-swiftshader",
                "--disable-background-networking",
                "--no-first-run",
                f"--user-data-dir={folder}",
                "--window-size=1400,1000",
            ],
            preexec_fn=descriptors,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session = 0, b"", None
        self.problems, self.requests, self.dialogs = [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _receive(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], SECONDS)
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _note(self, event):
        method, said = event["method"], event.get("params", {})
        if method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.problems.append([a.get("value", a.get("description")) for a in said["args"]])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(said["exceptionDetails"])
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.problems.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(said["message"])

    def run(self, code):
        """The value of a JavaScript expression; a promise's when it is kept."""
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path):
        """Load a file and wait until the page says that it is ready."""
        self.problems, self.requests, self.dialogs = [], [], []
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while self.run("document.body?.dataset.ready ?? ''") != "yes":
            assert not self.problems, self.problems
            assert time.monotonic() < end, "the page is not ready"
            time.sleep(0.1)

    def click(self, selector):
        """Click with the mouse on the middle of an element."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path):
        """A PNG of the whole page."""
        import base64

        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self._process.terminate()
        self._process.wait(30)
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if shutil.which("chromium") is None:
        pytest.skip("no chromium")
    one = Browser(tmp_path_factory.mktemp("chromium"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def codesign_folder(tmp_path_factory):
    """Three recipes on tiny."""
    names = ("fp16", "w4g64-bitmod", "w3g64-int-sym-s8")
    config = CodesignConfig(
        recipes=tuple(resolve_recipe(name) for name in names),
        max_tokens=256,
        window=256,
        verify_level=None,
    )
    answer = codesign(load_model("tiny"), config, command="bitwright codesign --model tiny")
    folder = tmp_path_factory.mktemp("codesign")
    (folder / "results.json").write_text(json.dumps(answer.document()))
    return folder


def sweep_record(number):
    """A record as `bitwright sweep` writes it, with round numbers."""
    record = {
        "key": f"{number:08x}",
        "name": f"point-{number}",
        "status": "ok",
        "error": None,
        "shape": "llama-2-7b",
        "recipe": "w4g128-bitmod" if number % 2 else "w8g128-int-sym",
        "pe": "bitmod",
        "rows": 8 * (number + 1),
        "dram": "ddr4-3200" if number < 3 else "hbm2",
        "technology": "nangate45",
        "clock_ps": 1000.0,
        "bits_per_weight": 4.25,
        "perplexity": None,
        "area_mm2": 1.0 + number,
    }
    for phase in ("prefill", "decode"):
        record |= {f"{phase}_{part}_uJ": 10.0 for part in ("logic", "sram", "dram", "leakage")}
        record[f"{phase}_energy_uJ"] = 40.0
        record |= {f"{phase}_cycles": 1000, f"{phase}_busy_cycles": 800}
        record |= {f"{phase}_stall_cycles": 100, f"{phase}_vector_cycles": 100}
        causes = ("fill", "port", "conflict", "scale", "drain", "dram", "latency")
        record |= {f"{phase}_stall_{c}_cycles": 100 * (c == "dram") for c in causes}
        record[f"{phase}_latency_s"] = 1e-6 / (1 + number % 4)
    return record


def sweep_document(records):
    return {
        "records": records,
        "meta": {
            "name": "sizes",
            "sweep": {"name": "sizes", "axes": {"rows": [8, 16]}},
            "objectives": ["area_mm2", "decode_latency_s"],
            "bitwright": "0.1.0",
            "commit": "none",
            "seed": 3,
        },
        "provenance": [{"quantity": "records[].*", "source": "made for a test"}],
    }


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory):
    """Five points and one that failed."""
    records = [sweep_record(number) for number in range(6)]
    for key in records[5]:
        if key.endswith(("_uJ", "_cycles", "_s", "_mm2")):
            records[5][key] = None
    records[5] |= {"status": "failed", "error": "ValueError: no"}
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "results.json").write_text(json.dumps(sweep_document(records)))
    return folder


@pytest.fixture(scope="session")
def search_folder(tmp_path_factory):
    """Two designs of a front, the second the knee, and a uniform one."""

    def row(name, recipe, perplexity, energy, formats):
        return {
            "name": name,
            "recipe": recipe,
            "bits_per_weight": 4.0,
            "perplexity": perplexity,
            "proxy": 0.1,
            "energy_per_token_uJ": energy,
            "latency_s": 0.01,
            "area_mm2": None,
            "array": {"pe": "bitmod", "rows": 32},
            "formats": formats,
        }

    mixed = {"0.attn.q": "int8-sym", "0.attn.k": "bitmod3", "1.attn.q": "bitmod3"}
    document = {
        "meta": {"model": "tiny", "bitwright": "0.1.0", "commit": "none", "seed": 0},
        "front": [
            row("mixed-000", "w4g64-bitmod+formats:choose=a,map=0", 3.9, 10.0, mixed),
            row("mixed-001", "w4g64-bitmod+formats:choose=a,map=1", 3.5, 12.0, mixed),
        ],
        "uniform": [row("bitmod4", "w4g64-bitmod", 3.6, 13.0, dict.fromkeys(mixed, "bitmod4"))],
        "hypervolume": {"objectives": ["perplexity", "energy_per_token_uJ"]},
        "knee": 1,
    }
    folder = tmp_path_factory.mktemp("search")
    (folder / "search.json").write_text(json.dumps(document))
    return folder
