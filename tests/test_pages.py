"""A page in Chinese says what the English one says: code, headings, names, numbers."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHINESE = ".zh-CN.md"
PAGES = sorted([*ROOT.glob(f"*{CHINESE}"), *(ROOT / "docs").rglob(f"*{CHINESE}")])
COMMENTS = (tokenize.COMMENT, tokenize.NL)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Tables that are made by a program are only linked to.
MADE = re.compile(r"<!-- figures: .*?<!-- end of figures -->", re.DOTALL)


def code(page):
    """What is to be run, without comments: fenced blocks, and indented lines."""
    for language, block in FENCED.findall(page):
        if language == "python":
            tokens = tokenize.generate_tokens(io.StringIO(block).readline)
            yield [(t.type, t.string) for t in tokens if t.type not in COMMENTS]
        else:
            yield language, block
    yield re.findall(r"^    \S.*$", FENCED.sub("", page), re.MULTILINE)


def prose(page):
    return MADE.sub("", FENCED.sub("", page))


def headings(page):
    """The level of each."""
    return [len(mark) for mark in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]


def names(page):
    return set(re.findall(r"`([^`\n]+)`", prose(page)))


def numbers(page):
    """Those of the text; words for numbers are words."""
    text = re.sub(r"(?m)`[^`\n]+`|\]\([^)]*\)|^    .*$", "", prose(page))
    return set(re.findall(r"\d(?:[\d,.:]*\d)?(?:e-?\d+)?", text))


def test_the_first_page_is_there_in_chinese():
    assert ROOT / f"README{CHINESE}" in PAGES
    assert f"(README{CHINESE})" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.parametrize("aspect", [code, headings, names, numbers])
def test_a_chinese_page_says_what_the_english_one_does(path, aspect):
    original = path.with_name(path.name.replace(CHINESE, ".md"))
    chinese, english = path.read_text(), original.read_text()
    assert f"[English]({original.name})" in chinese
    wanted, found = aspect(english), aspect(chinese)
    if aspect is code:
        wanted, found = list(wanted), list(found)
    assert found == wanted, f"{path.name} is behind {original.name}"


@pytest.mark.parametrize(
    ("aspect", "page", "other"),
    [
        (code, "```python\nf(1)  # one\n```", "```python\nf(2)  # one\n```"),
        (code, "    pip install x\n", "    pip install y\n"),
        (headings, "# One\n## Two\n", "# 一\n### 二\n"),
        (names, "`iou` and `giou`", "`iou` 和 `diou`"),
        (numbers, "from 1e-6 to 0.5", "从 1e-6 到 0.6"),
    ],
)
def test_a_difference_is_seen(aspect, page, other):
    assert list(aspect(page)) == list(aspect(page)) != list(aspect(other))


def test_comments_may_be_translated():
    english = "```python\nf(1)  # one\n# alone\ng('#')\n```\n"
    chinese = "```python\nf(1)  # 一\n# 单独一行\ng('#')\n```\n"
    assert list(code(english)) == list(code(chinese))
