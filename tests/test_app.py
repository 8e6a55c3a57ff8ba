"""The page in a real browser: a photo turns, its pixels are the API's, users do not meet, and nothing stays."""

import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SIDE, tiny_pipeline
from PIL import Image
from playwright.sync_api import sync_playwright

from nvb_diffusers import cli, read_face
from nvb_diffusers.app.page import sweep
from nvb_diffusers.app.session import AS_IT_IS, BACKDROPS, Direction, Options, Studio, with_boxes
from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.provenance import mark_image, says_synthetic

PHOTO, SMALL = (ROOT / f"examples/inputs/{name}.jpg" for name in ("astronaut", "astronaut_small"))
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT = 60_000  # ms that the browser waits


# Without a browser


@pytest.fixture(scope="module")
def studio():
    pipe = tiny_pipeline(appearance=True)
    pipe.register_to_config(default_num_inference_steps=2)
    return Studio(pipe)


@pytest.fixture(scope="module")
def two_faces(tmp_path_factory):
    """A photo of 8 MP with a small and a large face, stored turned, as phones do."""
    photo = Image.new("RGB", (3000, 2000), (120, 130, 140))
    astronaut = Image.open(PHOTO).convert("RGB")
    photo.paste(astronaut.resize((800, 800)), (100, 900))
    photo.paste(astronaut.resize((1800, 1800)), (1100, 100))
    path, exif = tmp_path_factory.mktemp("faces") / "two.jpg", Image.Exif()
    exif[0x0112] = 6
    photo.rotate(90, expand=True).save(path, exif=exif)
    return path


def test_a_view_is_that_of_the_call(studio):
    """Assert the pixels of the pipeline's call within a level, at any direction, and that options reach it."""
    session = studio.open(PHOTO)
    face = read_face(PHOTO, studio.pipe)
    assert np.array_equal(np.asarray(session.face), np.asarray(face))
    for options, words in (
        (Options(), {}),
        (Options(BACKDROPS[2], "#102030", 3, 1.5, 7), {"num_inference_steps": 3, "guidance_scale": 1.5}),
    ):
        background = "turn" if not words else (16 / 255, 32 / 255, 48 / 255)
        expected = studio.pipe(
            face,
            cameras=camera_from_angles(20, -5, 3)[None],
            generator=torch.Generator().manual_seed(options.seed),
            background=background,
            **words,
        ).images[0]
        view = studio.view(session, Direction(20, -5, 3), options)
        assert (np.abs(np.asarray(view).astype(int) - np.asarray(expected)) > 1).mean() < 0.01


def test_the_other_face_and_a_ruined_one(studio, two_faces):
    """Assert which face is taken first and by a click, the boxes around both, and that ruining changes what is read."""
    session = studio.open(two_faces)
    assert (session.photo.width, len(session.faces)) == (session.photo.height * 3 // 2, 2)
    scale = session.photo.width / 3000
    chosen = studio.face_at(session, 450 * scale, 1100 * scale)
    assert (session.chosen, chosen) == (0, 1)
    other = studio.choose(session, chosen, AS_IT_IS)
    difference = np.abs(np.asarray(other.face).astype(int) - np.asarray(session.face))
    assert 0 < difference.mean() < 30  # the same person, smaller
    boxes = np.asarray(with_boxes(other)).astype(int) - np.asarray(other.photo)
    assert all(boxes[int(face.box[1]), int(face.box[0])].any() for face in other.faces)
    ruined = studio.choose(session, 0, "severe")
    assert np.abs(np.asarray(ruined.face).astype(int) - np.asarray(session.face)).mean() > 1
    assert not ruined.readings


def test_evidence_has_its_colors(studio):
    """Assert that the map over a view is its gray and the evidence of the call."""
    session, direction = studio.open(PHOTO), Direction(30)
    overlay = np.asarray(studio.evidence(session, direction, Options())).astype(float) / 255
    gray = np.asarray(studio.view(session, direction, Options()).convert("L")).astype(float) / 255
    evidence = 2 * overlay - gray[..., None]
    assert np.abs(evidence.sum(axis=-1) - 1).max() < 0.03
    assert evidence.std(axis=(0, 1)).min() > 0.002  # each kind is somewhere more than elsewhere


def test_orbits_and_sheets(studio):
    """Assert that frames come in parts, there and back, and a sheet of seven views beside the photo."""
    session = studio.open(PHOTO)
    counts = [len(frames) for frames in studio.orbit(session, 0.0, Options())]
    assert counts == [4, 8, 12, 16, 20, 24, 46]
    assert studio.sheet(session, 0.0, Options()).width > 4 * SIDE


def test_old_pictures_are_swept(tmp_path):
    """Assert that what is old goes, at any depth, and that new files and those of the page itself stay."""
    for name in ("old/a.png", "kept.png", "new.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("old/a.png", "kept.png"):
        os.utime(tmp_path / name, (0, 0))
    sweep(tmp_path, {tmp_path / "kept.png"}, 60)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["kept.png", "new.png"]


def test_no_face_is_one_line(studio, tmp_path):
    """Assert the error that the page shows."""
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "sky.png")
    with pytest.raises(ValueError, match=r"no face found in a photo of 300x200 pixels: try another one"):
        studio.open(tmp_path / "sky.png")


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    """Assert exit status 2 before anything is loaded."""
    monkeypatch.setattr(cli.app, "find_spec", lambda name: None)
    assert cli.main(["app"]) == 2
    assert '".[app]"' in capsys.readouterr().err


# In a browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page's address, served by a process of its own whose temporary files are all in one folder."""
    folder = tmp_path_factory.mktemp("server")
    pipe = tiny_pipeline(appearance=True)
    pipe.register_to_config(default_num_inference_steps=2)
    pipe.save_pretrained(folder / "pipeline")
    (folder / "tmp").mkdir()
    program = "import sys; from nvb_diffusers.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["app", "--checkpoint", folder / "pipeline", "--device", "cpu", "--examples", ROOT / "examples/inputs"]
    env = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=env, text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )  # fmt: skip
    line = process.stdout.readline()
    assert "The page is at " in line
    yield line.split()[4], folder / "tmp"
    process.send_signal(signal.SIGHUP)  # as a terminal does that is closed
    assert process.wait(timeout=60) == 0
    process.stdout.close()
    assert not list((folder / "tmp").glob("nvb-face-*"))  # nothing of a photo stays


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


class Visitor:
    """A person before the page."""

    def __init__(self, browser, address, **device):
        self.page = browser.new_context(accept_downloads=True, **device).new_page()
        self.page.set_default_timeout(LIMIT)
        self.hosts = set()
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(address)
        self.page.wait_for_selector("#photo input[type=file]", state="attached")

    def source(self):
        image = self.page.query_selector("#view img")
        return image.get_attribute("src") if image else None

    def next_view(self, act):
        """The pixels of the view that an act leads to."""
        before = self.source()
        act()
        self.page.wait_for_function(
            "before => { const i = document.querySelector('#view img'); return i && i.src && i.src !== before; }",
            arg=before,
        )
        settled = None
        while settled != (settled := self.source()):
            time.sleep(0.7)
        return np.asarray(Image.open(io.BytesIO(self.page.request.get(settled).body())).convert("RGB")).astype(int)

    def give(self, path):
        return self.next_view(lambda: self.page.set_input_files("#photo input[type=file]", str(path)))

    def move(self, name, degrees):
        def act():
            self.page.fill(f"#{name} input[type=number]", str(degrees))
            self.page.keyboard.press("Enter")

        return self.next_view(act)


@pytest.fixture
def visit(browser, server):
    visitors = []

    def begin(**device):
        visitors.append(Visitor(browser, server[0], **device))
        return visitors[-1]

    yield begin
    for visitor in visitors:
        visitor.page.context.close()


def shown(studio, photo, yaw):
    view = studio.view(studio.open(photo), Direction(yaw), Options())
    return np.asarray(mark_image(view)).astype(int)


def assert_same(made, expected):
    assert (np.abs(made - expected) > 2).mean() < 0.01


def test_a_photo_turns_by_slider_and_by_drag(visit, studio):
    """Assert the pixels of the API at yaw 0 and 30, that a drag of 60 px turns by 18 degrees, and no other host."""
    visitor = visit()
    assert_same(visitor.give(PHOTO), shown(studio, PHOTO, 0))
    assert_same(visitor.move("yaw", 30), shown(studio, PHOTO, 30))
    box = visitor.page.locator("#view img").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag():
        visitor.page.mouse.move(x, y)
        visitor.page.mouse.down()
        visitor.page.mouse.move(x + 60, y, steps=6)
        visitor.page.mouse.up()

    assert_same(visitor.next_view(drag), shown(studio, PHOTO, 12))
    assert visitor.page.input_value("#yaw input[type=number]") == "12"
    assert len(visitor.hosts) == 1


def test_an_emptied_number_is_the_one_it_began_with(visit, studio):
    """Assert the view of yaw 0 after the field of another yaw was emptied, and no complaint."""
    visitor = visit()
    visitor.give(PHOTO)
    visitor.move("yaw", 20)
    assert_same(visitor.move("yaw", ""), shown(studio, PHOTO, 0))
    assert not visitor.page.locator(".toast-body").count()


def test_a_finger_turns_it_on_a_phone(visit, studio):
    """Assert that nothing is wider than a phone's screen, and that a touch that moves by 40 px turns by 12 degrees."""
    visitor = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    visitor.give(PHOTO)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.page.locator("#view img").scroll_into_view_if_needed()
    box = visitor.page.locator("#view img").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = visitor.page.context.new_cdp_session(visitor.page)

    def drag():
        for kind, distance in [("touchStart", 0), *(("touchMove", 10 * step) for step in range(1, 5))]:
            points = [{"x": x - distance, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    assert_same(visitor.next_view(drag), shown(studio, PHOTO, 12))
    assert visitor.page.input_value("#yaw input[type=number]") == "12"


def test_keys_turn_it_and_screen_readers_hear_what_is_there(visit, studio):
    """Assert that three arrow keys on the slider turn by three degrees, and names for every control and picture."""
    visitor = visit()
    visitor.give(PHOTO)

    def press():
        visitor.page.focus("#yaw input[type=range]")
        for _ in range(3):
            visitor.page.keyboard.press("ArrowRight")

    assert_same(visitor.next_view(press), shown(studio, PHOTO, 3))
    nameless = visitor.page.evaluate("""() => {
        const named = e => e.alt || e.title || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') ||
            (e.labels && e.labels.length) || e.innerText.trim() || [...e.querySelectorAll('img')].some(i => i.alt);
        return [...document.querySelectorAll('input, button, img, select')]
            .filter(e => e.offsetParent && !named(e) && !(e.tagName === 'IMG' && named(e.closest('button') || e)))
            .map(e => e.outerHTML);
    }""")
    assert nameless == []


def test_two_users_never_meet(visit, studio):
    """Assert that each of two tabs goes on with its own photo, whoever came last."""
    first, second = visit(), visit()
    first.give(PHOTO)
    second.give(SMALL)
    assert_same(first.move("yaw", 20), shown(studio, PHOTO, 20))
    assert_same(second.move("yaw", 20), shown(studio, SMALL, 20))


def test_what_is_no_photo_is_one_clear_line(visit, tmp_path):
    """Assert the line for a text file named as a picture, that nothing is left to be turned, and that it goes on."""
    (tmp_path / "fake.png").write_text("no picture")
    visitor = visit()
    visitor.give(SMALL)
    visitor.page.get_by_label("Remove Image").click()
    visitor.page.wait_for_selector("#photo input[type=file]", state="attached")
    visitor.page.set_input_files("#photo input[type=file]", str(tmp_path / "fake.png"))
    message = visitor.page.locator(".toast-body").first
    message.wait_for()
    text = " ".join(message.inner_text().split())
    assert "cannot read image 'fake.png'" in text
    assert "Traceback" not in text
    assert "/" not in text
    visitor.page.wait_for_selector("#view img", state="detached")
    assert visitor.page.get_by_text("Give a photo first").is_visible()
    visitor.page.get_by_label("Remove Image").click()
    assert visitor.give(PHOTO).shape == (SIDE, SIDE, 3)


def test_the_boxes_go_with_their_photo(visit, two_faces):
    """Assert that faces can be clicked while the photo is there, and not after it was taken away."""
    visitor = visit()
    visitor.give(two_faces)
    visitor.page.wait_for_selector("#found img")
    visitor.page.get_by_label("Remove Image").click()
    visitor.page.wait_for_selector("#found img", state="detached")
    assert visitor.page.get_by_text("Give a photo first").is_visible()


def test_downloads_are_marked(visit, tmp_path, capsys):
    """Assert that view and clip, as they are downloaded, say that they are synthetic, by the command as well."""
    visitor = visit()
    visitor.give(PHOTO)
    for tab, make, save, name in (
        ("Turn", None, "#save_view", "view.png"),
        ("Orbit", "#make_clip", "#save_clip", "orbit.mp4"),
    ):
        visitor.page.get_by_role("tab", name=tab).click()
        if make is not None:
            visitor.page.click(make)
            visitor.page.wait_for_selector("video")
        with visitor.page.expect_download() as download:
            visitor.page.click(save)
        path = tmp_path / name
        download.value.save_as(path)
        assert Path(path).stat().st_size > 1000
        assert says_synthetic(path)
        assert cli.main(["verify", str(path)]) == 0


SERVING = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import tiny_pipeline
from nvb_diffusers.app.page import serve
serve(tiny_pipeline(appearance=True), [], "127.0.0.1", None)
"""


def test_a_page_that_is_told_to_end_leaves_nothing(tmp_path):
    """Assert that served from Python, too, as a Space does, the page's folder goes when SIGTERM comes."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    words = [sys.executable, "-c", SERVING, str(ROOT / "tests")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True) as process:
        line = process.stdout.readline()
        while line and "The page is at " not in line:
            line = process.stdout.readline()
        (folder,) = tmp_path.glob("nvb-face-*")
        (folder / "a photo.png").write_bytes(b"of somebody")
        process.terminate()
        process.wait(timeout=60)
    assert not list(tmp_path.glob("nvb-face-*"))


def test_the_space_serves_the_page(monkeypatch):
    """Assert that the script of the Space shows the checkpoint that it is told, at the port that Spaces show."""
    served = []
    monkeypatch.setattr("nvb_diffusers.loading.load_pipeline", lambda *args, **words: (args, words))
    monkeypatch.setattr("nvb_diffusers.app.page.serve", lambda *args, **words: served.append((args, words)))
    monkeypatch.setenv("CHECKPOINT", "me/face")
    runpy.run_path(str(ROOT / "examples/space/app.py"))
    (((checkpoint,), _),), words = served[0]
    assert checkpoint == "me/face"
    assert words == {"examples": [], "host": "0.0.0.0", "port": 7860}
