"""Measure how the code is kept, and say where it is above a limit: one command for any maintainer, in a second.

    python benchmarks/house.py

It reads the source without running it and prints a table, then what breaks a rule; it exits with 1 if anything does.

- Arguments of `NVBFacePipeline.__call__` are all but `self`, `*` and `**` ones included; its length is in lines, from
  `def` to the last statement.
- A room is a folder of the package, the package's own files, or a folder of scripts.
- Two training scripts share a line of the shorter one, blank lines left out and the others stripped of their
  indentation, if it stands anywhere in the other one; imports and closing brackets count.
- A file is typed if it lies where `[tool.mypy]` of pyproject.toml looks; all functions there must be annotated.
- The import contract is `LAYERS`, `NEVER` and `ALONE` below, and no circle among modules.
"""

import ast
import itertools
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/nvb_diffusers"
SCRIPTS = ("training", "benchmarks", "examples")

MAX_CALL_ARGUMENTS = 15
MAX_CALL_LINES = 90
MAX_FILE_LINES = 450
MAX_SHARED = 0.4

# Modules and sub-packages from the ground up: each may import from its own layer and from those below it.
LAYERS: tuple[set[str], ...] = (
    {"camera", "files", "option_types", "provenance", "schema", "stopping"},
    {
        "camera_fit",
        "credentials",
        "data",
        "warp",
        "face_crop",
        "conditioning",
        "denoising",
        "pipeline_files",
        "safetensors_only",
    },
    {"models", "training", "pipeline_inputs", "pipeline_output"},
    {"pipeline_nvb_face"},
    {"__init__"},  # the public names; what stands above may import them from the package
    {"hub", "loading", "person", "reading", "uncertainty", "heads"},
    {"app", "batch", "evaluation"},
    {"cli"},
)
NEVER = {
    ("pipeline_nvb_face", "models"),  # components are injected, so that any of their kind will do
    ("evaluation", "training"),  # whoever measures needs nothing to train
}
ALONE = "heads"  # nothing else imports it


def modules() -> dict[str, Path]:
    """Every module of the package, named as it is imported, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(source: str, package: tuple[str, ...]) -> set[str]:
    """The absolute name of everything that a file of a (sub-)package imports, at any depth of its code.

    What is taken from a module is named after it, as in `nvb_diffusers.camera.orbit_cameras`.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def imports(path: Path) -> set[str]:
    """What a file of the package imports."""
    return imported_names(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE.parent).parent.parts)


def import_graph() -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports."""
    files = modules()

    def module_of(name: str) -> str | None:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name or None

    return {
        module: {found for name in imports(path) if (found := module_of(name)) is not None}
        for module, path in files.items()
    }


def room(module: str) -> str:
    """The module or sub-package of the layers that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def contract_breaches(graph: dict[str, set[str]]) -> list[str]:
    """One line for each import against the contract."""
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    breaches = [f"{name} stands in no layer of benchmarks/house.py" for name in {*map(room, graph)} - layer.keys()]
    for module, imported in sorted(graph.items()):
        for other in sorted(imported):
            ours, theirs = room(module), room(other)
            if ours == theirs:
                continue
            if layer.get(theirs, 0) > layer.get(ours, len(LAYERS)):
                breaches.append(f"{module} imports {other}, which stands above it")
            if (ours, theirs) in NEVER or theirs == ALONE:
                breaches.append(f"{module} imports {other}, which it must never know")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        breaches.append("a circle of imports: " + " -> ".join(reversed(error.args[1])))
    return breaches


def call_function() -> ast.FunctionDef:
    """The pipeline's `__call__`, below its overloads."""
    (cls,) = [
        node
        for node in ast.parse((PACKAGE / "pipeline_nvb_face.py").read_bytes()).body
        if isinstance(node, ast.ClassDef) and node.name == "NVBFacePipeline"
    ]
    return [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__call__"][-1]


def count_lines(path: Path) -> int:
    """The lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """The length in lines and the name of each function of a file."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield length(node), f"{path.name}: {node.name}"


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, without its decorators."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def rooms() -> dict[str, list[Path]]:
    """The Python files of each room."""
    found: dict[str, list[Path]] = {}
    for path in modules().values():
        found.setdefault("/".join(path.relative_to(ROOT).parts[:-1]), []).append(path)
    return found | {folder: sorted((ROOT / folder).glob("*.py")) for folder in SCRIPTS}


def shared_lines(one: Path, other: Path) -> float:
    """The share of the shorter script's lines that the other one has too."""
    texts = [[line.strip() for line in path.read_text(encoding="utf-8").splitlines()] for path in (one, other)]
    shorter, longer = sorted(([line for line in lines if line] for lines in texts), key=len)
    return sum(line in set(longer) for line in shorter) / len(shorter)


def untyped_share() -> float:
    """The share of lines of package, training scripts and benchmarks that mypy does not check."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    typed = [ROOT / folder for folder in settings["files"]]
    lines = {
        path: count_lines(path) for name in ("src", "training", "benchmarks") for path in (ROOT / name).rglob("*.py")
    }
    unseen = [n for path, n in lines.items() if not any(path.is_relative_to(folder) for folder in typed)]
    return sum(unseen) / sum(lines.values())


def count_any() -> int:
    """How often the package says `Any`, imports left out."""
    trees = [ast.parse(path.read_bytes()) for path in modules().values()]
    return sum(isinstance(node, ast.Name) and node.id == "Any" for tree in trees for node in ast.walk(tree))


def measures() -> Iterator[tuple[str, float, float | None, str]]:
    """Each measure, its value, the limit that it has if any, and where the value was found."""
    call = call_function()
    named = [*call.args.posonlyargs, *call.args.args, *call.args.kwonlyargs][1:]
    starred = [argument for argument in (call.args.vararg, call.args.kwarg) if argument is not None]
    yield "arguments of `__call__`", len(named) + len(starred), MAX_CALL_ARGUMENTS, ""
    hidden = [argument.arg for argument in named if argument.arg.startswith("_")]
    yield "hidden arguments of `__call__`", len(hidden), 0, ", ".join(hidden)
    yield "lines of `__call__`", length(call), MAX_CALL_LINES, ""
    for name, paths in rooms().items():
        longest = max(paths, key=count_lines)
        yield f"longest file of {name}", count_lines(longest), MAX_FILE_LINES, longest.name
        lines, function = max(itertools.chain.from_iterable(map(functions, paths)), default=(0, ""))
        yield f"longest function of {name}", lines, None, function
    for one, other in itertools.combinations(sorted((ROOT / "training").glob("train_*.py")), 2):
        yield "shared lines (%)", round(100 * shared_lines(one, other)), 100 * MAX_SHARED, f"{one.stem}, {other.stem}"
    yield "lines outside of mypy (%)", round(100 * untyped_share(), 1), 0, "src, training, benchmarks"
    yield "`Any` in src", count_any(), None, ""


def main() -> int:
    """Print the table and what breaks a rule; return 1 if anything does."""
    rows = list(measures())
    print("| measure | value | limit | where |\n| --- | --- | --- | --- |")
    for measure, value, limit, where in rows:
        print(f"| {measure} | {value:g} | {'' if limit is None else format(limit, 'g')} | {where} |")
    too_much = [
        f"{measure}: {value:g}, at most {limit:g} is accepted {where and f'({where})'}"
        for measure, value, limit, where in rows
        if limit is not None and value > limit
    ]
    broken = too_much + contract_breaches(import_graph())
    print(f"\nImport contract and limits: {len(broken) or 'nothing'} broken")
    for line in broken:
        print(f"- {line}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
