import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from fvlm.evaluation.tables import arm_rows, figure, interval, ratio_rows
from fvlm.report.page import LISTED, Report, render_page

MakeReport = Callable[..., Report]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, and tables as rows of text by caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self._caption = ""
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["caption"]:
            self._caption = data
        elif self.open[-1:] in (["th"], ["td"]):
            self.tables[self._caption][-1].append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(make_report: MakeReport) -> str:
    return render_page(make_report())


@pytest.fixture
def page(text: str) -> Page:
    return Page(text)


def test_tables_show_the_figures(page: Page, evaluation: dict[str, object]) -> None:
    (_, *arms) = page.tables["Mean squared error of the next latent, held-out videos"]
    assert arms == [
        [row.meaning, figure(row.loss, 5), figure(row.overall), figure(row.dynamic)]
        for row in arm_rows(evaluation)
    ]
    (_, *ratios) = page.tables["Loss / fine loss"]
    assert ratios == [
        [row.meaning, figure(row.value), interval(row), str(row.videos)]
        for row in ratio_rows(evaluation)
    ]
    assert ["another video's queries, frames 3+", "-", "none", "6"] in ratios
    assert page.tables["Ratio by frame"][1] == ["1", "-", "-", "-", "none"]
    assert page.tables["Ratio by frame"][2] == ["2", "0.20000", "0.19000", "1.0200", _INTERVAL]
    assert ["train.lr", "0.0003"] in page.tables["Parameters"]


_INTERVAL = "0.9900 to 1.0700"


def test_every_picture_has_an_alternative_text(page: Page) -> None:
    assert len(page.all("img")) == 6
    for image in page.all("img"):
        assert len(str(image["alt"])) > 20
    (film,) = page.all("video")
    assert film["aria-label"]


def test_the_page_needs_nothing_from_outside(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name)
        assert tag not in {"script", "iframe", "object"}
    (policy,) = [meta for meta in page.all("meta") if "http-equiv" in meta]
    assert str(policy["content"]).startswith("default-src 'none'")


def test_tables_and_sections_have_names_for_screen_readers(page: Page) -> None:
    assert len(page.all("table")) == len(page.all("caption")) == len(page.tables)
    assert all(cell["scope"] in {"col", "row"} for cell in page.all("th"))
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    for _, attributes in page.elements:
        if label := attributes.get("aria-labelledby"):
            assert label in identifiers
    for link in page.all("a"):
        assert str(link["href"])[1:] in identifiers
    assert page.all("html") == [{"lang": "en"}]
    assert page.elements[[tag for tag, _ in page.elements].index("body") + 1][0] == "a"  # skip link


def test_names_are_escaped(text: str) -> None:
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "a &lt;b&gt; &amp; c.mp4" in text


def test_the_same_facts_give_the_same_page(make_report: MakeReport, text: str) -> None:
    assert render_page(make_report()) == text


def test_many_unused_videos_are_cut_with_a_note(make_report: MakeReport) -> None:
    row = dict.fromkeys(("video_id", "status", "reason", "message"), "x")
    page = Page(text := render_page(make_report(unused=[row] * (LISTED + 50))))
    assert len(page.tables["Videos that were not used"]) == LISTED + 1
    assert f"{LISTED + 50} videos that were not used, with the reason (the first {LISTED})" in text
    none = render_page(make_report(unused=[]))
    assert "Videos that were not used" not in none


def test_figures_undefined_in_json_are_dashes(text: str) -> None:
    assert not re.search(r">(None|nan)<", text)
