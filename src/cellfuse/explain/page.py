"""One explanation as one HTML file: pictures, time, equations, questions. It can ask no network for anything.

Words come from `words`, behaviour from page.js, looks from page.css; facts from the Explanation alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from cellfuse.explain.facts import Claim, Explanation
from cellfuse.explain.gates_picture import draw_gates, quantised
from cellfuse.explain.layer_map import draw_stack
from cellfuse.explain.palette import COLOURS, heat
from cellfuse.explain.picture import PICTURES, why_not
from cellfuse.explain.questions import Question, questions_of
from cellfuse.explain.svg import STYLE, Drawing, inline, page_colours
from cellfuse.explain.text import memory_words, result_of_claim
from cellfuse.explain.wiring import columns
from cellfuse.explain.words import LANGUAGES, Words, say


def page_of(facts: Explanation, lang: str) -> str:
    """The whole file; it opens in `lang` and holds both languages."""
    style, script = _style(), _file("page.js")
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    code = {"en": "en", "zh": "zh-Hans"}[lang]
    title = html.escape(facts.title)
    main = "\n".join((_questions(facts), *_map(facts), *_cell(facts), *_rest(facts)))
    return f"""<!doctype html>
<html lang="{code}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy, quote=False)}">
<title>{title}</title><style>{style}</style></head><body>
<header><div class="bar"><button id="lang" type="button">{_own("中文", "English")}</button>
<button id="theme" type="button">{_both(say("page theme"))}</button></div>
<h1 class="mono">{title}</h1><p class="lead">{_both(_lead(facts))}</p></header>
<main>{main}</main>
<script type="application/json" id="facts">{_data(facts)}</script>
<script>{script}</script></body></html>
"""


def in_notebook(facts: Explanation, lang: str) -> str:
    """The page inside a frame of its own, for a notebook's cell; a picture where frames are taken out."""
    page = html.escape(page_of(facts, lang))
    title = html.escape(facts.title)
    picture = facts.picture("cell" if why_not(facts, "stack") else "stack", lang)
    still, alternative = (
        words[LANGUAGES.index(lang)] for words in (say("page still"), picture.drawing.title)
    )
    data = base64.b64encode(picture.svg.encode()).decode()
    return (
        f'<iframe title="{title}" sandbox="allow-scripts" width="100%" height="900" srcdoc="{page}"></iframe>'
        f"<details><summary>{html.escape(still)}</summary>"
        f'<img alt="{html.escape(alternative)}" src="data:image/svg+xml;base64,{data}"></details>'
    )


@cache
def _file(name: str) -> str:
    return (files("cellfuse.explain") / name).read_text(encoding="utf-8")


def _style() -> str:
    light, dark = ("".join(f"--{name}:{pair[place]};" for name, pair in COLOURS.items()) for place in (0, 1))
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}{STYLE}{page_colours()}{_file('page.css')}"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _own(en: str, zh: str) -> str:
    return f'<span lang="en">{html.escape(en)}</span><span lang="zh-Hans">{html.escape(zh)}</span>'


def _both(words: Words) -> str:
    """A text in both languages; once if they agree."""
    return html.escape(words.en) if words.en == words.zh else _own(words.en, words.zh)


def _lead(facts: Explanation) -> Words:
    shapes = [f"{f.name} {list(f.shape)}" for f in facts.tensors if f.role in ("input", "output", "state")]
    what = say("yours") if facts.was_given_input else say("random")
    return say("page lead", shapes=", ".join(shapes), what=what)


def _head(key: str) -> str:
    return f"<h2>{_both(say(key))}</h2>"


def _scroll(drawing: Drawing, prefix: str, identity: str = "", kind: str = "") -> str:
    """A picture that scrolls sideways where the screen is narrow."""
    own = f' id="{identity}"' if identity else ""
    label = html.escape(f"{drawing.title.en} / {drawing.title.zh}")
    return (
        f'<div class="scroll {kind}"{own} role="region" tabindex="0" aria-label="{label}">'
        f"{inline(drawing, prefix)}</div>"
    )


def _map(facts: Explanation) -> Iterable[str]:
    """All layers over time, and the controls of time."""
    if why_not(facts, "stack"):
        return
    yield f'<section>{_head("page map")}<div class="bar"><label for="t">{_both(say("page t"))}</label>'
    yield f'<input id="t" type="range" min="0" max="{facts.sizes["T"] - 1}" value="0">'
    yield '<output id="tv" for="t" class="mono">0</output>'
    for key in ("back", "play", "next"):
        pressed = ' aria-pressed="false"' if key == "play" else ""
        yield f'<button id="{key}" type="button"{pressed}>{_both(say(f"page {key}"))}</button>'
    yield "</div>"
    yield _scroll(draw_stack(facts, facts.sizes["T"] // 2), "m", "map", "map")
    yield '<p id="info" role="status"></p>'
    yield f'<details id="keys"><summary>{_both(say("page keys"))}</summary>'
    yield f"<p>{_both(say('page keys text'))}</p></details></section>"


def _questions(facts: Explanation) -> str:
    """A button for each question; the answers lie between the buttons and the map."""
    asked = questions_of(facts)
    buttons, answers = "".join(map(_button, asked)), "".join(_answer(question) for question in asked)
    return f'<section>{_head("page questions")}<div class="bar">{buttons}</div>{answers}</section>'


def _button(question: Question) -> str:
    points = html.escape(json.dumps(question.points))
    return (
        f'<button type="button" class="question" id="q-{question.key}" aria-expanded="false" '
        f'aria-controls="a-{question.key}" data-points="{points}">{_both(question.text)}</button>'
    )


def _answer(question: Question) -> str:
    note = f"<p>{_both(question.note)}</p>" if question.note.en else ""
    inside = f"{note}{''.join(map(_claim, question.claims))}{_where(question)}"
    return f'<div class="answer" id="a-{question.key}" hidden>{inside}</div>'


def _where(question: Question) -> str:
    """Links to the pictures below the map in which something is lit."""
    kinds = {"axis": "shapes", "rows": "shapes", "step": "ragged", "n": "cell", "s": "cell"}
    found = dict.fromkeys(kinds[k] for k in (p.split("/")[0] for p in question.points) if k in kinds)
    links = "; ".join(f'<a href="#{name}">{_both(say(f"page {name}"))}</a>' for name in found)
    return f"<p>{_both(say('page lit'))} {links}</p>" if links else ""


def _claim(claim: Claim) -> str:
    result = _both(Words(*(result_of_claim(claim, lang) for lang in ("en", "zh"))))
    words = _both(Words(claim.en, claim.zh))
    return (
        f'<p>{words}</p><code>&gt;&gt;&gt; {html.escape(claim.code)}</code><p class="true mono">{result}</p>'
    )


def _cell(facts: Explanation) -> Iterable[str]:
    """The step: picture, equations with their values, source lines."""
    yield f"<section>{_head('page cell')}"
    yield _scroll(PICTURES["cell"](facts), "c", "cell")
    yield f'<div class="two"><div><h3>{_both(say("page equations"))}</h3>'
    yield f'{_chooser(facts)}<ol class="equations">'
    for place, equation in enumerate(facts.equations):
        text = html.escape(f"{equation.left} = {equation.right}")
        said = _both(Words(equation.en, equation.zh))
        name = html.escape(equation.left)
        yield (
            f'<li data-e="{place}"><code>{text}</code><span class="said">{said}</span>'
            f'<output class="mono" data-name="{name}"></output></li>'
        )
    yield f"</ol></div><div>{_code(facts)}</div></div></section>"


def _chooser(facts: Explanation) -> str:
    """Which lane and unit the values beside the equations are of."""
    if not facts.trace:
        return ""
    lanes = "".join(
        f'<option value="{t.layer}/{t.direction}">{t.layer} {"→←"[t.direction]}</option>' for t in facts.trace
    )
    units = max(len(series.units) for series in facts.trace[0].series) - 1
    return (
        f'<p class="bar"><label for="lane">{_both(say("page lane"))}</label>'
        f'<select id="lane">{lanes}</select>'
        f'<label for="unit">{_both(say("page unit"))}</label>'
        f'<input id="unit" type="number" min="0" max="{units}" value="0"></p>'
    )


def _code(facts: Explanation) -> str:
    if not facts.code:
        return ""
    at = {equation.line: place for place, equation in enumerate(facts.equations) if equation.line}
    lines = []
    for number, line in enumerate(facts.code, 1):
        own = f' data-e="{at[number]}"' if number in at else ""
        lines.append(f"<span{own}>{html.escape(line) or ' '}</span>")
    label = f'aria-label="{html.escape(facts.cell)}"'
    code = f'<pre class="code" tabindex="0" role="region" {label}>{"".join(lines)}</pre>'
    return f"<h3>{_both(say('page code'))}</h3>{code}"


def _rest(facts: Explanation) -> Iterable[str]:
    yield f"<section>{_head('page shapes')}{_scroll(PICTURES['shapes'](facts), 's', 'shapes')}</section>"
    if not why_not(facts, "ragged"):
        yield f"<section>{_head('page ragged')}{_scroll(PICTURES['ragged'](facts), 'r', 'ragged')}</section>"
    if not why_not(facts, "gates"):
        drawing = draw_gates(facts, has_pixels=False)
        yield f"<section>{_head('page gates')}{_scroll(drawing, 'g', 'gates')}</section>"
    yield f"<section>{_head('page counts')}<div class='scroll' tabindex='0' role='region' "
    yield f'aria-label="{html.escape(" / ".join(say("page counts")))}"><table><tbody>'
    for count in facts.counts:
        kind = ' class="part"' if count.level else ""
        name = _both(Words(count.en, count.zh))
        formula = html.escape(count.formula)
        yield (
            f'<tr{kind}><th scope="row">{name}</th><td class="number">{count.value:,}</td>'
            f'<td class="mono">{formula}</td></tr>'
        )
    yield f"</tbody></table></div><p>{_both(memory_words(facts))}</p></section>"


def _data(facts: Explanation) -> str:
    """What the script needs, as JSON."""
    T, heats = facts.sizes["T"], {}
    for trace in facts.trace:
        for series in trace.series:
            rows, high = quantised(series)
            heats[f"heat/{trace.layer}/{trace.direction}/{series.name}"] = {
                "kind": series.kind,
                "high": round(high, 4),
                "units": len(rows),
                "data": base64.b64encode(b"".join(rows)).decode(),
            }
    first = facts.trace[0] if facts.trace else None
    made = {
        "T": T,
        "L": facts.sizes["L"],
        "D": facts.sizes["D"],
        "around": min(max(T // 2, 3), T - 4) if len(columns(T)) < T else None,
        "starts": list(first.starts) if first else [],
        "length": first.length if first else 0,
        "lanes": [[trace.layer, trace.direction] for trace in facts.trace],
        "heats": heats,
        "colours": {k: base64.b64encode(bytes(sum(heat(k), ()))).decode() for k in ("gate", "value")},
    }
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
