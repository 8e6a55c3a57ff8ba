"""What a comparison compares, on what: the JSON file that says so, and where the parts of its folder are."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.evaluation.methods import METHODS, Method
from nvb_diffusers.files import read_json
from nvb_diffusers.schema import JsonData

PACKAGED = Path(__file__).with_name("comparisons")


@dataclass(frozen=True)
class Row(JsonData):
    """One method of a comparison; in the file, its options lie beside the names below.

    Args:
        name: as the tables call it.
        method: one of `METHODS`.
        presets: degradations it is run on; None for the comparison's main one.
        num_orbits: identities of whom it makes a dense orbit on the main preset.
        options: of the method's class.
    """

    name: str
    method: str
    presets: tuple[str, ...] | None = None
    num_orbits: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def gathered(cls, values: object) -> object:
        """A row of a file with its options together."""
        if not isinstance(values, dict):
            return values
        own = {name.name for name in fields(cls)} - {"options"}
        options = {name: value for name, value in values.items() if name not in own}
        return {name: value for name, value in values.items() if name in own} | {"options": options}

    def build(self, data_dir: str | None = None, num_inference_steps: int | None = None) -> Method:
        """The method with its options; what `Comparison` says of all methods holds where they say nothing."""
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}, expected one of {', '.join(METHODS)}")
        shared: dict[str, object] = {"data_dir": data_dir, "num_inference_steps": num_inference_steps}
        return METHODS[self.method].from_json(shared | self.options)


@dataclass(frozen=True)
class TestSetOptions(JsonData):
    """Arguments of `make_test_set` besides the degradation."""

    __test__ = False  # its name must not make a test of it

    seed: int = 0
    split: str = "test"
    num_identities: int = 60
    num_target_views: int = 7
    resolution: int = 128


@dataclass(frozen=True)
class Comparison(JsonData):
    """What to compare, on what.

    Args:
        title: of the report.
        rows: the methods; the first is the one that the requirements are asked of, and whose samples are calibrated.
        preset: the main degradation.
        test_set: how each test set is made.
        num_samples: seeds for each view in the calibration.
        num_calibrated: identities in the calibration; 0 leaves it out.
        num_figures: identities shown.
        num_inference_steps: of every pipeline; None for what suits each.
    """

    title: str
    rows: tuple[Row, ...]
    preset: str
    test_set: TestSetOptions
    num_samples: int = 4
    num_calibrated: int = 0
    num_figures: int = 6
    num_inference_steps: int | None = None

    @classmethod
    def from_json(cls, values: object) -> Self:
        """Read a comparison; a method or an option that is not known raises a ValueError, too."""
        if isinstance(values, dict) and isinstance(values.get("rows"), list):
            values = {**values, "rows": [Row.gathered(row) for row in values["rows"]]}
        comparison = super().from_json(values)
        for row in comparison.rows:
            row.build()
        return comparison

    def presets(self, row: Row) -> tuple[str, ...]:
        """The degradations that a row is run on."""
        return (self.preset,) if row.presets is None else row.presets


def read_comparison(name: str | Path) -> Comparison:
    """The comparison that a JSON file describes, or one of the packaged ones by its name.

    Raises:
        ValueError: there is no such comparison, or it holds a name that is unknown, missing or there twice.
    """
    path = Path(name)
    if not path.is_file():
        packaged = {file.stem: file for file in sorted(PACKAGED.glob("*.json"))}
        if str(name) not in packaged:
            raise ValueError(f"'{name}' is neither a file nor a packaged comparison ({', '.join(packaged)})")
        path = packaged[str(name)]
    values = read_json(path)
    try:
        comparison = Comparison.from_json(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names = [row_folder(row.name) for row in comparison.rows]
    if not names:
        raise ValueError(f"{path}: rows is empty, expected at least one method")
    if "" in names:
        raise ValueError(f"{path}: a row's name has no letter or digit, which its folder is named by: {names}")
    for preset in (comparison.preset, *(preset for row in comparison.rows for preset in comparison.presets(row))):
        if preset not in PRESETS:
            raise ValueError(f"{path}: preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two rows have the same name, or names that differ in punctuation alone: {names}")
    return comparison


@dataclass(frozen=True)
class ComparisonFolder:
    """Where things are in the folder of a comparison."""

    path: Path

    def test_set(self, preset: str) -> Path:
        """The test set of a degradation."""
        return self.path / "sets" / preset

    def predictions(self, row: str, preset: str) -> Path:
        """What the method of this name made."""
        return self.path / "predictions" / row_folder(row) / preset

    def scores(self, row: str, preset: str) -> Path:
        """Its scores."""
        return self.path / "scores" / row_folder(row) / preset

    @property
    def results(self) -> Path:
        """All results, for the report."""
        return self.path / "comparison.json"

    def calibration(self, preset: str) -> Path:
        """The calibration on a degradation."""
        return self.path / "calibration" / f"{preset}.json"


def row_folder(name: str) -> str:
    """The name of a row as a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
