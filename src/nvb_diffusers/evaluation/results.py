"""What scores and comparisons hold on disk, as data classes: `scores.jsonl`, `summary.json` and `comparison.json`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from nvb_diffusers.evaluation.intervals import Interval
from nvb_diffusers.evaluation.test_sets import TestSetSettings
from nvb_diffusers.schema import JsonData

NOVEL_VIEWS, RESTORATION, CONSISTENCY = TASKS = ("novel_views", "restoration", "consistency")
TASK_TITLES = dict(zip(TASKS, ("Novel views", "Restoration", "Consistency across views"), strict=True))


@dataclass(frozen=True)
class Score(JsonData):
    """What was measured of one image, or of the views of one identity together."""

    task: str
    identity: str
    view: int | None
    """None for all views together."""
    sha256: str
    """Of what was measured."""
    values: dict[str, float | None]
    """By measure; None where no face was found."""


@dataclass(frozen=True)
class Entry(JsonData):
    """A measure over many images: its mean with a 95 % interval, and how many images have a value and how many none."""

    mean: float | None
    low: float | None
    high: float | None
    count: int
    failures: int

    @classmethod
    def of(cls, interval: Interval | None, count: int, failures: int = 0) -> Self:
        """The entry of an interval; None where no image has a value."""
        if interval is None:
            return cls(None, None, None, count, failures)
        return cls(interval.mean, interval.low, interval.high, count, failures)

    @property
    def interval(self) -> Interval | None:
        """None where no image has a value."""
        if self.mean is None or self.low is None or self.high is None:
            return None
        return Interval(self.mean, self.low, self.high)


@dataclass(frozen=True)
class Summary(JsonData):
    """The content of `summary.json`."""

    test_set: TestSetSettings
    manifest: str
    """sha256 of the test set's."""
    configuration: dict[str, Any] | None
    """What made the predictions, where they say so."""
    missing: dict[str, int]
    """How many images are not there, by task."""
    tasks: dict[str, dict[str, Entry]]
    """By task, then by measure."""
    not_run: dict[str, str]
    """Why a measure was not taken, by its name."""


@dataclass(frozen=True)
class SourceCamera(JsonData):
    """How far the cameras that a method saw the inputs with are from the true ones, in degrees."""

    mean: Interval
    median: float


@dataclass(frozen=True)
class YawBin(JsonData):
    """PSNR of the views whose yaw is `low` to `high` degrees from that of the input."""

    low: float
    high: float
    psnr: Interval


@dataclass(frozen=True)
class Result(JsonData):
    """One method of a comparison on one degradation."""

    name: str
    preset: str
    summary: Summary
    source_camera: SourceCamera | None = None
    """None where the method predicts none."""
    by_yaw: tuple[YawBin, ...] = ()

    @property
    def novel_views(self) -> dict[str, Entry]:
        """Scores of the views, by measure."""
        return self.summary.tasks.get(NOVEL_VIEWS, {})


@dataclass(frozen=True)
class Calibration(JsonData):
    """Whether the deviation of several samples tells where they are wrong, over identities."""

    deviation: Interval
    rank_correlation: Interval
    """Of deviation and error, -1 to 1."""


@dataclass(frozen=True)
class Requirement(JsonData):
    """A measure, and what it should be for the pipeline to be worth using."""

    measure: str
    value: float
    unit: str
    required: str
    """Empty where the value is told without being asked for."""
    met: bool
    interval: Interval | None = None


@dataclass(frozen=True)
class FigureRow(JsonData):
    """Images of one line of a figure, as paths in the comparison's folder; an empty path leaves a gap."""

    label: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Figure(JsonData):
    """Lines of images one below another."""

    title: str
    rows: tuple[FigureRow, ...]


@dataclass(frozen=True)
class Results(JsonData):
    """The content of `comparison.json`."""

    title: str
    preset: str
    """The main degradation."""
    rows: tuple[Result, ...] = ()
    not_run: dict[str, str] = field(default_factory=dict)
    """Why a method was not run, by its name."""
    calibration: dict[str, Calibration] = field(default_factory=dict)
    """By degradation."""
    requirements: tuple[Requirement, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def by_preset(self) -> dict[str, dict[str, Result]]:
        """The results of each method that was run on several degradations, by its name and the degradation."""
        return {name: results for name, results in index_results(self.rows).items() if len(results) > 1}


def index_results(rows: Sequence[Result]) -> dict[str, dict[str, Result]]:
    """Results by the name of the method, then by degradation."""
    index: dict[str, dict[str, Result]] = {}
    for row in rows:
        index.setdefault(row.name, {})[row.preset] = row
    return index
