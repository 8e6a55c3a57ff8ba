"""Publishing and loading by the real clients, each in its own process, against a local server of the Hub's protocol."""

import ast
import inspect
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_pipeline
from diffusers import DDIMScheduler
from hub_server import HubServer

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.hub import export_remote_code, publish
from nvb_diffusers.models.unet import add_adapter

CARD = "---\nlibrary_name: diffusers\nlicense: apache-2.0\n---\n# REPO_ID\n\nText of our own: é.\n"
CODE = {
    "pipeline_nvb_face.py",
    "image_encoder/image_encoder.py",
    "view_transformer/view_transformer.py",
    "appearance/appearance.py",
}

# Runs first where a process must not see the package, as if it were not installed.
WITHOUT_PACKAGE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nvb_diffusers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""

PUBLISH_AND_LOAD = """
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.hub import publish

api = HfApi()
saved = NVBFacePipeline.from_pretrained(work / "saved")

# The published pipeline, by our class and by the base class; a card put first, then kept by push_to_hub.
report["url"] = publish(saved, "me/face", model_card=work / "card.md")
save_views(NVBFacePipeline.from_pretrained("me/face"), "main")
save_views(DiffusionPipeline.from_pretrained("me/face"), "base class")
api.create_repo("me/pushed")
api.upload_file(path_or_fileobj=work / "card.md", path_in_repo="README.md", repo_id="me/pushed")
saved.push_to_hub("me/pushed")
save_views(NVBFacePipeline.from_pretrained("me/pushed"), "pushed")

# Again, after strangers' files came in: without a card, then without anything new.
for name in ("notes.py", "unet/helper.py", "unet/diffusion_pytorch_model.safetensors.index.json", "pictures/a.svg"):
    api.upload_file(path_or_fileobj=b"?", path_in_repo=name, repo_id="me/face")
publish(saved, "me/face")
report["again"] = [api.model_info("me/face", revision=revision).sha for revision in ("main", "remote-code")]
publish(saved, "me/face")
report["unchanged"] = [api.model_info("me/face", revision=revision).sha for revision in ("main", "remote-code")]
publish(saved, "me/no-card", private=True)
restorer = NVBFacePipeline(**{**saved.components, "view_transformer": None})
publish(restorer, "me/pushed")
publish(restorer, "me/restorer")

# Made from a published model.
api.create_repo("me/base")
card = (work / "base.md").read_bytes()
api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/base")
restorer.unet.register_to_config(_nvb_base_model="me/base")
restorer.save_pretrained(work / "made")
publish(NVBFacePipeline.from_pretrained(work / "made"), "me/made")

# What is refused.
api.create_repo("me/pickle")
api.upload_folder(repo_id="me/pickle", folder_path=work / "pickle")
report["pickle"] = refusal(lambda: NVBFacePipeline.from_pretrained("me/pickle"))
remote = DiffusionPipeline.from_pretrained("me/face", revision="remote-code", trust_remote_code=True)
report["remote pipeline"] = refusal(lambda: publish(remote, "me/refused"))
report["remote parts"] = refusal(lambda: publish(NVBFacePipeline(**remote.components), "me/refused"))
"""

LOAD_REMOTE_CODE = """
from diffusers import DiffusionPipeline

remote = DiffusionPipeline.from_pretrained("me/face", revision="remote-code", trust_remote_code=True)
report["class"] = type(remote).__module__.split(".")[0]
save_views(remote, "remote code")
remote.save_pretrained(work / "again")
save_views(DiffusionPipeline.from_pretrained(work / "again", trust_remote_code=True), "again")
report["no trust"] = refusal(lambda: DiffusionPipeline.from_pretrained("me/face", revision="remote-code"))
report["package"] = "nvb_diffusers" in sys.modules
"""


def views(pipeline):
    """Two views and a restoration in two steps, the same in every process for the same weights."""
    import numpy as np
    import torch

    pipeline.set_progress_bar_config(disable=True)
    image = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "generator": generator, "output_type": "np"}
    return np.concatenate(
        [pipeline(image, [(-20, 0), (30, 5)], **options).images, pipeline.restore(image, **options).images]
    )


def save_views(pipeline, name):
    """Keep the views for the test process."""
    np.save(work / f"{name}.npy", views(pipeline))  # noqa: F821


def refusal(call):
    """The message of the ValueError that `call` ends with."""
    try:
        call()
    except ValueError as error:
        return str(error)


def run_python(script, hub, work, before=""):
    """Run a script as a client of `hub`; returns what it reports."""
    helpers = "".join(map(inspect.getsource, (views, save_views, refusal)))
    start = "import json, sys\nfrom pathlib import Path\nimport numpy as np\nimport torch\n"
    start += f"torch.set_num_threads({torch.get_num_threads()})\nwork, report = Path(sys.argv[1]), {{}}\n"
    code = before + start + helpers + script + "\nprint(json.dumps(report))"
    output = run([sys.executable, "-W", "error::UserWarning", "-c", code, str(work)], hub, work)
    return json.loads(output.splitlines()[-1])


def run(command, hub, work):
    environment = hub.environment(work / "home")
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def run_hf(*arguments, hub, work):
    """Run the command `hf`."""
    return run([str(Path(sys.executable).with_name("hf")), *map(str, arguments)], hub, work)


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory):
    """A pipeline published to `me/face` by another process: its work folder, report and the views to expect."""
    work = tmp_path_factory.mktemp("published")
    (work / "card.md").write_text(CARD, encoding="utf-8")
    (work / "base.md").write_text("---\nlicense: creativeml-openrail-m\n---\n", encoding="utf-8")
    pipeline = tiny_pipeline(appearance=True)
    for folder in ("saved", "pickle"):
        pipeline.save_pretrained(work / folder)
    (work / "pickle/unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(pipeline.unet.state_dict(), work / "pickle/unet/diffusion_pytorch_model.bin")
    report = run_python(PUBLISH_AND_LOAD, hub, work)
    return SimpleNamespace(work=work, report=report, views=views(pipeline))


@pytest.mark.parametrize("name", ["main", "base class", "pushed"])
def test_hub_id_loads_bit_exact(published, name):
    """Assert that a Hub id gives the very pictures of the pipeline in memory, by `publish` and by `push_to_hub`."""
    loaded = np.load(published.work / f"{name}.npy")
    assert loaded.shape == (3, 64, 64, 3)
    assert np.array_equal(loaded, published.views)


def test_main_holds_data_only(hub, published):
    """Assert that `main` holds configurations, safetensors and the card, and strangers' pictures but not their code."""
    files = hub.files("me/face")
    assert published.report["url"] == f"{hub.endpoint}/me/face"
    assert not [path for path in files if path.endswith(".py")]
    assert "unet/diffusion_pytorch_model.safetensors.index.json" not in files
    assert "pictures/a.svg" in files
    assert {path.split("/")[0] for path in files if path.endswith(".safetensors")} == {
        "image_encoder", "view_transformer", "unet", "vae", "appearance"
    }  # fmt: skip
    assert json.loads(files["model_index.json"])["_class_name"] == "NVBFacePipeline"


def test_remote_code_branch_adds_code_to_the_same_weights(hub, published):
    """Assert that the branch differs from `main` by four files of code and the index that names them."""
    main, branch = hub.files("me/face"), hub.files("me/face", "remote-code")
    assert branch.keys() - main.keys() == CODE
    assert {path for path in branch.keys() & main.keys() if main[path] != branch[path]} == {"model_index.json"}


def test_publishing_again_changes_nothing(hub, published):
    """Assert that a second time with the same pipeline makes no commit on either branch."""
    assert published.report["again"] == published.report["unchanged"]
    assert len(hub.repositories["me/face"].commits) == 1 + 2 + 4 + 1  # first, published, strangers' files, again


def test_component_that_is_gone_is_removed(hub, published):
    """Assert that a step 1 pipeline, published over one with a view transformer, leaves none of its files."""
    for revision in ("main", "remote-code"):
        folders = {path.split("/")[0] for path in hub.files("me/pushed", revision) if "/" in path}
        assert folders == {"image_encoder", "unet", "vae", "scheduler", "appearance"}


def test_card_is_kept_or_written(hub, published):
    """Assert that our card survives `push_to_hub` and publishing without one, and that one is written where none is."""
    for repo_id, revision in (("me/face", "main"), ("me/face", "remote-code"), ("me/pushed", "main")):
        assert hub.files(repo_id, revision)["README.md"].decode() == CARD.replace("REPO_ID", repo_id)
    written = hub.files("me/no-card")["README.md"].decode()
    assert written.startswith("---\nlibrary_name: diffusers\n")
    assert 'from_pretrained("me/no-card")' in written
    assert 'views = pipe("face.png", cameras=' in written
    assert "cameras=" not in hub.files("me/restorer")["README.md"].decode()
    parameters = sum(parameter.numel() for parameter in tiny_pipeline().unet.parameters())
    assert f"| `unet` | `UNet2DConditionModel` | {parameters / 1e6:.1f} M |" in written
    assert "license: apache-2.0" in written
    made = hub.files("me/made")["README.md"].decode()
    assert made.startswith("---\nlibrary_name: diffusers\nlicense: creativeml-openrail-m\nbase_model: me/base\n")
    assert hub.repositories["me/no-card"].private
    assert not hub.repositories["me/face"].private


def test_remote_code_loads_without_the_package(hub, published):
    """Assert that a process that cannot import the package gets the same pictures, and only if it trusts the code."""
    report = run_python(LOAD_REMOTE_CODE, hub, published.work, before=WITHOUT_PACKAGE)
    assert np.array_equal(np.load(published.work / "remote code.npy"), published.views)
    assert np.array_equal(np.load(published.work / "again.npy"), published.views)  # saved with its code
    assert report["class"] == "diffusers_modules"
    assert not report["package"]
    assert "trust_remote_code=True" in report["no trust"]


def test_downloaded_folder_loads_and_uploads(hub, published):
    """Assert that what `hf download` gives loads bit-exact, and that `hf upload` carries it to another repository."""
    folder = published.work / "downloaded"
    run_hf("download", "me/face", "--local-dir", folder, hub=hub, work=published.work)
    assert np.array_equal(views(NVBFacePipeline.from_pretrained(folder)), published.views)
    run_hf("upload", "me/copy", folder, hub=hub, work=published.work)
    assert hub.files("me/copy") == hub.files("me/face")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pickle", "a pickle is refused"),
        ("remote pipeline", "only the installed nvb_diffusers.NVBFacePipeline is published"),
        ("remote parts", "`image_encoder` is a diffusers_modules"),
    ],
)
def test_refused_in_one_line(hub, published, name, words):
    """Assert that pickled weights, and a pipeline or its parts loaded by remote code, get one line that says so."""
    message = published.report[name]
    assert words in message
    assert "\n" not in message
    assert "me/refused" not in hub.repositories


def test_live_adapter_is_refused(tmp_path):
    """Assert that a UNet inside its adapter is not exported, and that nothing is written."""
    pipeline = tiny_pipeline()
    add_adapter(pipeline.unet, rank=2)
    with pytest.raises(ValueError, match="adapter"):
        export_remote_code(pipeline, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_classes_of_others_are_refused(tmp_path):
    """Assert that a subclass, whose source the package does not hold, is not exported."""

    class Scheduler(DDIMScheduler):
        pass

    pipeline = tiny_pipeline()
    pipeline.scheduler = Scheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"`scheduler` is a .*Scheduler, but only classes of diffusers"):
        export_remote_code(pipeline, tmp_path)


@pytest.mark.parametrize(
    ("card", "words"),
    [("card.md", "begins with 'card.md'.*pathlib"), (Path("none.md"), "none.md, but there is no such file")],
)
def test_bad_card_is_refused(card, words):
    """Assert that a path given as text, and a missing file, are refused before anything is sent."""
    with pytest.raises(ValueError, match=words):
        publish(tiny_pipeline(), "me/face", model_card=card)


@pytest.mark.parametrize("view_transformer", [True, False])
def test_exported_code_stands_alone(tmp_path, view_transformer):
    """Assert that exported files import no sibling, define no name twice, and are named by the index."""
    export_remote_code(tiny_pipeline(view_transformer=view_transformer, appearance=True), tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    assert files == {path for path in CODE if view_transformer or not path.startswith("view")}
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_nvb_face", "NVBFacePipeline"]
    assert index["image_encoder"] == ["image_encoder", "TimeAwareImageEncoder"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    for path in files:
        nodes = ast.parse((tmp_path / path).read_text(encoding="utf-8")).body
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
        defined = Counter(name for node in nodes for name in defined_names(node))
        assert max(defined.values()) == 1, defined.most_common(3)


def defined_names(node):
    """The global names that a statement other than an import defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
