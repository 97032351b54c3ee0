"""The documents: their Python runs, their commands parse, their links and pictures exist."""

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
from pathlib import Path

import pytest

from cellfuse.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("docs/**/*.md")})
BOTH = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
EXPECTED = re.compile(r"^(?P<code>\S.*?)  # -> (?P<value>.*)$", re.M)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def run_document(text):
    """Run the Python blocks of a document one after the other; compare each line's `# -> value`."""
    names, values = {"__name__": "document"}, 0
    for block in blocks(text, "python"):
        rest = block
        while found := EXPECTED.search(rest):
            exec(compile(rest[: found.start()], "<document>", "exec"), names)
            got = repr(eval(found["code"], names))
            assert got == found["value"], f"{found['code']} is {got}, the document says {found['value']}"
            rest, values = rest[found.end() :], values + 1
        exec(compile(rest, "<document>", "exec"), names)
    return values


@pytest.mark.parametrize("document", BOTH, ids=lambda path: path.name)
def test_code_runs_and_gives_what_the_document_says(document):
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


def commands():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
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
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"
    for name in re.findall(r"`((?:src|tests|scripts|docs|benchmarks)/[\w./-]+)`", text):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_both_readmes_show_the_same_code():
    english, chinese = (path.read_text(encoding="utf-8") for path in BOTH)

    def without_comments(block):
        lines = (re.sub(r"(\s+#(?! ->).*|\"\"\".*\"\"\"|source=\"[^\"]*\")", "", line) for line in block)
        return [line for line in lines if line.strip()]

    for language in ("python", "bash"):
        ours, theirs = (blocks(text, language) for text in (english, chinese))
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            assert without_comments(a.splitlines()) == without_comments(b.splitlines())


def test_the_picture_is_drawn_from_the_code():
    spec = importlib.util.spec_from_file_location("draw_readme", ROOT / "scripts/draw_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for lang, suffix in (("en", ""), ("zh", ".zh-CN")):
        file = ROOT / f"docs/cell-to-layer{suffix}.svg"
        assert file.read_text(encoding="utf-8") == module.picture(lang), "run scripts/draw_readme.py"
