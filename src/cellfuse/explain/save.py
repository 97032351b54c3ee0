"""An explanation as a file: a page, a text or its facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cellfuse.errors import OptionError
from cellfuse.explain.facts import Explanation
from cellfuse.explain.page import page_of
from cellfuse.explain.text import text_of
from cellfuse.explain.words import LANGUAGES

_KINDS: dict[str, Callable[[Explanation, str], str]] = {
    ".html": page_of,
    ".txt": lambda facts, lang: text_of(facts, lang) + "\n",
    ".json": lambda facts, lang: json.dumps(facts.to_dict(), ensure_ascii=False, indent=1) + "\n",
}


def save(facts: Explanation, path: Path, lang: str) -> Path:
    """Write the file that the path's ending names.

    Raises:
        OptionError: the ending or the language is not known.
    """
    if path.suffix not in _KINDS:
        raise OptionError(f"save {path}: give a name that ends with one of {', '.join(_KINDS)}")
    if lang not in LANGUAGES:
        raise OptionError(f"save: lang={lang!r}; use one of {', '.join(LANGUAGES)}")
    path.write_text(_KINDS[path.suffix](facts, lang), encoding="utf-8")
    return path
