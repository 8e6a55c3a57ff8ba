"""The report of a comparison: `report.md`, and `report.html` that needs no other file and no network.

The figures follow the paper's: methods one below another for one person (Figure 3), one method over degradations
(Figure 4). A part of the comparison that was not run is left out; a measure that a row lacks is "not run".
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from nvb_diffusers.data.images import load_photo
from nvb_diffusers.evaluation.acceptance import requirement_lines
from nvb_diffusers.evaluation.charts import Series, line_chart
from nvb_diffusers.evaluation.configuration import ComparisonFolder
from nvb_diffusers.evaluation.intervals import Interval
from nvb_diffusers.evaluation.metrics import describe
from nvb_diffusers.evaluation.results import TASK_TITLES, Entry, Results
from nvb_diffusers.files import path_inside, read_json, write_whole

TEMPLATE = Path(__file__).with_name("report_template.html")
IMAGE_SIDE = 128


def write_report(folder: str | Path) -> tuple[Path, Path]:
    """Write the report of a comparison into its folder.

    Args:
        folder: with `comparison.json`, as `nvb_diffusers.evaluation.compare` makes it.

    Returns:
        The paths of the Markdown and of the HTML.
    """
    folder, path = Path(folder), ComparisonFolder(Path(folder)).results
    if not path.is_file():
        raise ValueError(f"{folder} has no {path.name}: make one with `nvb-face eval compare`")
    results = Results.from_json(read_json(path))
    sections = [*_other_sections(results), *_table_sections(results)]
    markdown = [f"# {results.title}", "", *_notes(results)]
    body = [f"<h1>{html.escape(results.title)}</h1>", *(f"<p>{html.escape(note)}</p>" for note in _notes(results))]
    for title, note, head, lines in sections:
        markdown += ["", f"## {title}", "", *([note, ""] if note else []), _markdown_table(head, lines)]
        body += [f"<h2>{html.escape(title)}</h2>", f"<p>{html.escape(note)}</p>" if note else ""]
        body.append(_html_table(head, lines))
    body += [*_charts(results), *_sliders(results, folder), *_figures(results, folder)]
    if results.not_run:
        reasons = [f"{name}: {why}" for name, why in results.not_run.items()]
        markdown += ["", "## Not run", "", *(f"- {reason}" for reason in reasons)]
        body += ["<h2>Not run</h2><ul>", *(f"<li>{html.escape(reason)}</li>" for reason in reasons), "</ul>"]
    paths = folder / "report.md", folder / "report.html"
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(results.title)).replace("{{body}}", "\n".join(filter(None, body)))
    write_whole(paths[0], "\n".join(markdown) + "\n")
    write_whole(paths[1], page)
    return paths


def format_entry(name: str, entry: Entry | Interval | None) -> str:
    """A mean with its 95 % interval, as the measure of this name is shown; "not run" where there is none."""
    if entry is None:
        return "not run"
    interval, failures = (entry.interval if isinstance(entry, Entry) else entry), ""
    if isinstance(entry, Entry):
        failures = f" ({entry.failures} of {entry.failures + entry.count} failed)" if entry.failures else ""
    if interval is None or math.isnan(interval.mean):
        return f"-{failures}"
    digits = describe(name).digits
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]{failures}"


def _notes(results: Results) -> list[str]:
    """What was measured, in a sentence, and how to read it."""
    if not results.rows:
        return []
    settings = results.rows[0].summary.test_set
    return [
        f"{settings.num_identities} identities of {settings.data} ({settings.split}), "
        f"{settings.num_target_views} views each at {settings.resolution} px, seed {settings.seed}. "
        "Means over images with 95 % intervals over identities in brackets."
    ]


class Section(NamedTuple):
    """A table with what stands above it."""

    title: str
    note: str
    head: list[str]
    lines: list[list[str]]


def _table_sections(results: Results) -> list[Section]:
    """One table for each task and degradation: a line for each row, a column for each measure."""
    sections: list[Section] = []
    for task, title in TASK_TITLES.items():
        for preset in dict.fromkeys(row.preset for row in results.rows):
            rows = [(row, row.summary.tasks.get(task)) for row in results.rows if row.preset == preset]
            entries = {row.name: found for row, found in rows if found}
            measures = list(dict.fromkeys(measure for found in entries.values() for measure in found))
            if not measures:
                continue
            head = ["method", *(_column_head(measure) for measure in measures)]
            lines = [
                [name, *(format_entry(measure, found.get(measure)) for measure in measures)]
                for name, found in entries.items()
            ]
            absent = {measure: why for row, found in rows if found for measure, why in row.summary.not_run.items()}
            note = "" if sections else "; ".join(f"{measure} not run: {why}" for measure, why in absent.items())
            sections.append(Section(f"{title}, {preset}", note, head, lines))
    return sections


def _other_sections(results: Results) -> list[Section]:
    """Requirements, cameras of the inputs and the calibration, where there are any."""
    sections = []
    if results.requirements:
        sections.append(Section("Requirements", "", *requirement_lines(results.requirements)))
    lines = [
        [row.name, row.preset, f"{row.source_camera.median:.2f}", format_entry("POSE", row.source_camera.mean)]
        for row in results.rows
        if row.source_camera is not None
    ]
    if lines:
        head = ["method", "degradation", "median (deg)", "mean (deg)"]
        sections.append(Section("Camera of the input", "", head, lines))
    if results.calibration:
        note = (
            "Standard deviation over seeds against the error of their mean, in blocks of 8 x 8 pixels: a positive rank "
            "correlation means that the map shows where not to trust the image."
        )
        head = ["degradation", "deviation", "rank correlation with the error"]
        lines = [
            [
                preset,
                format_entry("deviation", calibration.deviation),
                format_entry("rank correlation", calibration.rank_correlation),
            ]
            for preset, calibration in results.calibration.items()
        ]
        sections.append(Section("What is invented", note, head, lines))
    return sections


def _column_head(name: str) -> str:
    metric = describe(name)
    return f"{name}{f' ({metric.unit})' if metric.unit else ''} {'↑' if metric.better == 'higher' else '↓'}"


def _markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _html_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    rows = []
    for name, *values in lines:
        rest = "".join(f"<td>{html.escape(value.replace('**', '').replace('`', ''))}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{html.escape(name.replace("`", ""))}</th>{rest}</tr>')
    return _wide(f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def _wide(table: str) -> str:
    """A table that scrolls sideways, also by keyboard."""
    return f'<div class="wide" tabindex="0">{table}</div>'


def _charts(results: Results) -> list[str]:
    """PSNR over degradations, and over the angle between input and view."""
    parts = []
    psnr = {
        name: {preset: row.novel_views["PSNR"].interval for preset, row in by_preset.items()}
        for name, by_preset in results.by_preset.items()
    }
    presets = list(dict.fromkeys(preset for values in psnr.values() for preset in values))
    if presets:
        series = [
            Series(name, [(presets.index(preset), y) for preset, y in values.items() if y is not None])
            for name, values in psnr.items()
        ]
        parts += [
            "<h2>Error over degradation</h2>",
            line_chart(series, "PSNR of the views (dB)", dict(enumerate(presets))),
        ]
    by_yaw = {row.name: row.by_yaw for row in results.rows if row.preset == results.preset and row.by_yaw}
    if by_yaw:
        series = [Series(name, [((b.low + b.high) / 2, b.psnr) for b in bins]) for name, bins in by_yaw.items()]
        centers = sorted({x for line in series for x, _ in line.points})
        parts += ["<h2>Error over the turn from the input, in degrees of yaw</h2>"]
        parts += [line_chart(series, "PSNR of the views (dB)", {center: f"{center:g}" for center in centers})]
    return parts


def _figures(results: Results, folder: Path) -> list[str]:
    parts = ["<h2>Images</h2>"] if results.figures else []
    for figure in results.figures:
        rows = [
            f'<tr><th scope="row">{html.escape(row.label)}</th>'
            + "".join(f"<td>{_image(folder, name, row.label) if name else ''}</td>" for name in row.images)
            + "</tr>"
            for row in figure.rows
        ]
        caption = f"<figcaption>{html.escape(figure.title)}</figcaption>"
        table = f'<table class="images">{"".join(rows)}</table>'
        parts.append(f"<figure>{_wide(table)}{caption}</figure>")
    return parts


def _sliders(results: Results, folder: Path) -> list[str]:
    """For each figure, the first method's last view over the truth's, uncovered by a slider."""
    parts = []
    for figure in results.figures:
        rows = {row.label: row.images for row in figure.rows}
        shown = [label for label in rows if label not in ("photo", "truth")]
        if not shown or "truth" not in rows or len(rows[shown[0]]) != len(rows["truth"]):
            continue
        label = html.escape(f"{shown[0]} | truth: {figure.title}")
        parts.append(
            f'<figure class="slider"><div>{_image(folder, rows["truth"][-1], "truth")}'
            f"{_image(folder, rows[shown[0]][-1], shown[0])}</div>"
            f'<input type="range" min="0" max="100" value="50" aria-label="{label}">'
            f"<figcaption>{label}</figcaption></figure>"
        )
    return ['<h2>Side by side</h2><div class="sliders">', *parts, "</div>"] if parts else []


def _image(folder: Path, name: str, label: str) -> str:
    """An image inside of the comparison's folder as part of the page."""
    image = load_photo(path_inside(folder, name, "image"))
    if image.width > IMAGE_SIDE:
        image = image.resize((IMAGE_SIDE, round(image.height * IMAGE_SIDE / image.width)))
    content = io.BytesIO()
    image.save(content, format="WEBP", quality=85)
    data = base64.b64encode(content.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img alt="{html.escape(label)}" {size} src="data:image/webp;base64,{data}">'
