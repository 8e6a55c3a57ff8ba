"""Time the page in a real browser: until it is there, until a photo's first view, and until the view after a move.

    python -m benchmarks.app_speed

Needs chromium and playwright (`pip install ".[test]"`), and a machine that does nothing else.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from nvb_diffusers import DEFAULT_CHECKPOINT
from nvb_diffusers.option_types import OneLineParser, a_path, filled_text, whole_number

PHOTO = Path(__file__).parents[1] / "examples/inputs/astronaut.jpg"
COMMAND = "import sys; from nvb_diffusers.cli import main; sys.exit(main(sys.argv[1:]))"
CHANGED = "before => { const i = document.querySelector('#view img'); return i && i.src && i.src !== before; }"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=filled_text, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--photo", type=a_path, default=PHOTO)
    parser.add_argument("--moves", type=whole_number(1), default=5)
    return parser.parse_args(argv)


def until_changed(page: Page, act: Callable[[], object]) -> float:
    """Seconds from an act until another view is shown."""
    image = page.query_selector("#view img")
    before = None if image is None else image.get_attribute("src")
    start = time.perf_counter()
    act()
    page.wait_for_function(CHANGED, arg=before)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    args = parse_args(argv)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium is installed")
    start = time.perf_counter()
    words = [sys.executable, "-c", COMMAND, "app", "--checkpoint", args.checkpoint]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None  # it is piped
        address = server.stdout.readline().split()[4]
        print(f"| what | seconds |\n|---|---|\n| the page is there | {time.perf_counter() - start:.1f} |")
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.goto(address)
        page.wait_for_selector("#photo input[type=file]", state="attached")
        first = until_changed(page, lambda: page.set_input_files("#photo input[type=file]", str(args.photo)))
        print(f"| a photo's first view | {first:.2f} |")
        times = []
        for move in range(args.moves):
            time.sleep(1)  # until nothing is under way
            page.fill("#yaw input[type=number]", str(10 + 5 * move))
            times.append(until_changed(page, lambda: page.keyboard.press("Enter")))
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        print(f"| the view after a move, {args.moves} times | {spread} |")
        server.terminate()


if __name__ == "__main__":
    main()
