"""The page: what is where, and which control does what. It asks nothing of any other computer."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr
from PIL import Image

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.app.session import (
    AS_IT_IS,
    BACKDROPS,
    ORBIT_CAMERAS,
    Direction,
    Options,
    Session,
    Studio,
    with_boxes,
)
from nvb_diffusers.app.style import CSS, JS, LEGEND
from nvb_diffusers.data.degradation import PRESETS
from nvb_diffusers.files import one_line
from nvb_diffusers.option_types import LARGEST_SEED
from nvb_diffusers.provenance import mark_image, save_marked, save_marked_video
from nvb_diffusers.stopping import stop_by_signals

TITLE = "Turn a head"
INTRO = (
    "# Turn a head\nOne photo of a face, however small or ruined: drag in the picture to see it from elsewhere. "
    "What you get is **generated**, says so on its plate, and is no evidence of how somebody looks."
)
NO_PHOTO = "Give a photo first: drop one on the left, or take an example."
LIVES, SWEPT_EVERY = 600, 30  # seconds that a picture may lie in the server's temporary folder, and until the next look
WAITING = 16  # users that may wait in the queue
FPS = 12


def build_page(pipe: NVBFacePipeline, examples: list[str]) -> gr.Blocks:
    """The page of a pipeline.

    Args:
        pipe: with a view transformer.
        examples: paths of photos to try.
    """
    studio = Studio(pipe)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        session = gr.State(time_to_live=LIVES * 6)
        gr.Markdown(INTRO, elem_id="title")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                photo = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], label="Photo", elem_id="photo", height=280,
                    image_mode=None, buttons=[], alt_text="the photo that was given",
                )  # fmt: skip
                photo.preprocess = _path_of  # type: ignore[method-assign]  # `load_photo` reads it, by the one rule
                if examples:
                    gr.Examples(examples, photo, label="Examples", api_visibility="private")
                found = gr.Image(
                    label="Faces: click the one you mean", interactive=False, visible=False, elem_id="found",
                    format="jpeg", height=200, buttons=[], alt_text="the photo with a box around each face",
                )  # fmt: skip
                said = gr.Markdown(NO_PHOTO, elem_id="said")
                ruin = gr.Dropdown(
                    [AS_IT_IS, *sorted(PRESETS.keys() - {"clean"})], value=AS_IT_IS, label="Ruin it", elem_id="ruin",
                    info="What survives when the photo is degraded first?",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Turn"):
                        view = gr.Image(
                            label="View", interactive=False, elem_id="view", format="png", buttons=["fullscreen"],
                            alt_text="the view from the chosen direction",
                        )  # fmt: skip
                        with gr.Row():
                            yaw = gr.Slider(-60, 60, 0, step=1, label="Yaw", elem_id="yaw", info="+ from their left")
                            pitch = gr.Slider(-30, 30, 0, step=1, label="Pitch", elem_id="pitch", info="+ from above")
                            roll = gr.Slider(-30, 30, 0, step=1, label="Roll", elem_id="roll", info="of the camera")
                        evidence = gr.Checkbox(
                            False, label="Show what is seen and what is invented", elem_id="evidence",
                            visible=pipe.appearance is not None,
                        )  # fmt: skip
                        legend = gr.HTML(LEGEND, visible=False)
                        save_view = gr.DownloadButton("Download this view", interactive=False, elem_id="save_view")
                    with gr.Tab("Restore"):
                        restored = gr.ImageSlider(label="Before and after", interactive=False, format="png", buttons=[])
                        make_restored = gr.Button("Restore", variant="primary", elem_id="restore")
                        save_restored = gr.DownloadButton("Download", interactive=False)
                    with gr.Tab("All at once"):
                        sheet = gr.Image(
                            label="Seven views", interactive=False, format="png", elem_id="sheet",
                            alt_text="the photo and seven views of it",
                        )  # fmt: skip
                        make_sheet = gr.Button("Seven views", variant="primary", elem_id="make_sheet")
                        save_sheet = gr.DownloadButton("Download", interactive=False)
                    with gr.Tab("Orbit"):
                        clip = gr.Video(label="There and back", interactive=False, loop=True, autoplay=True, buttons=[])
                        with gr.Row():
                            make_clip = gr.Button("Make the clip", variant="primary", elem_id="make_clip")
                            cancel = gr.Button("Cancel")
                        save_clip = gr.DownloadButton("Download", interactive=False, elem_id="save_clip")
                with gr.Column():
                    backdrop = gr.Radio(list(BACKDROPS), value=BACKDROPS[0], label="Backdrop")
                    color = gr.ColorPicker("#ffffff", label="Color of the backdrop", visible=False)
                    with gr.Accordion("Advanced", open=False):
                        steps = gr.Slider(0, 50, 0, step=1, label="Denoising steps", info="0 for what suits the model")
                        guidance = gr.Slider(0, 5, 0, step=0.1, label="Guidance", info="0 for what suits the model")
                        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)

        options: list[Any] = [backdrop, color, steps, guidance, seed]
        directions: list[Any] = [yaw, pitch, roll]
        for slider in (*directions, steps, guidance):
            _forgive_no_number(slider)

        def opened(path: str | None, preset: str) -> list[Any]:
            nothing = [None, gr.Image(None, visible=False), NO_PHOTO]
            if path is None:
                return nothing
            try:
                made = studio.open(path, preset)
            except (ValueError, OSError) as error:  # and the photo before is not turned any more
                gr.Warning(one_line(error), duration=10)
                return nothing
            boxes = gr.Image(with_boxes(made) if len(made.faces) > 1 else None, visible=len(made.faces) > 1)
            return [made, boxes, _told(studio, made)]

        def chosen(made: Session | None, preset: str, event: gr.SelectData) -> list[Any]:
            made = _given(made)
            made = studio.choose(made, studio.face_at(made, *event.index), preset)
            return [made, with_boxes(made), _told(studio, made)]

        def ruined(made: Session | None, preset: str) -> list[Any]:
            if made is None:
                return [None, NO_PHOTO]
            made = studio.choose(made, made.chosen, preset)
            return [made, _told(studio, made)]

        def turned(made: Session | None, shows_evidence: bool, *values: Any) -> list[Any]:
            if made is None:
                return [None, gr.DownloadButton(interactive=False)]
            direction, chosen_options = Direction(*values[:3]), _options(*values[3:])
            make = studio.evidence if shows_evidence else studio.view
            image = make(made, direction, chosen_options)
            name = f"{'evidence' if shows_evidence else 'view'}_yaw{direction.yaw:+.0f}.png"
            return [mark_image(image), gr.DownloadButton(value=_saved(image, name), interactive=True)]

        def restoring(made: Session | None, *values: Any) -> list[Any]:
            before, after = studio.restore(_given(made), _options(*values))
            return [
                (before, mark_image(after)),
                gr.DownloadButton(value=_saved(after, "restored.png"), interactive=True),
            ]

        def all_at_once(made: Session | None, tilt: float, *values: Any) -> list[Any]:
            image = studio.sheet(_given(made), tilt, _options(*values))
            return [mark_image(image), gr.DownloadButton(value=_saved(image, "views.png"), interactive=True)]

        def orbiting(made: Session | None, tilt: float, *values: Any) -> Iterator[list[Any]]:
            progress, frames = gr.Progress(), list[Image.Image]()
            progress(0, desc="painting")
            for frames in studio.orbit(_given(made), tilt, _options(*values)):
                progress(min(1.0, len(frames) / ORBIT_CAMERAS), desc="painting")
                yield [gr.skip(), gr.skip()]
            path = str(Path(tempfile.mkdtemp()) / "orbit.mp4")
            save_marked_video(frames, path, FPS)
            yield [path, gr.DownloadButton(value=path, interactive=True)]

        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        looking: dict[str, Any] = {"fn": _told_errors(turned), "inputs": [session, evidence, *directions, *options],
                   "outputs": [view, save_view], "show_progress": "minimal", **model}  # fmt: skip
        photo.change(opened, [photo, ruin], [session, found, said], **model).success(**looking)
        found.select(_told_errors(chosen), [session, ruin], [session, found, said], **model).success(**looking)
        ruin.change(_told_errors(ruined), [session, ruin], [session, said], **model).success(**looking)
        for control in (*directions, evidence, *options):
            control.change(trigger_mode="always_last", **looking)
        backdrop.change(lambda kind: gr.ColorPicker(visible=kind == BACKDROPS[2]), backdrop, color, queue=False,
                        api_visibility="private")  # fmt: skip
        evidence.change(lambda shown: gr.HTML(visible=shown), evidence, legend, queue=False, api_visibility="private")
        make_restored.click(_told_errors(restoring), [session, *options], [restored, save_restored], **model)
        make_sheet.click(_told_errors(all_at_once), [session, pitch, *options], [sheet, save_sheet], **model)
        running = make_clip.click(
            _told_errors_of_steps(orbiting), [session, pitch, *options], [clip, save_clip], **model
        )
        cancel.click(None, cancels=[running], api_visibility="private")
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


def serve(pipe: NVBFacePipeline, examples: list[str], host: str, port: int | None) -> None:
    """Show the page until the process is told to stop; nothing of a photo stays on the disk.

    Args:
        pipe: with a view transformer.
        examples: paths of photos to try.
        host: name or address to listen at.
        port: None for the first that is free from 7860 on.

    Raises:
        OSError: the port is taken.
    """
    with stop_by_signals(), tempfile.TemporaryDirectory(prefix="nvb-face-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        page = build_page(pipe, examples)
        _, address, _ = page.launch(
            server_name=host, server_port=port, css=CSS, js=JS, theme=gr.themes.Soft(primary_hue="orange"),
            footer_links=[], quiet=True, prevent_thread_lock=True, ssr_mode=False, share=False, max_file_size="40mb",
            enable_monitoring=False, run_history=False, show_error=True,
        )  # fmt: skip
        of_the_page = set(Path(folder).rglob("*"))  # examples, which stay
        sweeping = threading.Thread(target=_sweep_again_and_again, args=(Path(folder), of_the_page), daemon=True)
        sweeping.start()
        print(f"The page is at {address} until you press Ctrl-C", flush=True)
        try:
            page.block_thread()
        finally:
            page.close()
            tempfile.tempdir = None


def sweep(folder: Path, kept: set[Path], seconds: float) -> None:
    """Remove files of a folder, at any depth, that are older than so many seconds and not among those to keep."""
    for path in set(folder.rglob("*")) - kept:
        try:
            if path.is_file() and time.time() - path.stat().st_mtime > seconds:
                path.unlink()
        except OSError:  # somebody else has taken it away
            continue


def _sweep_again_and_again(folder: Path, kept: set[Path]) -> None:
    while folder.is_dir():
        time.sleep(SWEPT_EVERY)
        sweep(folder, kept, LIVES)


def _options(backdrop: str, color: str, steps: float, guidance: float, seed: float) -> Options:
    """What the controls say; 0 stands for what suits the model."""
    return Options(backdrop, color, int(steps) or None, guidance or None, int(seed or 0))


def _path_of(payload: Any) -> str | None:
    """Where an uploaded file is; None for nothing."""
    return None if payload is None else payload.path


def _forgive_no_number(slider: gr.Slider) -> None:
    """Take a number's field that somebody has emptied for the value that the slider began with."""
    read, first = slider.preprocess, slider.value
    slider.preprocess = lambda payload: read(first if payload is None else payload)  # type: ignore[method-assign]


def _given(session: Session | None) -> Session:
    if session is None:
        raise ValueError(NO_PHOTO)
    return session


def _told(studio: Studio, session: Session) -> str:
    """What was found in the photo, in words."""
    yaw, pitch, _ = studio.source(session, Options())
    count = len(session.faces)
    which = "" if count == 1 else f"{count} faces; the one in the thick box is meant. "
    return f"{which}Taken from yaw {yaw:+.0f}°, pitch {pitch:+.0f}°, as far as the model can tell."


def _saved(image: Image.Image, name: str) -> str:
    """The path of a picture with its marks, for a download."""
    path = Path(tempfile.mkdtemp()) / name
    save_marked(image, path)
    return str(path)


def _told_errors(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same, whose errors of the input the page shows in one line."""

    @wraps(run)  # gradio reads which arguments are events
    def told(*args: Any) -> Any:
        try:
            return run(*args)
        except (ValueError, OSError) as error:
            raise gr.Error(one_line(error), duration=10, print_exception=False) from error

    return told


def _told_errors_of_steps(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same for what is done in steps."""

    @wraps(run)
    def told(*args: Any) -> Iterator[Any]:
        try:
            yield from run(*args)
        except (ValueError, OSError) as error:
            raise gr.Error(one_line(error), duration=10, print_exception=False) from error

    return told
