"""The page: one small file that asks for nothing, in both languages; in a browser, where there is one."""

import base64
import hashlib
import html
import importlib.util
import json
import os
import re
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from cellfuse.cli import main
from cellfuse.errors import OptionError
from cellfuse.explain.page import page_of
from cellfuse.explain.questions import questions_of
from cellfuse.explain.wiring import over_time
from compare import OPTIONS
from explain.browser import PROGRAM, Browser
from explain.cases import leaky, made
from explain.test_explain_pictures import CELLS, layer_of


@pytest.fixture(scope="module")
def facts():
    torch.manual_seed(0)
    return cf.explain(torch.nn.LSTM(10, 20, 2, bidirectional=True), torch.randn(5, 3, 10))


@pytest.fixture(scope="module")
def large():
    torch.manual_seed(0)
    layer = cf.LSTM(10, 20, 12, bidirectional=True)
    start = time.process_time()
    facts = cf.explain(layer, torch.randn(1000, 3, 10))
    # 1.4 s on one core of a Zen 4, and the page 0.1 s; the machine may be slower or busy with others
    assert time.process_time() - start < 5
    return facts


@pytest.fixture(scope="module")
def packed():
    torch.manual_seed(0)
    given = pack_padded_sequence(torch.randn(30, 3, 4), [4, 30, 2], enforce_sorted=False)
    return cf.explain(cf.GRU(4, 6, bidirectional=True), given)


def test_the_page_is_small_and_made_fast(large):
    start = time.process_time()
    page = page_of(large, "en")
    assert time.process_time() - start < 1
    assert len(page.encode()) < 300_000


def test_nothing_can_be_asked_for(facts):
    page = page_of(facts, "en")
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]+)"', page)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    script = re.findall(r"<script>(.*?)</script>", page, re.S)[-1]
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r" (?:src|style|on\w+)=", page)


def test_names_inside_the_page_are_whole(facts, packed):
    for page in (page_of(facts, "en"), page_of(packed, "zh")):
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        wanted = set(re.findall(r'(?:aria-controls|for)="([^"]+)"', page)) | set(
            re.findall(r"url\(#([^)]+)\)", page)
        )
        wanted |= set(re.findall(r'href="#([^"]+)"', page))
        assert wanted <= set(ids)
        lines = len(re.findall(r'<pre class="code".*?</pre>', page, re.S)[0].split("<span"))
        assert lines > 5
        json.loads(re.search(r'id="facts">(.*?)</script>', page, re.S)[1])


def test_both_languages_are_in_the_file(facts):
    page = page_of(facts, "zh")
    assert '<html lang="zh-Hans">' in page
    english, chinese = page.count('<span lang="en">'), page.count('<span lang="zh-Hans">')
    assert english == chinese > 60
    for text in re.findall(r'<span lang="zh-Hans">(.*?)</span>', page):
        assert re.search("[\u4e00-\u9fff（]", text) or "English" in text or "True" in text, text
    for text in re.findall(r'data-zh="(.*?)"', page):
        assert text


def test_nothing_moves_for_who_wants_no_motion():
    style = (files("cellfuse.explain") / "page.css").read_text(encoding="utf-8")
    place = style.index("@media(prefers-reduced-motion:no-preference){")
    assert not re.search("animation|transition", style[:place])
    assert 'matchMedia("(prefers-reduced-motion:reduce)").matches) return frame(1)' in (
        (files("cellfuse.explain") / "page.js").read_text(encoding="utf-8")
    )


def test_a_title_cannot_break_the_page(facts):
    page = page_of(replace(facts, title="</script><img src=x>"), "en")
    assert "<img" not in page.replace("<image", "")


# A question may light these rows; else it names each box, so that not half of the picture is lit.
WHOLE_ROWS = {"out/*", "end/*", "start/*", "join/#/*", "c/#/#/*", "axis/#/*", "rows/#/*"}


def test_every_question_is_answered_and_points_at_something(facts, packed):
    for each in (facts, packed, cf.explain(cf.GRU(2, 3)), cf.explain(torch.nn.GRUCell(2, 3))):
        page = page_of(each, "en")
        keys = {html.unescape(key) for key in re.findall(r'data-k="([^"]+)"', page)}
        asked = questions_of(each)
        assert len(asked) >= (10 if each.kind == "layer" else 2)
        for question in asked:
            assert question.claims or question.note.en
            assert all(claim.holds for claim in question.claims)
            rows = [p for p in question.points if p.endswith("*")]
            kinds = {re.sub(r"\d+|(input|output|bias_[ih]h_l\d+)(?=/)", "#", p) for p in rows}
            assert kinds <= WHOLE_ROWS, question.key
            found = [k for k in keys for p in question.points if p not in rows and k == p]
            lit = found + [k for k in keys for p in rows if k.startswith(p[:-1])]
            assert lit or question.key in ("biases", "initial"), question.key
            assert len(found) <= 10


def test_every_cell_has_a_page():
    for cell in CELLS:
        for form in ("batched", "packed", "unbatched"):
            layer = layer_of(cell, 2, 2, form=form)
            assert len(page_of(cf.explain(layer, made(layer, form)), "en").encode()) < 300_000
        step = cell.one_step(2, 6, **OPTIONS.get(cell.name, {}))
        assert "<svg" in page_of(cf.explain(step), "zh")


def test_files_by_their_ending(facts, tmp_path):
    assert facts.save(tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert facts.save(tmp_path / "a.txt", "zh").read_text(encoding="utf-8").rstrip("\n") == facts.text("zh")
    assert json.loads(facts.save(tmp_path / "a.json").read_text(encoding="utf-8"))["cell"] == "lstm"
    with pytest.raises(OptionError, match=r"ends with one of \.html, \.txt, \.json"):
        facts.save(tmp_path / "a.pdf")
    with pytest.raises(OptionError, match="lang='fr'"):
        facts.save(tmp_path / "a.html", "fr")


def test_the_command_writes_and_opens_the_page(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    file = tmp_path / "a.html"
    assert main(["explain", "gru", "--html", str(file), "--open", "--lang", "zh"]) == 0
    assert opened == [file.resolve().as_uri()]
    assert '<html lang="zh-Hans">' in file.read_text(encoding="utf-8")
    assert main(["explain", "gru", "--open"]) == 2
    assert "--html FILE" in capsys.readouterr().err


# In a browser

TEXTS = """(() => {
  const wide = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const high = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].filter((text) => text.getClientRects().length);
    const places = texts.map((text) => text.getBoundingClientRect());
    texts.forEach((text, i) => {
      for (let j = i + 1; j < texts.length; j++)
        if (wide(places[i], places[j]) > 1 && high(places[i], places[j]) > 3)
          found.push(text.textContent + " over " + texts[j].textContent);
      const box = text.parentNode.querySelector(":scope>rect");
      const edge = box && box.getBoundingClientRect();
      const beyond = (outer) => places[i].left < outer.left - 1 || places[i].right > outer.right + 1;
      if (edge && beyond(edge)) found.push("outside: " + text.textContent);
      if (beyond(frame)) found.push("cut: " + text.textContent);
      if (getComputedStyle(text).stroke !== "none") found.push("stroked: " + text.textContent);
    });
  }
  return found;
})()"""

CONTRAST = """(() => {
  const parts = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
  const light = (c) => parts(c).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let least = 99;
  for (const text of document.querySelectorAll("svg text, button, p, h1, h2, li, td, th, summary, a")) {
    if (!text.getClientRects().length) continue;
    const style = getComputedStyle(text), inside = text.closest("svg");
    const box = inside && text.parentNode.querySelector(":scope>rect");
    let ground = box ? getComputedStyle(box).fill : style.backgroundColor;
    for (let up = text; /rgba\\(0, 0, 0, 0\\)|none/.test(ground) && up; up = up.parentElement)
      ground = getComputedStyle(up).backgroundColor;
    if (/rgba\\(0, 0, 0, 0\\)/.test(ground)) ground = getComputedStyle(document.body).backgroundColor;
    const a = light(text.closest("svg") ? style.fill : style.color), b = light(ground);
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not PROGRAM:
        pytest.skip("no chromium: apt-get install chromium fonts-noto-cjk")
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pages(facts, large, packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("with blanks 与中文")
    everything = {"facts": facts, "large": large, "packed": packed}
    everything |= {"own": cf.explain(leaky.layer(3, 5)), "step": cf.explain(torch.nn.LSTMCell(3, 5))}
    return {name: each.save(folder / f"{name}.html", "en").as_uri() for name, each in everything.items()}


NAMES = ("facts", "large", "packed", "own", "step")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_runs_without_errors_and_requests(browser, pages, name):
    for dark in (False, True):
        browser.open(pages[name], dark=dark)
        browser.run("document.getElementById('lang').click(), document.getElementById('theme').click()")
        assert browser.errors == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def test_a_request_is_refused(browser, pages):
    browser.open(pages["facts"])
    assert browser.run("fetch('https://example.com').then(() => 'sent', () => 'refused')") == "refused"
    code = """(() => {
      const script = document.createElement("script");
      script.textContent = "window.bad = 1";
      document.body.append(script);
      return window.bad;
    })()"""
    assert browser.run(code) is None


# A zoom of 200 % halves the width that the page sees and doubles the pixels of each unit.
@pytest.mark.parametrize(("width", "zoom"), [(360, 1), (800, 1), (1400, 1), (800, 2), (1400, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_over_another(browser, pages, name, width, zoom):
    width //= zoom
    browser.open(pages[name], width=width, zoom=zoom)
    for _ in range(2):
        assert browser.run(TEXTS) == []
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run("document.getElementById('lang').click()")
    if name == "large":
        for t in (0, 3, 500, 996, 999):
            browser.run(f"at({t})")
            assert browser.run(TEXTS) == []


@pytest.mark.parametrize("name", ["facts", "packed"])
def test_contrast_on_the_screen(browser, pages, name):
    for dark in (False, True):
        browser.open(pages[name], dark=dark)
        assert browser.run(CONTRAST) >= 4.5
        browser.run("asked[0].click()")
        assert browser.run(CONTRAST) >= 4.5


def test_questions_open_light_and_close(browser, pages):
    browser.open(pages["facts"])
    for place in range(browser.run("asked.length")):
        browser.run(f"asked[{place}].focus()")
        browser.press("Enter")
        assert browser.run("document.querySelectorAll('.answer:not([hidden])').length") == 1
        assert browser.run("document.querySelectorAll('svg .hi').length") > 0
        assert "True" in browser.run("document.querySelector('.answer:not([hidden])').textContent")
        assert browser.run("document.activeElement === asked[" + str(place) + "]")
    browser.press("Escape")
    assert browser.run("document.querySelectorAll('.answer:not([hidden]), svg .hi').length") == 0
    browser.run("asked[1].click()")
    lit = browser.run("all('svg .hi').map((box) => box.dataset.k).sort()")
    assert lit == ["c/1/1/0", "end/h/3", "out/0/1"]
    browser.open(pages["facts"] + "#q-order")
    assert browser.run("document.querySelector('.answer:not([hidden])').id") == "a-order"


def test_the_map_by_keyboard(browser, pages):
    browser.open(pages["facts"])
    assert browser.run("onMap.filter((box) => box.tabIndex === 0).length") == 1
    browser.run("chosen.focus()")
    assert browser.run("document.activeElement.dataset.k") == "c/0/0/0"
    for key, wanted in (
        ("ArrowRight", "c/0/0/1"),
        ("ArrowUp", "join/0/1/0"),
        ("Home", "join/0/0/0"),
        ("End", "join/0/4/1"),
        ("ArrowDown", "c/0/1/4"),
    ):
        browser.press(key)
        assert browser.run("document.activeElement.dataset.k") == wanted
    seen = set(
        browser.run("""(() => {
      const seen = new Set([chosen.dataset.k]), queue = [chosen];
      while (queue.length) for (const way of Object.values(WAYS)) {
        const next = nearest(queue[0], ...way);
        if (next && !seen.has(next.dataset.k)) { seen.add(next.dataset.k); queue.push(next); }
        if (way === WAYS.ArrowDown) queue.shift();
      }
      return [...seen];
    })()""")
    )
    every = browser.run(
        "onMap.filter((box) => !box.classList.contains('kframe')).map((box) => box.dataset.k)"
    )
    assert seen == set(every)
    browser.run("choose(onMap.find((box) => box.dataset.k === 'out/3'), true)")
    browser.press("Enter")
    assert browser.run("slider.value") == "3"
    assert browser.run("info.textContent").startswith("output at t=3: [3, 40]")
    assert browser.run("info.getAttribute('role')") == "status"
    browser.press("?")
    assert browser.run("document.getElementById('keys').open")


def test_the_animation_follows_what_waits_for_what(browser, pages, facts):
    browser.open(pages["facts"])
    ticks = browser.run("Object.fromEntries(cells().map((box) => [box.dataset.k, tick(box.dataset.k)]))")
    waits = {}
    for a, b in over_time(facts.wiring, 5):
        if a.startswith("c/") and b.startswith("c/"):
            waits.setdefault(b, []).append(a)

    def depth(key):
        return max((depth(each) + 1 for each in waits.get(key, ())), default=0)

    assert ticks == {key: depth(key) for key in ticks}
    assert len(ticks) == 20
    browser.run("frame(1)")
    assert browser.run("all('.now').map((box) => box.dataset.k).sort()") == ["c/0/0/0", "c/0/1/4"]
    assert browser.run("info.textContent").startswith("step 1 of 10")
    browser.run("document.getElementById('play').click()")
    assert browser.run("timer !== 0")
    browser.press("Escape")
    assert browser.run("timer") == 0
    browser.open(pages["facts"], still=True)
    browser.run("document.getElementById('play').click()")
    assert browser.run("timer") == 0
    assert browser.run("document.getAnimations().length") == 0


def test_the_animation_of_one_direction(browser, tmp_path):
    page = cf.explain(cf.GRU(2, 3, 3)).save(tmp_path / "a.html")
    browser.open(page.as_uri())
    assert browser.run("tick('c/2/0/3')") == 5
    for _ in range(3):
        browser.run("frame(1)")
    assert browser.run("all('.now').map((box) => box.dataset.k).sort()") == ["c/0/0/2", "c/1/0/1", "c/2/0/0"]


def test_any_time_step_of_a_long_sequence_is_shown(browser, pages):
    browser.open(pages["large"])
    for t in (0, 1, 2, 3, 4, 500, 777, 995, 997, 999):
        browser.run(f"at({t})")
        keys = browser.run("onMap.map((box) => box.dataset.k)")
        assert len(set(keys)) == len(keys)
        shown = sorted({int(key.split("/")[1]) for key in keys if re.fullmatch(r"out/\d+", key)})
        counts = browser.run("gaps.map((box) => box.querySelectorAll('text')[1].textContent)")
        hidden = sum(int(re.match(r"\d+", count)[0]) for count in counts)
        assert hidden == 2 * (1000 - len(shown))
        is_hidden = t in (1, 998)
        assert (t in shown) != is_hidden
        code = "onMap.filter((b) => /^c.0.0.[0-9]+$/.test(b.dataset.k))"
        labels = browser.run(code + ".map((b) => b.querySelector('text').textContent + ' ' + b.dataset.k)")
        assert all(re.fullmatch(r"t=(\d+) c/0/0/\1", text) for text in labels)


def test_node_equation_and_source_light_together(browser, pages):
    browser.open(pages["facts"])
    assert browser.run("all('svg#none, [data-e]').length") > 20
    browser.run("all('svg [data-e=\"4\"]').find((box) => box.dataset.en === 'f ⊙ c').focus()")
    assert browser.run("all('li.lit code')[0].textContent") == "c′ = f ⊙ c + i ⊙ g"
    assert browser.run("document.querySelector('mark').textContent") == "f ⊙ c"
    assert browser.run("document.querySelector('pre .lit').textContent.trim()") == "c = f * c + i * g"
    browser.run("document.activeElement.blur()")
    assert browser.run("all('.lit, mark, svg .hi').length") == 0


def test_values_beside_the_equations(browser, pages, facts):
    browser.open(pages["facts"])
    browser.run("at(3), document.getElementById('unit').value = 2, values()")
    shown = browser.run("all('ol.equations output').map((each) => each.textContent)")
    series = {each.name: each.units[2][3] for each in facts.trace[0].series}
    for text in shown:
        name, value = re.fullmatch(r"(.+)\[2\] ≈ (-?[\d.]+)", text).groups()
        assert float(value) == pytest.approx(series[name], abs=0.011)
    assert len(shown) == 6
    assert browser.run(
        "all('image').every((image) => image.getAttribute('href').startsWith('data:image/png'))"
    )


def test_language_and_theme_switch(browser, pages):
    browser.open(pages["facts"])
    label = "chosen.getAttribute('aria-label')"
    assert browser.run(label).startswith("layer 0, forward")
    browser.press("Tab")
    browser.press("Enter")
    assert browser.run("document.documentElement.lang") == "zh-Hans"
    assert browser.run(label).startswith("第 0 层，正向")
    assert "隐状态" in browser.run("document.body.innerText")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = browser.run(ground)
    browser.run("document.getElementById('theme').click()")
    assert browser.run(ground) != before


def notebook(shown, **options):
    """A notebook with one output as nbconvert writes it, without its own scripts from the network."""
    pytest.importorskip("nbconvert", reason="pip install nbconvert")
    from nbconvert import HTMLExporter
    from nbformat import v4

    data = {"text/plain": str(shown), "text/html": shown._repr_html_()}
    cell = v4.new_code_cell("facts", outputs=[v4.new_output("display_data", data)])
    urls = dict.fromkeys(("require_js_url", "jquery_url", "mathjax_url", "mermaid_js_url"), "")
    return HTMLExporter(**urls, **options).from_notebook_node(v4.new_notebook(cells=[cell]))[0]


@pytest.mark.filterwarnings("ignore:IPython3 lexer unavailable")
def test_a_notebook_made_html_has_the_frame_and_it_works(browser, facts, tmp_path):
    file = tmp_path / "notebook.html"
    file.write_text(notebook(facts), encoding="utf-8")
    browser.open(file.as_uri())
    assert browser.run("document.querySelector('iframe').sandbox.value") == "allow-scripts"
    assert browser.run_in_frame("document.querySelector('#map .n[tabindex=\"0\"]').dataset.k") == "c/0/0/0"
    browser.run_in_frame("document.querySelector('.question').click()")
    assert browser.run_in_frame("document.querySelectorAll('.answer:not([hidden])').length") == 1
    assert browser.run_in_frame("document.querySelectorAll('svg .hi').length") > 0
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:"))] == []


def test_a_notebook_without_frames_shows_the_picture(browser, facts, tmp_path):
    own = re.sub("<iframe.*?</iframe>", "", facts._repr_html_(), flags=re.S)
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><body>{own}</body>", encoding="utf-8")
    browser.open(file.as_uri())
    browser.run("document.querySelector('summary').click()")
    code = "document.querySelector('img').decode().then(() => document.querySelector('img').naturalWidth)"
    assert browser.run(code) > 500
    assert "<details>" in cf.explain(torch.nn.LSTMCell(2, 3))._repr_html_()
    both = cf.explain(torch.nn.ModuleDict({"a": cf.GRU(2, 3), "b<": cf.RNN(2, 3)}))._repr_html_()
    assert both.count("<iframe") == 2
    assert "<h3>b&lt;</h3>" in both


def test_opening_is_fast(browser, pages):
    browser.open(pages["large"])
    assert browser.run("performance.getEntriesByType('navigation')[0].domComplete") < 2000


def axe():
    """The path of axe.min.js, from the variable or from the package that holds it; "" if there is none."""
    found = importlib.util.find_spec("axe_playwright_python")
    inside = [Path(place) / "axe.min.js" for place in (found.submodule_search_locations if found else ())]
    return os.environ.get("CELLFUSE_AXE", "") or next((str(file) for file in inside if file.exists()), "")


AXE = axe()


@pytest.mark.skipif(not AXE, reason="no axe: pip install --no-deps axe-playwright-python; or CELLFUSE_AXE")
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing(browser, pages, name):
    for dark in (False, True):
        browser.open(pages[name], dark=dark, bypass=True)
        browser.run(Path(AXE).read_text(encoding="utf-8") + "\n;0")
        for _ in range(2):
            browser.run("asked.length && asked[0].click()")
            rules = "['wcag2a','wcag2aa','wcag21aa','wcag22aa','best-practice']"
            code = f"axe.run({{runOnly: {rules}}}).then((found) => found.violations.map((v) => v.id))"
            assert browser.run(code) == []
            browser.run("document.getElementById('lang').click()")
