"""Make docs/see.jpg, the picture in README.md: a step backward through a small GPT, as `trace.html` shows it.

Needs playwright, and chromium: python docs/see_picture.py
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

import nanograd_llm as ng

model = ng.GPT(ng.GPTConfig(vocab_size=5, context_length=5, n_layer=1, n_head=2, n_embd=8), seed=0)
for parameter in model.parameters():
    parameter.data += 0.1 * np.random.default_rng(parameter.size).standard_normal(parameter.shape, dtype=np.float32)
trace = ng.trace(model.loss, np.array([[4, 0, 3, 2, 4]]), np.array([[0, 3, 2, 4, 1]]))

with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
    page = Path(folder) / "step.html"
    trace.html(page, ["the", "cat", "sat", "on", "the"])
    browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    tab = browser.new_page(viewport={"width": 960, "height": 640})
    tab.goto(page.as_uri())
    for key in ("End", *["ArrowLeft"] * 3):  # the backward of the first norm
        tab.keyboard.press(key)
    tab.click('figure[data-name="x̄"] td[data-k="10"]')
    tab.evaluate("scrollTo(0, 0)")  # the click may have scrolled
    tab.screenshot(path=Path(__file__).parent / "see.jpg", type="jpeg", quality=55)
    browser.close()
