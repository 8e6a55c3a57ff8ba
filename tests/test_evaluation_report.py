"""The report of a made-up comparison: its numbers, its pictures, and a page that needs nothing else."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from nvb_diffusers.evaluation.charts import Series, line_chart, nice_range
from nvb_diffusers.evaluation.intervals import Interval
from nvb_diffusers.evaluation.report import format_entry, write_report
from nvb_diffusers.evaluation.results import (
    Calibration,
    Entry,
    Figure,
    FigureRow,
    Requirement,
    Result,
    Results,
    SourceCamera,
    Summary,
    YawBin,
)
from nvb_diffusers.evaluation.test_sets import TestSetSettings


def entry(mean, width=1.0, failures=0):
    return Entry(mean, mean - width, mean + width, 9, failures)


def interval(mean, width=1.0):
    return Interval(mean, mean - width, mean + width)


@pytest.fixture
def comparison(tmp_path):
    settings = TestSetSettings(
        1, "heads <1>", "test", "mild", seed=0, resolution=8, num_identities=3, num_target_views=2
    )
    for number, name in enumerate(["photo.png", "ours.png", "truth.png"]):
        Image.new("RGB", (8, 8), (80 * number, 9, 30)).save(tmp_path / name)
    lines = {"photo": ("photo.png",), "ours": ("photo.png", "ours.png"), "truth": ("", "truth.png")}

    def result(name, preset, views, not_run=None, consistency=None, **kwargs):
        tasks = {"novel_views": views, "restoration": {}, "consistency": consistency or {}}
        return Result(name, preset, Summary(settings, "", None, {}, tasks, not_run or {}), **kwargs)

    results = Results(
        title="A & B",
        preset="mild",
        rows=(
            result(
                "ours",
                "mild",
                {"PSNR": entry(18.123), "SSIM": entry(0.5, 0.1)},
                not_run={"LPIPS": "weights absent"},
                consistency={"warp error": entry(0.05, 0.01)},
                source_camera=SourceCamera(interval(4.0), 3.21),
                by_yaw=(YawBin(0, 10, interval(19)), YawBin(10, 20, interval(17))),
            ),
            result("rival", "mild", {"PSNR": entry(17.5, failures=2)}),
            result("ours", "severe", {"PSNR": entry(15)}, by_yaw=(YawBin(0, 10, interval(3)),)),
        ),
        requirements=(Requirement("lead", -0.5, "dB", "> 0", False),),
        calibration={"mild": Calibration(interval(0.02, 0.01), interval(0.4, 0.1))},
        figures=(Figure("Identity 7", tuple(FigureRow(label, images) for label, images in lines.items())),),
        not_run={"third": "no pipeline at x"},
    )
    (tmp_path / "comparison.json").write_text(json.dumps(results.to_json()))
    assert Results.from_json(json.loads((tmp_path / "comparison.json").read_text())) == results
    return tmp_path


class Page(HTMLParser):
    """Every tag with its attributes, and the cells of the tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_numbers_are_in_both_forms(comparison):
    """Assert means with intervals, failures, what was not run, requirements and titles in Markdown and in HTML."""
    for path in write_report(comparison):
        text = path.read_text()
        for part in ("18.12 [17.12, 19.12]", "0.500 [0.400, 0.600]", "17.50 [16.50, 18.50] (2 of 11 failed)", "not run",
                     "LPIPS not run: weights absent", "third: no pipeline at x",
                     "3.21", "-0.50 dB", "Requirements", "missed", "0.400 [0.300, 0.500]"):  # fmt: skip
            assert part in text, (path.name, part)
    markdown = (comparison / "report.md").read_text()
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    page = (comparison / "report.html").read_text()
    assert "<title>A &amp; B</title>" in page
    assert "heads &lt;1&gt;" in page


def test_the_page_is_whole_and_needs_nothing_else(comparison):
    """Assert that tags close, that no address is named, and that every picture is inside, also in the slider."""
    page = Page((write_report(comparison)[1]).read_text())
    assert page.open == []
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 4 + 2
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not any("href" in attributes or attributes.get("src", "data:")[:5] != "data:" for _, attributes in page.tags)
    (slider,) = [attributes for tag, attributes in page.tags if tag == "input"]
    assert slider["type"] == "range"
    assert slider["aria-label"] == "ours | truth: Identity 7"
    assert [tag for tag, _ in page.tags].count("svg") == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_and_moves_the_slider(comparison):
    """Assert in a real browser that every picture loads, and that the slider uncovers the picture below it."""
    page = write_report(comparison)[1]
    script = """<script>
        const slider = document.querySelector(".slider input");
        slider.value = 80;
        slider.dispatchEvent(new Event("input"));
        const loaded = [...document.images].filter(image => image.naturalWidth === 8).length;
        const cover = getComputedStyle(document.querySelector(".slider img + img")).clipPath;
        document.title = `${loaded} loaded, ${cover}`;
        </script></body>"""
    page.write_text(page.read_text().replace("</body>", script))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=60, check=True).stdout
    title = re.search(r"<title>(.*)</title>", shown).group(1)
    assert title.startswith("6 loaded, inset(0")
    assert "20%" in title


def test_absent_parts_are_left_out(tmp_path):
    """Assert a report of nothing but a title, and one line for a folder without a comparison."""
    (tmp_path / "comparison.json").write_text(json.dumps({"title": "empty", "preset": "mild"}))
    markdown, page = write_report(tmp_path)
    assert markdown.read_text().split() == ["#", "empty"]
    assert "<h2>" not in page.read_text()
    with pytest.raises(ValueError, match=r"no comparison\.json"):
        write_report(tmp_path / "nowhere")


def test_entries():
    """Assert a missing entry, one without any value, and the digits of the measure."""
    assert format_entry("PSNR", None) == "not run"
    assert format_entry("PSNR", Entry(None, None, None, count=0, failures=4)) == "- (4 of 4 failed)"
    assert format_entry("SSIM (x)", entry(0.12345, 0.1)) == "0.123 [0.023, 0.223]"


def test_a_chart_puts_values_where_they_belong():
    """Assert heights in proportion to values, one bar for each interval, and x from left to right."""
    svg = line_chart(
        [Series("a<b", [(0, interval(10)), (1, interval(20)), (2, interval(15))])], "dB", {0: "x", 1: "y", 2: "z"}
    )
    root = ElementTree.fromstring(re.search(r"<svg.*</svg>", svg).group().replace('role="img"', ""))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x0 < x1 < x2
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.2)
    assert y1 < y2 < y0
    assert "a&lt;b" in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(14.2, 19.9, (14, 20, 2)), (0.1, 0.3, (0.1, 0.3, 0.05)), (3, 3, (3, 4, 1))]
)
def test_nice_ranges(low, high, expected):
    """Assert round ends and steps that hold the interval."""
    assert nice_range(low, high) == pytest.approx(expected)


def test_the_template_is_packaged():
    """Assert that setup.py carries the page's frame."""
    assert "evaluation/report_template.html" in (Path(__file__).parents[1] / "setup.py").read_text()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_figures_show_no_file_outside_of_the_comparison(comparison, name):
    """Assert that a received comparison cannot put files of the machine into its report."""
    Image.new("RGB", (8, 8)).save(comparison.parent / "secret.png")
    path = comparison / "comparison.json"
    path.write_text(path.read_text().replace('"photo.png"', json.dumps(name)))
    with pytest.raises(ValueError, match=r"image '.*' leaves its folder"):
        write_report(comparison)
    assert not (comparison / "report.html").exists()
