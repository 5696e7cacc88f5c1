"""The page as a reader meets it, in headless Chromium; skipped where there is none."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.document import flatten
from fvlm.report.page import Report, render_page
from fvlm.report.pictures import TYPE
from fvlm.statistics.evaluation import Evaluation

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

NAMED = """() => [...document.querySelectorAll('img, video')].filter(
    item => !(item.alt || item.ariaLabel))"""
BROKEN = """() => [...document.images].filter(image => !image.complete || !image.naturalWidth)"""
# Contrast as WCAG 2 defines it, of text against the page.
CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(value => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll('p, a, td, th, figcaption, summary')].map(
    item => {
      const ink = light(getComputedStyle(item).color);
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }));
}"""


PLAY = """film => new Promise((done, fail) => {
  film.onloadeddata = () => done(film.duration);
  film.onerror = () => fail(film.error.message);
  film.preload = 'auto';
  film.load();
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def path(make_report: Callable[..., Report], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "index.html"
    file.write_text(render_page(make_report()))
    return file


@pytest.fixture
def open_page(browser: Any, path: Path) -> Iterator[Callable[..., Any]]:
    """Opens the report; whatever the browser complains about fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_(*, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url[:80]))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_can_be_read(
    open_page: Callable[..., Any], width: int, scheme: str
) -> None:
    page = open_page(width=width, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(NAMED) == []
    assert page.evaluate(CONTRAST) >= 4.5


def test_the_keyboard_reaches_the_result_first(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#result"


def test_what_scrolls_sideways_can_be_focused_and_is_named(open_page: Callable[..., Any]) -> None:
    page = open_page(width=360)
    regions = page.locator(".scroll")
    assert regions.count() > 5
    for region in regions.all():
        assert region.get_attribute("tabindex") == "0"
        assert region.get_attribute("aria-label")


@pytest.mark.parametrize("width", [360, 400])
def test_a_phone_shows_whole_tables_and_pictures(open_page: Callable[..., Any], width: int) -> None:
    page = open_page(width=width)
    page.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    cut = "items => items.filter(item => item.scrollWidth > item.clientWidth).map(i => i.ariaLabel)"
    assert page.locator(".scroll").evaluate_all(cut) == []
    narrow = f"items => items.filter(item => item.getBoundingClientRect().right > {width}).length"
    assert page.locator("img, video").evaluate_all(narrow) == 0


def test_type_in_pictures_is_readable_on_a_phone(open_page: Callable[..., Any]) -> None:
    page = open_page(width=400)
    scale = "items => Math.min(...items.map(i => i.clientWidth / i.naturalWidth))"
    assert TYPE * page.locator("article img").evaluate_all(scale) >= 11.5
    film = page.locator("video").first
    film.evaluate(PLAY)
    assert TYPE * film.evaluate("film => film.clientWidth / film.videoWidth") >= 11.5


def test_what_is_cut_casts_a_shadow(open_page: Callable[..., Any]) -> None:
    page = open_page(width=400)
    table = page.locator(".scroll").first
    assert table.evaluate("item => getComputedStyle(item).backgroundImage").count("gradient") == 4


def test_screen_readers_find_landmarks_headings_and_tables(open_page: Callable[..., Any]) -> None:
    page = open_page()
    for role in ("main", "navigation", "banner", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("table", name="Loss / fine loss").count() == 1
    assert page.get_by_role("rowheader", name="coarse, frames 3+").count() == 1


def test_cells_hold_the_figures_of_their_row(
    open_page: Callable[..., Any], evaluation: Evaluation
) -> None:
    page, figures = open_page(), flatten(evaluation)
    table = page.get_by_role("table", name="Loss / fine loss")
    for start, name in (
        ("coarse, frames 3+", "coarse_fine_ratio_dynamic"),
        ("the static query, frames 3+", "static_in_fine_fine_ratio_dynamic"),
        ("random queries, frames 3+", "random_fine_ratio_dynamic"),
        ("coarse on training clips", "train_coarse_fine_ratio_dynamic"),
    ):
        row = table.get_by_role("row", name=start)
        ratio, interval, _ = row.get_by_role("cell").all_inner_texts()
        shown = [float(cell) for cell in (ratio, *interval.split(" to "))]
        assert shown == [figures[f"{name}{end}"] for end in ("", "_low", "_high")], start


def test_the_film_plays(open_page: Callable[..., Any]) -> None:
    page = open_page()
    film = page.locator("video").first
    assert film.evaluate(PLAY) == 3.5


def test_on_paper_everything_is_shown_but_films_and_fits_a_page(
    open_page: Callable[..., Any],
) -> None:
    a4 = {"width": 688, "height": 1009}  # A4 without the margins, at 96 dots an inch
    page = open_page(width=a4["width"])
    page.emulate_media(media="print")
    for selector, count in (("video", 1), ("nav", 1), ("table", 12), ("summary", 4)):
        found = page.locator(selector)
        assert found.count() >= count, selector
        shown = [item.is_visible() for item in found.all()]
        assert shown == [selector in ("table", "summary")] * found.count(), selector
    whole = page.locator("article, figure:not(.film), tr")
    assert max(box["height"] for item in whole.all() if (box := item.bounding_box())) < 1009
    edges = "items => Math.max(...items.map(item => item.getBoundingClientRect().right))"
    assert page.locator("img, table").evaluate_all(edges) <= a4["width"]
    page.emulate_media(media="screen")


def test_a_desktop_is_used_to_its_right(open_page: Callable[..., Any]) -> None:
    page = open_page(width=1600)
    for section in ("result", "compared", "controls", "where", "training", "looking", "made"):
        inside = page.locator(f"#{section} :is(table, img, dl)")
        boxes = [box for item in inside.all() if (box := item.bounding_box())]
        assert max(box["x"] + box["width"] for box in boxes) > 1000, section
    assert page.evaluate("document.documentElement.scrollWidth") <= 1600
