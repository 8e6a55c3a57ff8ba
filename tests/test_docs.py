"""What README and docs show: commands that parse, imports that work, links that lead somewhere, numbers told once."""

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import load_script

import nvb_diffusers
from nvb_diffusers.cli import _join_ranges, build_parser
from nvb_diffusers.heads.cli import parse_args as parse_heads

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
INDEX_PAGE = ROOT / "README.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LAUNCHERS = ("python", "accelerate", "torchrun")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for found, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def shell_commands(text: str) -> list[list[str]]:
    """The commands of a shell block, continued lines joined, each as its words without comments and variables."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        parts = [list(group) for is_and, group in itertools.groupby(words, lambda word: word == "&&") if not is_and]
        commands += [list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), part)) for part in parts]
    return commands


def inline_commands(page: Path) -> list[list[str]]:
    """The words of `nvb-face ...` and `python SCRIPT ...` within sentences; a command's bare name asks for its help."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
    ours = [span for span in spans if re.match(r"nvb-\w+ |python (-m )?(training|benchmarks|examples)\b", span)]
    commands = [words for span in ours for words in shell_commands(span)]
    return [words if re.search(r"[^a-z -]| -", " ".join(words)) else [*words, "--help"] for words in commands]


COMMANDS = [
    pytest.param(words, id=f"{name(page)}-{number}")
    for page in PAGES
    for number, words in enumerate(
        [*itertools.chain(*map(shell_commands, blocks(page, "bash"))), *inline_commands(page)]
    )
]
PYTHON = [
    pytest.param(text, id=f"{name(page)}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "python"))
]


def anchors(page: Path) -> set[str]:
    """The headings of a page as both mkdocs and GitHub spell their anchors; of an API page also its objects."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def parse_script(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script's own parser read the arguments; one without a parser takes files alone, if anything."""
    folder, file = script.split("/")
    if "def parse_args" not in read(script):
        assert not [word for word in arguments if word.startswith("-")]
        return
    monkeypatch.setattr(sys, "argv", [file, *arguments])
    monkeypatch.syspath_prepend(ROOT)
    load_script(file.removesuffix(".py"), folder).parse_args()


def check_extras(words: list[str]) -> None:
    """Assert that the extras of `.[...]` exist."""
    for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(re.findall(r'^    "(\w+)": ', read("setup.py"), re.MULTILINE)) | {"test"}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_readers_of_pages_see_what_they_should():
    """Assert that continued lines, comments, variables and chains are read as a shell would."""
    text = "A=1 python x.py \\\n    --a 1  # why\n\npip install . && nvb-face info"
    assert shell_commands(text) == [
        ["python", "x.py", "--a", "1"],
        ["pip", "install", "."],
        ["nvb-face", "info"],
    ]
    assert len(COMMANDS) > 30
    assert len(PYTHON) > 10


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words, monkeypatch):
    """Assert that every command of this project that a page shows is one that its own parser takes."""
    program, arguments = words[0], words[1:]
    script = next((word for word in arguments if re.match(r"(training|benchmarks|examples)[/.]\w+", word)), None)
    parsers = {"nvb-face": lambda given: build_parser().parse_args(_join_ranges(given)), "nvb-heads": parse_heads}
    if program in parsers and arguments[-1:] == ["--help"]:
        with pytest.raises(SystemExit) as ended:
            parsers[program](arguments)
        assert ended.value.code == 0
    elif program in parsers:
        parsers[program](arguments)
    elif program in LAUNCHERS and script:
        rest = arguments[arguments.index(script) + 1 :]
        parse_script(script.removesuffix(".py").replace(".", "/") + ".py", rest, monkeypatch)
    elif program == "pip":
        check_extras(words)
    elif "/" in program:
        assert (ROOT / program).is_file()


@pytest.mark.parametrize("text", PYTHON)
def test_python_compiles_and_imports(text):
    """Assert that every Python block compiles, and that what it imports is there."""
    for node in ast.walk(ast.parse(textwrap.dedent(text))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert importlib.util.find_spec(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """Assert that the file of every relative link exists, and in it the heading that the link names."""
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=name)
def test_documented_objects_exist(page):
    """Assert that the modules and classes whose docstrings a page shows are there."""
    for path in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        parent, _, attribute = path.rpartition(".")
        assert hasattr(importlib.import_module(parent), attribute) or importlib.util.find_spec(path)


def test_the_drawing_shows_the_layers():
    """Assert that the floors of the drawing are the layers that imports are held to, and name all that is there."""
    house = load_script("house", "benchmarks")
    package = ROOT / "src/nvb_diffusers"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    layers = [layer & rooms for layer in house.LAYERS if layer != {"__init__"}]
    page = "".join(blocks(ROOT / "docs/architecture.md", "text"))
    drawing = page.split("┌─ nvb_diffusers")[1].split("└─")[0]
    floors = [set(re.findall(r"^│  (\w+)", floor, re.MULTILINE)) for floor in drawing.split("├─")]
    assert floors[::-1] == layers
    assert rooms - set().union(*floors) == {"__init__"}


def test_paths_within_sentences_exist():
    """Assert that every path of the repository that a page names in code type is there."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:src|docs|tests|training|benchmarks|examples)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_readme_fits_two_screens():
    """Assert that README has at most 90 lines, and that an index page would see no link that leads nowhere."""
    assert len(INDEX_PAGE.read_text(encoding="utf-8").splitlines()) <= 90
    done = subprocess.run(
        [sys.executable, "setup.py", "--long-description"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "nvb_diffusers" in done.stdout
    assert [link for link in LINK.findall(done.stdout) if not link.startswith("https://")] == []


def test_numbers_stand_once():
    """Assert that README and model card share no row of a table with each other nor with any page."""
    seen: dict[str, str] = {}
    for page in PAGES:
        for row in set(re.findall(r"^\|.*\d.*\|$", page.read_text(encoding="utf-8"), re.MULTILINE)):
            assert seen.setdefault(row, page.name) == page.name, row


def test_one_version():
    """Assert that the citation names the package's version."""
    assert f"\nversion: {nvb_diffusers.__version__}\n" in read("CITATION.cff")
