"""The HTML report in a real Chromium: nothing is fetched, nothing hostile runs, and it can be read by everyone.

Needs Chromium (`apt-get install chromium`; QLORA_DOCTOR_CHROMIUM names another), and for the accessibility rules axe-core
(`npm install axe-core`; QLORA_DOCTOR_AXE names its axe.min.js). What is not there is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.report.html import render
from tests.report.browser import Page, browser, chromium
from tests.report.papers import hostile, paper

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")
ROOT = Path(__file__).parents[2]
PLACES = (os.environ.get("QLORA_DOCTOR_AXE", ""), str(ROOT / "node_modules/axe-core/axe.min.js"))
AXE = next((Path(place) for place in PLACES if place and Path(place).is_file()), None)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, made in (("plain", paper()), ("hostile", hostile())):
        (folder / f"{name}.html").write_text(render(made), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("plain", "hostile")}


VIEWS = [(1100, False), (1100, True), (360, False), (360, True)]


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_it_says_nothing_on_the_console_and_asks_for_nothing(page: Page, files: dict[str, Path], name: str) -> None:
    page.problems.clear()
    page.requests.clear()
    page.open(files[name])
    page.run("document.querySelectorAll('button').length")
    assert page.problems == []
    assert page.requests == [files[name].as_uri()]


def test_a_console_error_and_what_the_policy_refuses_would_be_seen(
    page: Page, files: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    text = files["plain"].read_text(encoding="utf-8").replace("<main", '<img src="http://127.0.0.1:9/x.png"><main')
    broken.write_text(text.replace('"use strict"', '"use strict" '), encoding="utf-8")
    page.problems.clear()
    page.open(broken)
    said = " ".join(page.problems)
    page.problems.clear()
    assert "img-src" in said
    assert "script-src" in said


@pytest.mark.parametrize(("width", "dark"), VIEWS)
@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_nothing_is_wider_than_the_window(
    page: Page, files: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    page.open(files[name], width, dark)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_words_do_not_run_and_stand_there_as_words(page: Page, files: dict[str, Path]) -> None:
    page.open(files["hostile"])
    assert page.run("window.hacked") is None
    assert page.run("document.images.length + document.querySelectorAll('iframe, object').length") == 0
    assert "<script>window.hacked=1</script>" in page.run("document.querySelector('h1').textContent")
    assert page.run("document.scripts.length") == 1


def test_it_is_dark_where_the_reader_wants_it_dark(page: Page, files: dict[str, Path]) -> None:
    shades = []
    for dark in (False, True):
        page.open(files["plain"], dark=dark)
        colours = page.run("['backgroundColor', 'color'].map(n => getComputedStyle(document.body)[n]).join(';')")
        shades.append([sum(int(n) for n in c[4:-1].split(",")) for c in colours.split(";")])
    (light_paper, light_ink), (dark_paper, dark_ink) = shades
    assert light_paper > 700
    assert light_ink < 150
    assert dark_paper < 150
    assert dark_ink > 600


def test_every_command_has_a_button_that_copies_it(page: Page, files: dict[str, Path]) -> None:
    page.open(files["plain"])
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    assert page.run("document.querySelectorAll('.copy').length") == 2
    assert page.run("document.querySelectorAll('.copy button').length") == 2
    spot = page.run(
        "(() => { const b = document.querySelector('.copy button'); b.scrollIntoView(); const r = b.getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)
    page.run("new Promise(r => setTimeout(r, 50))")
    assert page.run("document.querySelector('.copy button').textContent") == "Copied"
    assert page.run("document.getElementById('said').textContent") == "Copied"
    assert page.run("navigator.clipboard.readText()") == "eval_strategy='epoch'"


def test_print_shows_what_was_folded_and_no_buttons(page: Page, files: dict[str, Path]) -> None:
    page.open(files["plain"], dark=True, media="print")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("[...document.querySelectorAll('details')].every(d => d.open)")
    assert page.run("getComputedStyle(document.querySelector('button')).display") == "none"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.run("dispatchEvent(new Event('afterprint'))")
    assert not page.run("[...document.querySelectorAll('details')].some(d => d.open)")


def test_the_parts_stand_in_their_order(page: Page, files: dict[str, Path]) -> None:
    page.open(files["plain"])
    heads = page.run("[...document.querySelectorAll('h1, h2')].map(h => h.textContent.trim())")
    assert heads == [
        "✕ 1 error, 1 warning, 1 note", "Findings", "GPU memory", "Training loss", "Environment", "Changes to files",
        "Commands", "Packages", "Checks that could not say",
    ]  # fmt: skip


def test_the_bar_on_the_screen_ends_before_the_limit_of_the_card(page: Page, files: dict[str, Path]) -> None:
    page.open(files["plain"], 360)
    edges: Any = page.run(
        "[...document.querySelectorAll('.scale rect:not(.empty), .scale .limit')].map(e => e.getBoundingClientRect().right)"
    )
    assert edges == sorted(edges)
    assert edges[-1] > edges[-2] + 30


@pytest.mark.skipif(AXE is None, reason="no axe-core here: npm install axe-core, or QLORA_DOCTOR_AXE=.../axe.min.js")
@pytest.mark.parametrize(("width", "dark"), VIEWS)
@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_axe_finds_nothing(page: Page, files: dict[str, Path], name: str, width: int, dark: bool) -> None:
    assert AXE is not None
    page.open(files[name], width, dark)
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.run(AXE.read_text(encoding="utf-8") + ";1")
    found = page.run(
        "axe.run({resultTypes: ['violations']}).then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' ')))"
    )
    assert found == []
    assert page.run("axe.run({runOnly: ['color-contrast']}).then(r => r.passes.length)") == 1
