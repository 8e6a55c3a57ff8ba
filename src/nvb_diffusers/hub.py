"""Publish a pipeline to the Hub, for people who have this package and for people who have diffusers alone.

The branch `main` holds weights and configurations only, because a single `.py` file there makes the loader ask everyone
to trust remote code. The branch `remote-code` holds the same weights, the source of our classes, and a
`model_index.json` that names those files.
"""

import ast
import sys
from functools import partial
from importlib.util import resolve_name
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from huggingface_hub import ModelCard, create_branch, create_repo, hf_hub_download, upload_folder
from huggingface_hub.errors import RemoteEntryNotFoundError

from .models.unet import base_model, refuse_live_adapter
from .pipeline_files import add_sources
from .pipeline_nvb_face import NVBFacePipeline

REMOTE_CODE_BRANCH = "remote-code"
PACKAGE = __package__
CARD = """\
---
library_name: diffusers
{license}
pipeline_tag: image-to-image
tags:
- nvb-face
- face-restoration
- novel-view-synthesis
---
# {name}

An NVB-Face pipeline: a degraded photo of a face goes in, {output}. This card lists what the files hold; what the
weights were trained on and how good they are is not said yet.{made_from}

| component | class | parameters |
|---|---|---|
{components}

With the package `nvb_diffusers` installed:

```python
from nvb_diffusers import NVBFacePipeline

pipe = NVBFacePipeline.from_pretrained("{repo_id}")
{call}
```

With diffusers alone, after reading the code of the branch `{branch}`:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", revision="{branch}", trust_remote_code=True)
```
"""


def publish(
    pipeline: NVBFacePipeline,
    repo_id: str,
    *,
    model_card: str | Path | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Publish NVB-Face",
) -> str:
    """Put a pipeline on the Hub, as both branches; doing it again replaces what is there.

    Files of the component folders that the pipeline no longer has are removed, and so is any `.py` file on `main`.
    Other files in the repository, such as images, stay.

    Args:
        pipeline: from the installed package, without a live adapter.
        repo_id: "user/name", or a name in the namespace of the token's owner. Made if it does not exist.
        model_card: a path to read the card from, or the text itself. Without one, the card in the repository is kept,
            or a short one is written from the pipeline. `REPO_ID` in it becomes the repository's.
        private: only for a repository made now; one that exists keeps its visibility.
        token: of the Hub; the stored one (`hf auth login`) by default.
        commit_message: on both branches.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the pipeline or a component is not of the installed package or diffusers, the UNet is not plain, or
            the card is no card. Nothing is sent then.
    """
    _check_publishable(pipeline)
    card = _read_card(model_card)
    repository = create_repo(repo_id, private=private, token=token, exist_ok=True)
    repo_id = repository.repo_id
    with TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        card = card or _published_card(repo_id, token) or _default_card(pipeline, repo_id)
        Path(folder, "README.md").write_text(card.replace("REPO_ID", repo_id), encoding="utf-8")
        upload = partial(
            upload_folder,
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            commit_message=commit_message,
            delete_patterns=["*.py", *(f"{name}/*" for name in pipeline.components)],
        )
        upload(revision="main")
        create_branch(repo_id, branch=REMOTE_CODE_BRANCH, token=token, exist_ok=True)
        _add_code(pipeline, Path(folder))
        upload(revision=REMOTE_CODE_BRANCH)
    return str(repository)


def export_remote_code(pipeline: NVBFacePipeline, folder: str | Path) -> None:
    """Write what the branch `remote-code` holds: a pipeline folder that loads without this package installed.

    Args:
        pipeline: from the installed package, without a live adapter.
        folder: `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads it.

    Raises:
        ValueError: as `publish`. Nothing is written then.
    """
    _check_publishable(pipeline)
    pipeline.save_pretrained(folder)
    _add_code(pipeline, Path(folder))


def _check_publishable(pipeline: NVBFacePipeline) -> None:
    """Refuse what would be saved broken: classes whose source is not ours to copy, and a UNet inside its adapter."""
    if type(pipeline) is not NVBFacePipeline:
        raise ValueError(
            f"`pipeline` is a {_full_name(pipeline)}, but only the installed {PACKAGE}.NVBFacePipeline is published: "
            "load the pipeline again with NVBFacePipeline.from_pretrained, without trust_remote_code."
        )
    for name, component in _parts(pipeline).items():
        if type(component).__module__.split(".")[0] not in (PACKAGE, "diffusers"):
            raise ValueError(
                f"`{name}` is a {_full_name(component)}, but only classes of diffusers and {PACKAGE} are published: "
                "load it again without trust_remote_code, or build the pipeline from those classes."
            )
    refuse_live_adapter(pipeline.unet)


def _full_name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _read_card(model_card: str | Path | None) -> str | None:
    """The text of the card, which must begin with metadata: this also finds a path given as text."""
    if isinstance(model_card, Path):
        if not model_card.is_file():
            raise ValueError(f"`model_card` is {model_card}, but there is no such file.")
        model_card = model_card.read_text(encoding="utf-8")
    if model_card is not None and not model_card.startswith("---\n"):
        raise ValueError(
            f"`model_card` begins with {model_card[:40]!r}, but a card begins with metadata between two lines `---`; "
            "give a file as a pathlib.Path."
        )
    return model_card


def _published_card(repo_id: str, token: str | None) -> str | None:
    """The card that `main` has on the Hub, if any."""
    try:
        return Path(hf_hub_download(repo_id, "README.md", token=token)).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        return None


def _default_card(pipeline: NVBFacePipeline, repo_id: str) -> str:
    rows = [
        f"| `{name}` | `{type(model).__name__}` | {model.num_parameters() / 1e6:.1f} M |"
        for name, model in _parts(pipeline).items()
        if isinstance(model, ModelMixin)
    ]
    output, call = "the same view comes out, restored", 'restored = pipe.restore("face.png").images[0]'
    if pipeline.view_transformer is not None:
        output = "sharp views of that face at any camera come out"
        call = 'views = pipe("face.png", cameras=[(-30, 0), (0, 0), (30, 0)]).images  # (yaw, pitch) in degrees'
    base = base_model(pipeline.unet)
    return CARD.format(
        license=_license(base),
        made_from=f" They were made from {base}, whose license holds." if base else "",
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        branch=REMOTE_CODE_BRANCH,
        components="\n".join(rows),
        output=output,
        call=call,
    )


def _license(base: str | None) -> str:
    """A card's lines on the license: where the weights were made from a base model, its own, as its card has it."""
    if base is None:
        return "license: apache-2.0"
    try:
        data = ModelCard.load(Path(base, "README.md") if Path(base).is_dir() else base).data.to_dict()
    except (OSError, ValueError):  # it has no card, or the Hub no such repository
        data = {}
    names = ("license", "license_name", "license_link")
    known = {name: data[name] for name in names if name in data} or {"license": "other"}
    if not Path(base).is_dir():
        known["base_model"] = base
    return "\n".join(f"{name}: {value}" for name, value in known.items())


def _add_code(pipeline: NVBFacePipeline, folder: Path) -> None:
    """Give a saved pipeline the source of our classes.

    The loader takes from the Hub one file a component and no sibling of it, so each file stands alone.
    """
    add_sources({"": pipeline, **_our_components(pipeline)}, folder, lambda module: _standalone_source(module, set()))


def _parts(pipeline: NVBFacePipeline) -> dict[str, Any]:
    """The components that are there: models and the scheduler."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, ConfigMixin)}


def _our_components(pipeline: NVBFacePipeline) -> dict[str, ModelMixin]:
    return {name: model for name, model in _parts(pipeline).items() if type(model).__module__.split(".")[0] == PACKAGE}


def _standalone_source(module: str, seen: set[str]) -> str:
    """The source of a module, in which the source of each sibling stands in place of its first import.

    Only relative imports at the top level are followed, `from .sibling import name` or `from ..camera import name`, and
    the files share one set of global names. Siblings already `seen` are left out, and those found are added to them.
    """
    source = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    parts, end = [], 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            sibling = resolve_name("." * node.level + str(node.module), module.rpartition(".")[0])
            parts += lines[end : node.lineno - 1]
            if sibling not in seen:
                seen.add(sibling)
                parts.append(_standalone_source(sibling, seen))
            end = int(node.end_lineno or node.lineno)
    return "".join(parts + lines[end:])
