"""The HTML report as text: one file, one policy, and nothing in it that its words could bring in."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from qlora_doctor.i18n import use
from qlora_doctor.report.html import POINTS, render
from qlora_doctor.report.paper import Curve, Entry, Paper
from tests.report.papers import GIB, HOSTILE, hostile, paper


class Seen(HTMLParser):
    """The tags, their attributes, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


PAGES = pytest.mark.parametrize("made", [paper(), hostile(), Paper("check", "x", "nothing found", "ok")])


@PAGES
def test_the_policy_lets_its_own_style_and_script_run_and_nothing_else(made: Paper) -> None:
    page = render(made)
    policy = next(v for t, n, v in Seen(page).attributes if t == "meta" and n == "content" and "default-src" in v)
    allowed = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert allowed["default-src"] == "'none'"
    assert set(allowed) == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[f"{tag}-src"] == f"'sha256-{digest}'"


@PAGES
def test_it_names_no_address_and_has_no_attribute_that_acts(made: Paper) -> None:
    seen = Seen(render(made))
    assert [
        (t, n) for t, n, _ in seen.attributes if n in ("href", "src", "style", "action", "srcset") or n.startswith("on")
    ] == []
    assert not set(seen.tags) & {"img", "iframe", "object", "embed", "link", "base", "form", "a", "audio", "video"}


def test_hostile_words_make_no_tag_and_are_all_there() -> None:
    seen, plain = Seen(render(hostile())), Seen(render(paper()))
    assert set(seen.tags) - set(plain.tags) == set()
    assert seen.tags.count("script") == 1
    assert "".join(seen.text).count("<script>window.hacked=1</script><img src=x onerror") >= 30


def test_no_control_or_bidi_character_is_left() -> None:
    page = render(hostile())
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page) is None
    assert "[U+202E]" in page
    assert "\x1b" in HOSTILE


def test_the_bar_is_as_long_as_the_memory() -> None:
    rects = re.findall(r'<rect class="c\d" x="([\d.]+)" y="20" width="([\d.]+)"', render(paper()))
    assert rects == [("0.00", "625.00"), ("625.00", "125.00")]
    assert 'class="limit" d="M998.00' in render(paper())


def test_a_run_that_needs_more_than_the_card_shows_the_limit_inside_the_bar() -> None:
    bar = paper().bar
    assert bar is not None
    page = render(replace(paper(), bar=replace(bar, room=4 * GIB, high=8 * GIB)))
    assert 'class="limit" d="M500.00' in page
    assert "free" not in page


def test_a_spike_in_a_long_curve_is_drawn() -> None:
    points = [(float(n), 1.0) for n in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    page = render(replace(paper(), curves=(Curve("log", tuple(points)),)))
    (drawn,) = re.findall(r'<polyline class="train" points="([^"]+)"', page)
    assert "543.2,0.0" in drawn
    assert len(drawn.split()) <= POINTS


def test_a_loss_that_is_no_number_is_counted_and_not_drawn() -> None:
    curve = Curve("log", ((1.0, 2.0), (2.0, math.nan), (3.0, math.inf), (4.0, 1.0)))
    page = render(replace(paper(), curves=(curve,)))
    assert "2 values were not finite" in page
    assert not re.search(r'points="[^"]*(nan|inf)', page)
    assert "Training loss" not in render(replace(paper(), curves=(Curve("log", ((1.0, math.nan),)),)))


def test_the_verdict_is_the_title_and_the_first_heading() -> None:
    page = render(paper())
    assert "<title>qlora-doctor check: 1 error, 1 warning, 1 note</title>" in page
    assert re.search(r"<h1>.*1 error, 1 warning, 1 note</bdi></h1>", page)


def test_no_secret_is_written() -> None:
    secret = "hf_" + "a" * 30
    assert secret not in render(replace(paper(), entries=(Entry("QD1", "n", "error", f"token {secret}"),)))


def test_in_chinese_the_words_change_and_the_shape_does_not() -> None:
    use("zh_CN")
    try:
        page = render(paper())
    finally:
        use("en")
    english = render(paper())
    assert Seen(page).tags == Seen(english).tags
    classes = [(t, v) for t, n, v in Seen(page).attributes if n == "class"]
    assert classes == [(t, v) for t, n, v in Seen(english).attributes if n == "class"]
    assert '<html lang="zh-CN">' in page
    assert re.search(r"[\u4e00-\u9fff]", page)
    assert "eval_strategy=&#x27;epoch&#x27;" in page
