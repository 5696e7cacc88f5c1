import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from fvlm.core.document import flatten
from fvlm.report.figures import figure_rows
from fvlm.report.page import LISTED, PicturedClip, Report, render_page
from fvlm.statistics.evaluation import ArmResult, CaptionResult, Evaluation
from fvlm.statistics.ratio import UNDEFINED, Estimate

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


def beside(table: list[list[str]], start: str) -> list[str]:
    """The cells beside the only label that begins like this."""
    (cells,) = [row[1:] for row in table[1:] if row[0].startswith(start)]
    return cells


def test_every_arm_stands_beside_its_own_figures(page: Page) -> None:
    arms = page.tables["Mean squared error of the next latent, held-out videos"]
    expected = {
        "coarse pass: the static query": ["0.20711", "-", "-"],
        "fine pass: queries": ["0.20291", "1.0312", "0.9871 to 1.0823"],
        "fine pass frame by frame": ["0.20512", "1.0065", "0.9833 to 1.0308"],
        "fine pass with the static": ["0.21033", "0.9812", "0.9580 to 1.0055"],
        "fine pass with another": ["-", "-", "-"],
        "fine pass with random": ["0.23145", "0.8916", "0.8684 to 0.9159"],
        "copy of the previous latent": ["0.25416", "0.8118", "0.7886 to 0.8361"],
    }
    assert {start: beside(arms, start) for start in expected} == expected


def test_every_ratio_stands_beside_its_own_figures(page: Page) -> None:
    ratios = page.tables["Loss / fine loss"]
    expected = {
        "coarse, all frames": ["1.0207", "0.9764 to 1.0718", "6"],
        "coarse, frames 3+": ["1.0312", "0.9871 to 1.0823", "6"],
        "coarse, relative to frame 2": ["1.0299", "0.9989 to 1.0619", "6"],
        "the static query, frames 3+": ["1.0515", "1.0123 to 1.0919", "6"],
        "another video's queries, frames 3+": ["-", "-", "6"],
        "random queries, frames 3+": ["1.1561", "1.0844 to 1.2317", "6"],
        "AR(1)": ["1.0733", "1.0423 to 1.1053", "6"],
        "coarse on training clips": ["1.1037", "1.0613 to 1.1488", "8"],
        "random queries on training clips": ["1.2234", "1.1924 to 1.2554", "8"],
    }
    assert {start: beside(ratios, start) for start in expected} == expected


def test_what_a_verdict_demands_and_what_the_clips_can_tell(page: Page, text: str) -> None:
    table = page.tables["Verdicts, the strongest last"][1:]
    assert [row[0] for row in table][-2:] == ["Proof of concept", "Very promising"]
    assert "begins at 1.15 or above" in table[-1][1]
    assert "6 videos tell a true ratio of 1.0632 from 1 in 80% of repeats" in words(text)
    assert "to tell 1.05 it takes 11 videos." in words(text)


def test_frames_and_quartiles_stand_beside_their_own_figures(page: Page) -> None:
    frames, motion = page.tables["Ratio by frame"], page.tables["Ratio by motion, frames 3+"]
    assert beside(frames, "1") == ["-", "-", "-", "-"]
    assert beside(frames, "2") == ["0.22000", "0.12000", "1.0200", "0.9200 to 1.1200"]
    assert beside(frames, "8") == ["0.28000", "0.18000", "1.0800", "0.9800 to 1.1800"]
    assert beside(motion, "1") == ["5", "1", "0.31000", "1.0100", "0.9100 to 1.1100"]
    assert beside(motion, "4") == ["8", "4", "0.34000", "1.0400", "0.9400 to 1.1400"]


def test_clips_are_listed_from_the_best_to_the_worst(page: Page) -> None:
    table = page.tables["Ratio by clip, frames 3+ (one alone has no interval)"]
    assert table[1:] == [
        ["park/2.mp4, from 10.5 s", "0.52000", "0.22000", "0.12000", "1.2500"],
        ["park/3.mp4, from 15.8 s", "0.53000", "0.23000", "0.13000", "1.0500"],
        ["park/0.mp4", "0.50000", "0.20000", "0.10000", "0.9500"],
        ["park/1.mp4, from 5.2 s", "0.51000", "0.21000", "0.11000", "-"],
    ]


def test_a_cut_list_of_clips_says_so(make_report: MakeReport) -> None:
    clip = make_report().by_clip[0]
    page = Page(render_page(make_report(by_clip=[clip] * (LISTED + 1))))
    (caption,) = (caption for caption in page.tables if caption.startswith("Ratio by clip"))
    assert caption.endswith(f", the best {LISTED} of {LISTED + 1}")
    assert len(page.tables[caption]) == LISTED + 1  # with its head


def test_the_other_tables_show_their_figures(page: Page) -> None:
    looking = page.tables["Attention, means over all held-out clips"]
    assert beside(looking, "coarse") == ["37.5%", "87.5%", "3.25"]
    assert beside(looking, "fine") == ["43.8%", "62.5%", "17.50"]
    assert beside(looking, "autoregressive") == ["41.2%", "68.8%", "12.25"]
    assert beside(page.tables["Training"], "loss coarse") == ["0.2500"]
    model = page.tables["Model and machine"]
    assert beside(model, "parameters: language model") == ["1,234,567"]
    assert beside(model, "parameters: all") == ["1,234,588"]
    assert beside(model, "operations a clip of 8 frames") == ["8.3 GFLOP"]
    assert "float32" in beside(model, "losses computed as")[0]
    counts = page.tables["Every video and every clip is accounted for"]
    assert beside(counts, "videos: accepted") == ["7"]
    assert beside(counts, "clips: to decode") == ["20"]
    assert beside(counts, "clips: left out, with a change of shot") == ["3"]
    cut = page.tables["What was cut from which video"]
    left_out = "3 with a change of shot, 1 not chosen, 1 failed"
    assert cut[1:] == [["park/0.mp4", "0.0 to 61.5", "2 val", left_out]]
    assert beside(page.tables["Parameters"], "train.lr") == ["0.0003"]


def test_the_title_says_what_was_looked_at_and_when(make_report: MakeReport, text: str) -> None:
    (title,) = re.findall("<title>(.*?)</title>", text)
    assert title == "fVLM report: inconclusive, park, 2031-02-03"
    assert "<title>fVLM report: inconclusive, park</title>" in render_page(make_report(date=""))


def test_the_table_of_figures_holds_every_one_in_full(make_report: MakeReport) -> None:
    report = make_report(validation=[{"samples": "8", "loss_fine": "0.75"}])
    found = {(row["table"], row["row"], row["figure"]): row["value"] for row in figure_rows(report)}
    assert len(found) == len(figure_rows(report))
    for name, value in flatten(report.evaluation).items():
        assert found["evaluate", "", name] == value
    assert found["train", "", "steps"] == 80
    assert found["filter", "", "accepted"] == 7
    assert found["decode", "", "decoded"] == 19
    assert found["parameters", "", "all"] == 1234588
    assert found["flops", "", "clip_of_8_frames"] == 8277731328
    assert found["evaluate by frame", "8", "coarse_fine_ratio_high"] == 1.1 + 8 / 100
    assert found["evaluate by motion", "4", "clips"] == 8
    assert found["evaluate by clip", "park-2", "loss_coarse"] == 0.22
    assert found["train by clips seen", "16", "loss_fine"] == "0.45"
    assert found["held-out clips by clips seen", "8", "loss_fine"] == "0.75"


def test_several_trainings_stand_in_a_table_and_in_the_chart(
    make_report: MakeReport, evaluation: Evaluation, page: Page
) -> None:
    assert "Ratio of each training, frames 3+" not in page.tables
    by_seed = {0: Estimate(1.02, 1.0, 1.04), 7: Estimate(1.05, 1.01, 1.09)}
    text = render_page(make_report(evaluation=changed(evaluation, seeds=2, by_seed=by_seed)))
    assert Page(text).tables["Ratio of each training, frames 3+"][1:] == [
        ["0", "1.0200", "1.0000 to 1.0400"],
        ["7", "1.0500", "1.0100 to 1.0900"],
    ]
    assert "small rings: each training" in text


def test_the_result_shows_its_own_figures(text: str) -> None:
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert facts["coarse / fine loss, frames 3+"] == "1.0312"
    assert facts["95% interval"] == "0.9871 to 1.0823"
    assert (facts["held-out videos"], facts["held-out clips"]) == ("6", "7")


def changed(evaluation: Evaluation, **values: Any) -> Evaluation:
    """With other values of held-out clips."""
    held_out = evaluation.held_out.model_copy(update=values)
    return evaluation.model_copy(update={"held_out": held_out})


def words(text: str) -> str:
    return " ".join(text.split())


def test_what_was_compared_depends_on_what_was_trained(
    make_report: MakeReport, evaluation: Evaluation, text: str
) -> None:
    alone = "but for the coarse pass of a model trained without fine passes: these are its own"
    assert alone not in words(text)
    ratio = Estimate(1.5, 1.4, 1.6)
    twin = ArmResult(loss=0.25, coarse_ratio_dynamic=ratio, fine_ratio_dynamic=ratio)
    found = changed(evaluation, arms=evaluation.held_out.arms | {"coarse_only": twin})
    assert alone in words(render_page(make_report(evaluation=found)))


def test_pooled_tokens_have_a_table_and_a_sentence_where_they_were_trained(
    make_report: MakeReport, evaluation: Evaluation, page: Page, text: str
) -> None:
    title = "One token by query against several pooled ones"
    assert title not in page.tables
    assert "pooled" not in text
    gap, ratio = Estimate(0.25, 0.125, 0.375), Estimate(1.5, 1.4, 1.6)
    pooled = ArmResult(loss=0.1875, coarse_ratio_dynamic=ratio, fine_ratio_dynamic=ratio)
    arms = {f"pooled_{count}": pooled for count in (1, 16)}
    found = changed(
        evaluation,
        arms=evaluation.held_out.arms | arms,
        gap_closed={"pooled_1": UNDEFINED, "pooled_16": gap},
    )
    flops = {"pooled_1": 4_100_000_000, "pooled_16": 9_900_000_000}
    report = make_report(evaluation=found, pooled_flops=flops)
    html = render_page(report)
    assert Page(html).tables[title][1:] == [
        ["both passes, the fine one's loss", "1", "8.3", "0.20291", "-", "-"],
        ["1 pooled token a frame, no query", "1", "4.1", "0.18750", "-", "-"],
        [
            "16 pooled tokens a frame, no query",
            "16",
            "9.9",
            "0.18750",
            "0.2500",
            "0.1250 to 0.3750",
        ],
    ]
    assert "with one, closes 25% (12% to 38%) of their gap to the coarse pass" in words(html)
    assert "and so are those of the models that read several pooled tokens" in words(html)
    row = {"table": "flops", "row": "", "figure": "pooled_16_clip", "value": 9_900_000_000}
    assert row in figure_rows(report)


def test_the_uncertainty_of_one_and_of_several_trainings(
    make_report: MakeReport, evaluation: Evaluation, text: str
) -> None:
    one = "One training: what another seed would change is not in the interval."
    assert one in text
    several = render_page(make_report(evaluation=changed(evaluation, seeds=3)))
    assert one not in several
    assert "3 trainings, each with a seed of its own" in several
    assert "and from what differs between the trainings" in several
    assert "<dt>trainings (seeds)</dt><dd>3</dd>" in several


def test_captions_have_their_ratio_where_they_were_trained(
    make_report: MakeReport, evaluation: Evaluation, page: Page
) -> None:
    assert not [row for row in page.tables["Loss / fine loss"] if row[0] == "coarse, captions"]
    captions = CaptionResult(
        coarse=2.5, fine=1.9, uniform=10.8, ratio=Estimate(1.3141, 1.2718, 1.3578)
    )
    trained = Page(render_page(make_report(evaluation=changed(evaluation, captions=captions))))
    found = beside(trained.tables["Loss / fine loss"], "coarse, captions")
    assert found == ["1.3141", "1.2718 to 1.3578", "6"]


@pytest.mark.parametrize(
    ("similarity", "conclusion"),
    [
        (0.9916, "asks almost the same thing in every frame"),
        (0.8, "changes a part of what it asks"),
        (0.1, "asks for something else from frame to frame"),
    ],
)
def test_the_similarity_of_queries_is_put_in_words(
    make_report: MakeReport, evaluation: Evaluation, similarity: float, conclusion: str
) -> None:
    looking = evaluation.attention.model_copy(update={"query_similarity": similarity})
    found = evaluation.model_copy(update={"attention": looking})
    text = render_page(make_report(evaluation=found))
    assert f"{similarity:.4f}. " in text
    assert conclusion in text


@pytest.mark.parametrize(
    ("ratio", "meaning"),
    [(1.25, "is better here"), (0.9986, "is worse here"), (0.99995, "makes no difference here")],
)
def test_the_ratio_of_a_clip_is_put_in_words(
    make_report: MakeReport, clip: PicturedClip, ratio: float, meaning: str
) -> None:
    text = render_page(make_report(clips=[dataclasses.replace(clip, ratio=ratio)]))
    assert f"frames 3+: {ratio:.4f}: the fine pass {meaning}." in text


def test_the_figures_in_pictures_stand_below_them_as_text(text: str) -> None:
    assert "Coarse pass: entropy 100% of the maximum, peak 1.0 times uniform, CLS 25%" in text
    assert "Mean error after frame 1: coarse 0.2850, fine 0.1600, persistence 0.5350." in text


def test_the_copy_of_the_previous_latent_does_not_flatten_the_chart(page: Page) -> None:
    (alt,) = [str(i["alt"]) for i in page.all("img") if "random queries" in str(i["alt"])]
    assert "random queries, frames 3+: 1.1561, interval 1.0844 to 1.2317" in alt
    assert "1.2713" not in alt


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
            beside_it = tag == "a" and value == "figures.csv"
            assert beside_it or value is None or value.startswith(("data:", "#")), (tag, name)
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
        assert str(link["href"])[1:] in identifiers or link["href"] == "figures.csv"
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
