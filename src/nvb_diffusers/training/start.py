"""What can be known before a run begins is checked before it begins: hours later it would cost the work."""

import argparse
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id

from nvb_diffusers.files import check_replaceable, one_line

RESULTS = {"pipeline": "model_index.json", "vae": "config.json", "adapter": "unet_attn2.safetensors"}  # what each holds
HOW_TO_LOG_IN = "log in with `hf auth login`, give --hub_token, or leave out --push_to_hub"


def check_start(args: argparse.Namespace) -> None:
    """Check the folder, the tracker and the repository of a run; nothing is written.

    Raises:
        ValueError: names the option and says what is accepted.
    """
    check_writable(args.output_dir)
    for name, known_by in RESULTS.items():
        check_replaceable(Path(args.output_dir, name), known_by)
    check_tracker(args.report_to)
    if args.push_to_hub:
        check_repository(repository(args), args.hub_token)


def repository(args: argparse.Namespace) -> str:
    """Where `--push_to_hub` puts what a run makes."""
    return args.hub_model_id if args.hub_model_id is not None else Path(os.path.abspath(args.output_dir)).name


def check_writable(folder: str | Path) -> None:
    """Raise a ValueError where a run's folder cannot be made or written to."""
    path = Path(os.path.abspath(folder))
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"--output_dir {folder}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {folder}: {existing} cannot be written to")


def check_tracker(name: str) -> None:
    """Raise a ValueError where a tracker is unknown or not installed, of which accelerate says nothing."""
    available = [str(tracker) for tracker in get_available_trackers()]
    if name not in ("none", "all", *available):
        known = name in LOGGER_TYPE_TO_CLASS
        reason = "is not installed" if known else f"is no tracker (known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))})"
        raise ValueError(f"--report_to {name}: it {reason}; here there are: {', '.join(['none', *available])}")


def check_repository(repo_id: str, token: str | None = None) -> None:
    """Raise a ValueError where the Hub would not let a run be published: name, connection, token, namespace.

    Args:
        repo_id: of the repository.
        token: of the Hub; None for the one that is stored here.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id {repo_id!r}: {one_line(error)}") from None
    try:
        user = HfApi(token=token).whoami()
    except LocalTokenNotFoundError:
        raise ValueError(f"--hub_model_id {repo_id}: no token of the Hub is stored here: {HOW_TO_LOG_IN}") from None
    except Exception as error:  # of an HTTP library that is another one in each version of the Hub's client
        raise ValueError(f"--hub_model_id {repo_id}: the Hub does not answer to the token: {one_line(error)}") from None
    namespaces = [user["name"], *(organization["name"] for organization in user.get("orgs", ()))]
    if "/" in repo_id and repo_id.split("/")[0] not in namespaces:
        raise ValueError(f"--hub_model_id {repo_id}: the token may write to {', '.join(namespaces)}: {HOW_TO_LOG_IN}")


def check_room(folder: str | Path, trained: Iterable[torch.nn.Parameter], count: int) -> None:
    """Raise a ValueError where a disk has no room for so many checkpoints.

    Args:
        folder: of the run; it need not exist.
        trained: the parameters in a checkpoint, beside their average and the two means of AdamW.
        count: checkpoints that are there at once.
    """
    path = Path(os.path.abspath(folder))
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    needed = 4 * count * sum(parameter.numel() * parameter.element_size() for parameter in trained)
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"--output_dir {folder}: {count} checkpoints take {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free: "
            "make room, or lower --checkpoints_total_limit"
        )
