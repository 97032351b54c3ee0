"""The documents: their Python runs, their commands parse, their links and pictures exist."""

import argparse
import contextlib
import importlib.util
import io
import linecache
import re
import shlex
import sys
from pathlib import Path

import pytest

from cellfuse.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("docs/**/*.md")})
BOTH = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
GUIDE = {lang: sorted((ROOT / "docs" / lang).glob("*.md")) for lang in ("en", "zh")}
PAGES = [page for pages in GUIDE.values() for page in pages]
GENERATED = ("api", "catalogue")  # by scripts/write_guide.py
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
EXPECTED = re.compile(r"^(?P<code>\S.*?)  # -> (?P<value>.*)$", re.M)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def run_document(text):
    """Run the Python blocks of a document one after the other; compare each line's `# -> value`.

    A `text` block straight after a Python block is what that block prints.
    """
    names, values, printed, end = {"__name__": "document"}, 0, None, 0
    for fence in FENCE.finditer(text):
        language, block = fence.groups()
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                values += run_block(block, names)
            printed = out.getvalue()
            sys.stdout.write(printed)
        elif language == "text" and printed is not None and not text[end : fence.start()].strip():
            assert printed == block, f"printed:\n{printed}the document says:\n{block}"
            values += 1
        else:
            printed = None
        end = fence.end()
    return values


def run_block(block, names):
    """Run one block; the number of values that were compared."""
    place, values = 0, 0
    # Errors and `inspect` show the block's own lines.
    linecache.cache["<document>"] = (len(block), None, block.splitlines(keepends=True), "<document>")

    def code(text, mode="exec"):
        return compile("\n" * block.count("\n", 0, place) + text, "<document>", mode)

    for found in EXPECTED.finditer(block):
        exec(code(block[place : found.start()]), names)
        place = found.start()
        got = repr(eval(code(found["code"], "eval"), names))
        assert got == found["value"], f"{found['code']} is {got}, the document says {found['value']}"
        place, values = found.end(), values + 1
    exec(code(block[place:]), names)
    return values


@pytest.mark.parametrize("document", BOTH, ids=lambda path: path.name)
def test_code_runs_and_gives_what_the_document_says(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        values = run_document(document.read_text(encoding="utf-8"))
    assert values >= 5
    assert "1: torch.nn.GRU -> cellfuse.GRU" in printed.getvalue()


def test_a_wrong_value_in_a_document_is_noticed():
    with pytest.raises(AssertionError, match="1 \\+ 1 is 2, the document says 3"):
        run_document("```python\n1 + 1  # -> 3\n```\n")
    with pytest.raises(NameError):
        run_document("```python\nundefined()\n```\n")
    with pytest.raises(AssertionError, match="printed"):
        run_document("```python\nprint(2)\n```\n\n```text\n3\n```\n")


def commands():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
        lines += [block.splitlines()[0].removeprefix("$ ") for block in blocks(text, "console")]
        lines += re.findall(r"`(cellfuse [^`]+)`", text)
        for line in lines:
            words = shlex.split(line, comments=True)
            if len(words) > 2 and words[0] == "cellfuse" and words[1] in COMMANDS:
                yield pytest.param(words, id=f"{document.name}: {line}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_parse(words):
    module = importlib.import_module(COMMANDS[words[1]][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.parse_args(words[2:])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", re.sub(FENCE, "", text)):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"
    for name in re.findall(r"`((?:src|tests|scripts|docs|benchmarks)/[\w./-]+)`", text):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{document.name} names {name}"


def without_comments(block):
    """The lines of a block, without what may be said in another language."""
    lines = (re.sub(r"(\s+#(?! ->).*|\"\"\".*\"\"\"|source=\"[^\"]*\"| --lang zh)", "", x) for x in block)
    return [line for line in lines if line.strip()]


def assert_same_code(english, chinese, languages=("python", "bash")):
    for language in languages:
        ours, theirs = (blocks(text, language) for text in (english, chinese))
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert without_comments(a.splitlines()) == without_comments(b.splitlines())


def test_both_readmes_show_the_same_code():
    english, chinese = (path.read_text(encoding="utf-8") for path in BOTH)
    assert blocks(english, "python")
    assert blocks(english, "bash")
    assert_same_code(english, chinese)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_page_of_the_guide_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = page.read_text(encoding="utf-8")
    values = run_document(text)
    assert values >= bool(blocks(text, "python"))


def excerpts():
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "console"):
            command, _, shown = block.partition("\n")
            yield pytest.param(command, shown, id=f"{page.parent.name}/{page.stem}: {command}")


def missing_from(printed, shown):
    """The parts of an excerpt, cut at lines that hold `...` only, that are not there in this order."""
    missing, place = [], 0
    for part in re.split(r"^\.\.\.\n", shown, flags=re.M):
        found = printed.find(part, place)
        if found < 0 or (found and printed[found - 1] != "\n"):
            missing.append(part)
        else:
            place = found + len(part)
    return missing


@pytest.mark.parametrize(("command", "shown"), list(excerpts()))
def test_what_a_page_shows_of_a_command_is_what_it_prints(command, shown, monkeypatch):
    assert command.startswith("$ cellfuse explain ")
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as out:
        assert main(shlex.split(command)[2:]) == 0
        out.flush()
        printed = out.buffer.getvalue().decode()
    assert shown.strip()
    assert missing_from(printed, shown) == []


def test_an_excerpt_that_is_not_printed_is_noticed():
    assert not missing_from("a\nb\nc\n", "a\n...\nc\n")
    assert missing_from("a\nb\nc\n", "c\n...\na\n") == ["a\n"]
    assert missing_from("ab\nc\n", "b\nc\n") == ["b\nc\n"]


def test_both_languages_have_the_same_pages():
    english, chinese = ([page.name for page in pages] for pages in GUIDE.values())
    assert english == chinese
    assert len(english) >= 18


def test_the_sites_list_every_page_in_the_same_order():
    listed = [
        re.findall(r"^ +- ([\w-]+\.md)$", (ROOT / name).read_text(encoding="utf-8"), re.M)
        for name in ("mkdocs.yml", "mkdocs.zh.yml")
    ]
    assert listed[0] == listed[1]
    assert sorted(listed[0]) == [page.name for page in GUIDE["en"]]


def test_no_line_of_chinese_is_broken():
    """Markdown shows a line break as a blank, which Chinese does not have."""
    for page in GUIDE["zh"]:
        text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
        broken = re.search(r"[\u3000-\u9fff\uff00-\uffef]\n(?![*#|!`\n]|\d+\. |    ).+", text)
        assert not broken, f"{page.name}: {broken and broken[0]}"


@pytest.mark.parametrize("name", [page.name for page in GUIDE["en"]])
def test_both_languages_show_the_same_code(name):
    texts = [(ROOT / "docs" / lang / name).read_text(encoding="utf-8") for lang in GUIDE]
    assert_same_code(*texts)
    commands = [[without_comments([b.splitlines()[0]]) for b in blocks(text, "console")] for text in texts]
    assert commands[0] == commands[1]
    headings, tables, pictures = (
        [len(re.findall(pattern, re.sub(FENCE, "", text), re.M)) for text in texts]
        for pattern in (r"^#+ ", r"^\|", r"^!\[")
    )
    assert headings[0] == headings[1]
    assert tables[0] == tables[1]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("page", GUIDE["zh"], ids=lambda path: path.stem)
def test_chinese_pages_are_chinese(page):
    """Every paragraph holds Chinese; none was left in English by mistake."""
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    for paragraph in re.split(r"\n\n+", text):
        letters = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", paragraph)
        if len(re.findall(r"[A-Za-z]{2,}", letters)) > 12 and page.stem not in GENERATED:
            assert re.search(r"[\u4e00-\u9fff]", letters), paragraph


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_from_the_code():
    for name, draw in script("draw_readme").PICTURES.items():
        for lang, suffix in (("en", ""), ("zh", ".zh-CN")):
            file = ROOT / f"docs/{name}{suffix}.svg"
            assert file.read_text(encoding="utf-8") == draw(lang), "run scripts/draw_readme.py"


@pytest.mark.parametrize("lang", GUIDE)
def test_the_pictures_of_the_guide_are_drawn_from_the_code(lang):
    pictures = script("draw_guide").PICTURES
    folder = ROOT / f"docs/{lang}/pictures"
    assert {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.svg")} >= set(pictures)
    for name, draw in pictures.items():
        file = folder / f"{name}.svg"
        assert file.read_text(encoding="utf-8") == draw(lang), "run scripts/draw_guide.py"


@pytest.mark.parametrize("lang", GUIDE)
@pytest.mark.parametrize("name", GENERATED)
def test_the_generated_pages_are_up_to_date(name, lang):
    page = ROOT / f"docs/{lang}/{name}.md"
    expected = script("write_guide").PAGES[name](lang)
    assert page.read_text(encoding="utf-8") == expected, "run scripts/write_guide.py"
