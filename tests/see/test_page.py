"""The page: what its file holds, and what a browser makes of it (marked `browser`: needs playwright and chromium)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from passes import METRICS, same_bits, small_gpt

import nanograd_llm as ng
from nanograd_llm.autograd.tensor import registry
from nanograd_llm.errors import ConfigError
from nanograd_llm.see import page as page_module
from nanograd_llm.see.look import look
from nanograd_llm.see.page import code, page, plain_table, pooled
from nanograd_llm.see.pictures import look_page, training_page

TOKENS = ["the", "cat", "sat", "on", "the"]
MACRON = "\N{COMBINING MACRON}"


def expression(a, b, c):
    h1 = a * b
    h2 = h1 + c
    return ng.ops.tanh(h2)


@pytest.fixture(scope="module")
def gpt() -> Any:
    model, tokens, targets = small_gpt()
    return ng.trace(model.loss, tokens, targets)


@pytest.fixture(scope="module")
def file(gpt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "gpt.html"
    gpt.html(path, TOKENS)
    return path


@pytest.fixture(scope="module")
def scalar_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "scalar.html"
    ng.trace(expression, 2.0, -0.5, 1.5).html(path)
    return path


def test_the_code_of_the_page_is_small_and_so_are_its_files(file: Path, scalar_file: Path) -> None:
    assert len(code("page.js").encode()) + len(code("page.css").encode()) <= 40_000
    assert file.stat().st_size <= 400_000 and scalar_file.stat().st_size <= 45_000


def test_the_page_of_nano_at_16_tokens_has_at_most_3_megabytes(rng) -> None:
    model = ng.GPT(ng.GPTConfig.preset("nano"), seed=0)
    tokens, targets = rng.integers(0, 1024, (2, 1, 16))
    with patch.object(page_module, "_SLOPES", 1e6), patch.object(page_module, "_REPLAYED", 1e6):  # these are small
        assert len(page(ng.trace(model.loss, tokens, targets)).encode()) <= 3_000_000


RECORD_GPT2 = """
import resource, sys
import numpy as np
import nanograd_llm as ng
model = ng.GPT(ng.GPTConfig.preset("gpt2"), seed=0)
tokens, targets = np.random.default_rng(0).integers(0, 50257, (2, 1, 8))
trace = ng.trace(model.loss, tokens, targets)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
trace.html(sys.argv[1])
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in other units")
def test_gpt2_at_8_tokens_takes_2_5_gigabytes_to_record_and_its_page_4_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.html"
    done = subprocess.run([sys.executable, "-c", RECORD_GPT2, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 <= 2.5e9
    assert path.stat().st_size <= 4_000_000


def test_the_page_names_no_other_file_and_forbids_to_load_any(file: Path) -> None:
    text = file.read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    assert not re.search(r'(?:src|href)\s*=\s*"|@import|url\(', text)


def test_markup_in_names_and_numbers_that_json_lacks_do_no_harm(tmp_path: Path) -> None:
    def f(x):
        return ng.ops.log(x).sum()

    f.__name__ = "</script><script>alert(1)</script>"
    with np.errstate(all="ignore"):
        text = page(ng.trace(f, np.array([0.0, np.inf, np.nan, 1.0])))
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["title"] == f.__name__ and text.count("alert(1)</script>") == 0


def test_without_scripts_the_table_stands_there(gpt, file: Path) -> None:
    main = file.read_text("utf-8").split('<main id="main">')[1].split("</main>")[0]
    assert main.strip() == plain_table(gpt) and main.count("<tr>") == 16 and "blocks.0.ln_1" in main


def test_a_notebook_shows_an_escaped_iframe_and_above_a_megabyte_the_table(gpt) -> None:
    with patch.object(page_module, "_SLOPES", 0), patch.object(page_module, "_REPLAYED", 0):
        shown = gpt._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and "<script" not in shown
    for limit in ("NOTEBOOK_BYTES", "NOTEBOOK_NUMBERS"):
        with patch.object(page_module, "_SLOPES", 0), patch.object(page_module, limit, 100):
            assert gpt._repr_html_() == plain_table(gpt)


def test_a_cell_of_a_pooled_array_is_its_largest_entry_with_the_sign(rng) -> None:
    a = rng.standard_normal((3, 40, 300))
    cells, rows, columns, places = pooled(a, 576)
    flat = a.reshape(120, 300)
    assert cells.size <= 576 and (rows, columns) == (18, 4)
    for r, c in np.ndindex(cells.shape):
        block = flat[r * rows : (r + 1) * rows, c * columns : (c + 1) * columns]
        assert cells[r, c] == block.reshape(-1)[np.argmax(np.abs(block))]
        assert cells[r, c] == block[divmod(int(places[r, c]), columns)]
    assert pooled(a[0, :5, :6], 576)[0].tolist() == a[0, :5, :6].tolist()
    assert pooled(np.arange(768.0), 2048)[0].shape == (12, 64)
    assert pooled(np.zeros((0, 3)), 9)[0].size == 0


def test_a_page_that_does_not_end_in_html_is_refused(gpt, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a page ends in \.html, such as step\.html; got .*page.txt"):
        gpt.html(tmp_path / "page.txt")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine")
    with sync.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page in the browser, with all that it complains about and asks for."""

    def __init__(self, browser: Any, path: Path, **how: Any):
        self.tab = browser.new_page(viewport={"width": 1300, "height": 900}, **how)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())

    def state(self) -> str:
        return self.tab.inner_text("#where") + ": " + self.tab.inner_text("h2")

    def press(self, *keys: str) -> str:
        for key in keys:
            self.tab.keyboard.press(key)
        return self.state()

    def exact(self, name: str) -> list[float] | None:
        """The numbers of the array that is shown under this name, from their exact texts; None if none is shown."""
        figure = self.tab.locator(f'figure[data-name="{name}"]').first
        if not figure.count():
            return None
        number = int(figure.get_attribute("data-array"))
        texts = self.tab.evaluate("i => Array.from(array(i).data, x => exact(x, array(i)))", number)
        titles = figure.locator("td").evaluate_all("cells => cells.map(cell => cell.title)")
        assert titles in ([], texts)  # what the pointer shows, where it is a table
        return [float(text) for text in texts]


@pytest.fixture
def opened(browser, file: Path) -> Iterator[Opened]:
    found = Opened(browser, file)
    yield found
    assert found.complaints == [] and found.requests == [file.as_uri()]
    found.tab.close()


@pytest.mark.browser
def test_the_keys_walk_2n_states_forward_and_the_same_back(opened: Opened, gpt) -> None:
    ahead = [opened.state(), *(opened.press("ArrowRight") for _ in range(29))]
    assert len(set(ahead)) == 30 and opened.press("ArrowRight") == ahead[-1]
    assert [opened.press("ArrowLeft") for _ in range(29)] == ahead[-2::-1]
    assert ahead[4] == "forward 5 of 15: forward: linear in blocks.0.attention.qkv"
    assert ahead[15] == "backward 1 of 15: backward through linear_cross_entropy"
    assert opened.press("End") == ahead[-1] and opened.press("Home") == ahead[0]
    assert opened.press("f").startswith("backward 15 of 15") and opened.press("f") == ahead[0]
    assert opened.press("n") == ahead[1] and opened.press("b") == ahead[0]


@pytest.mark.browser
def test_each_number_on_the_page_is_that_of_the_array(opened: Opened, gpt) -> None:
    opened.press("Home")
    for step in range(30):
        call = gpt[step if step < 15 else 29 - step]
        expected = {"y": call.output.array} if step < 15 else {"ȳ": call.cotangent}
        for i, (x, sent) in enumerate(zip(call.inputs, call.sent)):
            if x is not None and (step < 15 or sent is not None):
                name = call.input_name(i)
                expected[name if step < 15 else f"{name[0]}{MACRON}{name[1:]}"] = x.array if step < 15 else sent
        for name, a in expected.items():
            shown = opened.exact(unicodedata.normalize("NFC", name))
            if shown is None:  # ā and b̄ of a sum are ȳ, unchanged, and shown once
                assert same_bits(a, call.cotangent)
            else:
                assert shown == [float(str(x)) for x in a.reshape(-1)], (call, name)
        opened.press("ArrowRight")


@pytest.mark.browser
def test_a_number_shows_its_chain_rule_and_its_nudge_when_clicked(opened: Opened, gpt) -> None:
    opened.press("End")
    opened.tab.click('figure[data-name="w̄"] td[data-k="3"]')
    panel = opened.tab.inner_text("#panel")
    assert float(opened.tab.inner_text("#number")) == float(str(gpt[0].sent[0].reshape(-1)[3]))
    assert "= Σ ȳ·∂y/∂w[0,3]" in panel and "they agree" in panel
    assert re.search(
        r"Nudge wte\[0,3\] up and down.*they agree within the rounding of \S+ "
        r"\(the whole gradient of wte: all 2 uses together\)",
        panel,
    )
    assert "use by use" in opened.tab.inner_text("main")
    assert opened.press("Escape") and not opened.tab.locator("#panel").count()


@pytest.mark.browser
@pytest.mark.parametrize("size", [5000, 6400])  # 6400 are folded into rows of 64
def test_the_largest_entries_of_a_pooled_array_of_one_axis_are_in_the_cells_that_are_clicked(
    browser, tmp_path: Path, rng, size: int
) -> None:
    trace = ng.trace(lambda x: (ng.ops.tanh(x) * x).sum(), rng.standard_normal(size))
    trace.html(tmp_path / "long.html")
    found = Opened(browser, tmp_path / "long.html")
    cells = found.tab.evaluate(
        """() => { const x = page.calls[0].in[0], a = array(x.g);
          return Object.keys(x.t).map(flat => [Number(flat), a.data[cellOf(a, Number(flat))]]); }"""
    )
    sent = trace[0].sent[0]
    assert len(cells) == 6 and [shown for _, shown in cells] == [float(sent[flat]) for flat, _ in cells]
    assert found.complaints == []
    found.tab.close()


@pytest.mark.browser
def test_a_cell_of_a_pooled_array_names_the_entry_that_it_shows(browser, tmp_path: Path, rng) -> None:
    trace = ng.trace(lambda x: (ng.ops.tanh(x) * x).sum(), rng.standard_normal((3, 50, 97)))
    trace.html(tmp_path / "large.html")
    found = Opened(browser, tmp_path / "large.html")
    for cell in range(0, 700, 35):
        found.tab.evaluate(
            f"() => {{ const x = page.calls[0].in[0], v = page.values[x.v];"
            f" picked = {{ array: v.a, cell: {cell}, value: v, entry: v.n }}; render(); }}"
        )
        name, number = re.match(
            r"x\[(.*)\] = (\S+), the largest in size of the", found.tab.inner_text("#panel")
        ).groups()
        assert trace.leaves["x"].array[tuple(map(int, name.split(",")))] == float(number)
        said = found.tab.inner_text("#panel")
        assert f'trace.nudge("x", ({name.replace(",", ", ")}))' in said or "Nudge x[" in said
    assert found.complaints == []
    found.tab.close()


def test_the_file_holds_the_source_of_what_a_rule_calls_and_of_the_forward(gpt) -> None:
    data = json.loads(page(gpt).split('id="data">')[1].split("</script>")[0])
    norm, loss = data["calls"][3], data["calls"][14]
    assert "def _normalise_backward(" in data["sources"][norm["rule"]] and norm["keeps"] == ["xhat", "r"]
    assert "def _subtract_targets(" in data["sources"][loss["forward"]] and loss["keeps"] == ["dx", "dw", "dlogits"]


@pytest.mark.browser
def test_only_a_fused_op_offers_to_be_opened(opened: Opened) -> None:
    opened.press("Home", *["ArrowRight"] * 2)
    assert "open" not in opened.tab.inner_text("header") and not opened.tab.get_by_text("ops it equals").count()
    before = opened.state()
    assert opened.press("o") == before
    opened.press("n")
    assert opened.tab.get_by_text("ops it equals").count() == 1


@pytest.mark.browser
def test_an_entry_is_picked_and_announced_with_the_keyboard_alone(opened: Opened) -> None:
    opened.press("End")
    opened.tab.locator('figure[data-name="w̄"]').first.focus()
    opened.press("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown")
    assert "∂y/∂w[1,1]" in opened.tab.inner_text("#panel") or "w̄[1,1]" in opened.tab.inner_text("#panel")
    assert "[1,1] =" in opened.tab.inner_text('[role="status"]')


@pytest.mark.browser
def test_a_fused_op_opens_into_the_ops_it_equals_and_closes(opened: Opened) -> None:
    opened.press("Home", *["ArrowRight"] * 3)
    assert opened.press("o") == "forward 1 of 10: forward: mean"
    assert opened.tab.inner_text("h1") == "GPT.loss › layernorm, opened"
    assert opened.press("End") == "backward 10 of 10: backward through mean"
    assert opened.press("Escape").startswith("backward 12 of 15")


@pytest.mark.browser
def test_a_planted_wrong_rule_is_found_with_the_page_alone(browser, tmp_path: Path) -> None:
    with patch.object(registry["tanh"], "rule", lambda dy, y: dy * (1 - y)):
        ng.trace(expression, 2.0, -0.5, 1.5).html(tmp_path / "wrong.html")
    found = Opened(browser, tmp_path / "wrong.html")
    marked = found.tab.locator("nav .bad").locator("xpath=ancestor::button")
    assert marked.count() == 1 and marked.inner_text().startswith("tanh ≠")
    marked.click()
    found.press("f")
    found.tab.click('figure[data-name="x̄"] td')
    assert "they differ: the rule is wrong here" in found.tab.inner_text("#panel")
    found.press("n")  # of the sum only the gradient that arrived is wrong
    found.tab.click('figure[data-name="ȳ"] td')
    assert "rounding of" in (panel := found.tab.inner_text("#panel"))
    assert panel.endswith(": this gradient came through a wrong rule: that of 2 tanh")
    assert found.complaints == []


@pytest.mark.browser
def test_a_legend_says_what_was_compared_and_what_the_marks_mean(opened: Opened) -> None:
    legend = opened.tab.inner_text("nav .legend")
    assert "A bar is the norm of the gradient that arrives" in legend
    assert legend.endswith("they agree within the rounding of float32.")


def test_a_rule_that_is_wrong_in_one_small_entry_is_marked_in_the_file(gpt) -> None:
    call = gpt[4]
    sent = call.sent[1].copy()
    sent.flat[np.argmin(np.abs(sent))] += 0.1 * np.abs(sent).max()
    with patch.object(page_module, "_SLOPES", 1e5), patch.object(call, "sent", [call.sent[0], sent, call.sent[2]]):
        data = json.loads(page(gpt).split('id="data">')[1].split("</script>")[0])
    wrong = [(n, x["n"]) for n, c in enumerate(data["calls"]) for x in c["in"] if x.get("ok") == 0]
    assert wrong == [(4, "w")]


def test_of_a_large_call_the_entry_with_the_largest_gradient_is_worked_out_and_a_wrong_rule_marked(gpt) -> None:
    def data() -> Any:
        return json.loads(page(gpt).split('id="data">')[1].split("</script>")[0])

    call = gpt[4]
    sent = call.sent[1].copy()
    sent.flat[np.argmin(np.abs(sent))] += 0.1 * np.abs(sent).max()
    with patch.object(page_module, "LARGE", 10):
        right = data()
        with patch.object(call, "sent", [call.sent[0], sent, call.sent[2]]):
            marked = [(n, x["n"]) for n, c in enumerate(data()["calls"]) for x in c["in"] if x.get("ok") == 0]
        assert marked == [(4, "w")]
    found = [(gpt[n].sent[x["i"]], x["t"]) for n, c in enumerate(right["calls"]) for x in c["in"] if "g" in x]
    assert len(found) > 20 and all([int(place) for place in t] == [np.argmax(np.abs(g))] for g, t in found)
    assert all("they agree" in terms[4] for _, t in found for terms in t.values())
    nudges = [(value.grad, shown["nudge"]) for value, shown in zip(gpt.values(), right["values"])]
    assert all([int(place) for place in nudge] == [np.argmax(np.abs(grad))] for grad, nudge in nudges)
    assert all("they agree" in nudge[2] for _, some in nudges for nudge in some.values())


def test_where_not_all_can_be_nudged_sums_of_several_uses_come_first(gpt) -> None:
    with patch.object(page_module, "LARGE", 10), patch.object(page_module, "_REPLAYED", 3e4):
        values = json.loads(page(gpt).split('id="data">')[1].split("</script>")[0])["values"]
    nudged = [bool(value["nudge"]) for value in values]
    assert all(nudged[i] for i, value in enumerate(values) if len(value["uses"]) > 1) and not all(nudged)


@pytest.mark.browser
def test_the_cells_that_are_worked_out_are_marked_where_not_all_are(browser, tmp_path: Path, rng) -> None:
    x = rng.standard_normal((8, 8))
    trace = ng.trace(lambda x: (ng.ops.tanh(x) * x).sum(), x)
    trace.html(tmp_path / "table.html")
    found = Opened(browser, tmp_path / "table.html")
    found.press("End")
    marked = found.tab.locator('figure[data-name="x̄"] td.known').evaluate_all("cells => cells.map(c => c.dataset.k)")
    sizes = [np.abs(g).reshape(-1) for g in (trace[0].sent[0], trace.grads["x"])]
    assert sorted(map(int, marked)) == sorted({int(i) for size in sizes for i in np.argsort(-size)[:6]})
    found.tab.click('figure[data-name="x̄"] td.known')
    assert "they agree" in found.tab.inner_text("#panel") and found.complaints == []
    found.tab.close()


@pytest.mark.browser
def test_a_page_prints_light_with_its_colours_and_without_buttons(browser, file: Path) -> None:
    found = Opened(browser, file, color_scheme="dark")
    found.press("End")
    found.tab.emulate_media(media="print")
    style = "name => getComputedStyle(document.querySelector(name))"
    assert found.tab.evaluate(f"({style})('body').backgroundColor") == "rgb(255, 255, 255)"
    assert found.tab.evaluate(f"({style})('.map td').printColorAdjust") == "exact"
    assert not found.tab.locator("header button").first.is_visible() and not found.tab.locator("nav").is_visible()
    found.tab.close()


@pytest.mark.browser
def test_a_number_of_a_tied_table_is_explained_use_by_use(opened: Opened, gpt) -> None:
    opened.press("End")
    opened.tab.click('figure[data-name="wte.grad"] td[data-k="3"]')
    panel = opened.tab.inner_text("#panel")
    head, lookup = (float(str(use.gradient[0, 3])) for use in gpt.uses("wte"))
    assert panel.startswith("wte.grad[0,3] = ") and panel.count("they agree") == 3
    assert f"from 14 linear_cross_entropy: {head}" in panel and f"+ from 0 embedding: {lookup}" in panel


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1300])
def test_no_page_is_wider_than_the_screen(browser, file: Path, scalar_file: Path, tmp_path: Path, width: int) -> None:
    for path in (file, scalar_file, *plain_pages(tmp_path)):
        found = Opened(browser, path)
        found.tab.set_viewport_size({"width": width, "height": 700})
        for _ in range(31):
            assert found.tab.evaluate("document.documentElement.scrollWidth") <= width, (path, found.tab.url)
            found.tab.keyboard.press("ArrowRight")
        found.tab.close()


@pytest.mark.browser
def test_an_expression_is_drawn_with_values_gradients_and_slopes(browser, scalar_file: Path) -> None:
    found = Opened(browser, scalar_file)
    found.press("End")
    drawn = found.tab.locator(".graph text").all_text_contents()
    assert {"h1", "value 2", "grad 1.57", "× −0.5", "× 2", "tanh"} <= set(drawn)
    assert found.complaints == [] and found.requests == [scalar_file.as_uri()]


@pytest.mark.browser
def test_the_page_can_be_read_in_the_dark_and_without_scripts(browser, file: Path) -> None:
    dark = Opened(browser, file, color_scheme="dark")
    assert dark.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 29)"
    dark.tab.click('[aria-label="light or dark"]')
    assert dark.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    plain = Opened(browser, file, java_script_enabled=False)
    assert plain.tab.locator("main table tr").count() == 16 and not plain.tab.locator("nav").count()


@pytest.mark.browser
def test_axe_finds_nothing_serious(browser, file: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = Opened(browser, file, bypass_csp=True)
    for keys in (["Home"], ["End"], ["f"], ["ArrowRight"] * 3):
        found.press(*keys)
        assert serious(axe, found) == []


def serious(axe: Any, found: Opened) -> list[Any]:
    wrong = axe.run(found.tab).response["violations"]
    return [(v["id"], v["nodes"][0]["html"]) for v in wrong if v["impact"] in ("serious", "critical")]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_of_look_and_plot_are_quiet_and_accessible(browser, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for path in plain_pages(tmp_path):
        found = Opened(browser, path, color_scheme=scheme)
        assert found.complaints == [] and len(found.requests) == 1
        assert serious(axe, Opened(browser, path, color_scheme=scheme, bypass_csp=True)) == []


def plain_pages(folder: Path) -> list[Path]:
    """Pages of look and plot."""
    model = small_gpt(n_layer=2)[0]
    ids = np.array([[4, 3, 2, 0, 4, 1]])
    result = look(ng.trace(model.loss, ids[:, :-1], ids[:, 1:]))
    layer = {"mean": 0.0, "std": 1.0, "low": -1.0, "high": 1.0, "flat": 0.5, "counts": [1, 3, 2]}
    watched = [{"step": 3, "update": {"wte": 0.01}, "activations": {"mlp": layer}}]
    pages = {
        "look.html": look_page(result, "a title", lambda i: TOKENS[i]),
        "plot.html": training_page({"one": METRICS, "two": METRICS}, {"one": watched}),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, "utf-8")
    return [folder / name for name in pages]
