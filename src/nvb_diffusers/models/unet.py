"""A Stable Diffusion UNet made ours: the width of its cross-attention, what of it trains, and how that is kept.

Cross-attention (`attn2`) reads image features where Stable Diffusion reads text, so it trains in full; everything else
keeps what it knows and learns through LoRA (paper, section 3.1). Together they are the *adapter*, in two forms:

- **live**, on a UNet in training: `add_adapter`, `save_adapter`, `load_adapter`, bit-exact onto the same base;
- **fused**, in a plain `UNet2DConditionModel` that anyone can load: `fuse_adapter`.

A fused UNet carries in its config which adapters it holds, and an adapter file says which its base held, so that no
adapter is applied twice. Load further LoRAs (`pipe.load_lora_weights`) onto a fused UNet: diffusers' unloading removes
every LoRA on the model, a live adapter's too.
"""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nvb_diffusers.files import filled_folder

# The published layout at 512 px; where a name is missing, UNet2DConditionModel's default is the published value.
SD21_UNET_CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}

ADAPTER_NAME = "nvb_face"
LORA_FILE = "pytorch_lora_weights.safetensors"
ATTN2_FILE = "unet_attn2.safetensors"

# diffusers keeps config entries with a leading underscore through saving and loading, and warns about any other
# that its class does not know.
BASE_KEY = "_nvb_base_model"  # in the config of a UNet that was made from a published one
FUSED_KEY = "_nvb_fused_adapters"


def convert_unet(
    unet: UNet2DConditionModel, cross_attention_dim: int, generator: torch.Generator | None = None
) -> UNet2DConditionModel:
    """A UNet whose cross-attention reads features of width `cross_attention_dim`.

    Returns `unet` itself where the width already fits. Else a new UNet, in which `attn2.to_k` and `attn2.to_v` are
    drawn as in a new `torch.nn.Linear`, and all the rest is a copy.

    Args:
        generator: of the CPU, for the new weights; the same seed gives the same weights on any device.
    """
    if cross_attention_dim < 1:
        raise ValueError(f"cross_attention_dim is {cross_attention_dim}: give the features' width, 1 or more.")
    if unet.config.cross_attention_dim == cross_attention_dim:
        return unet
    refuse_live_adapter(unet)

    with torch.device("meta"):  # nothing is drawn here that the copy would overwrite
        converted = type(unet).from_config({**unet.config, "cross_attention_dim": cross_attention_dim})
    state = {}
    for name, old in unet.state_dict().items():
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
            weight = torch.empty(old.shape[0], cross_attention_dim)
            nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)  # the default of torch.nn.Linear
            state[name] = weight.to(old)
        else:
            state[name] = old.clone()
    converted.load_state_dict(state, assign=True)
    return converted.train(unet.training)


def add_adapter(unet: UNet2DConditionModel, rank: int = 16, alpha: float | None = None) -> None:
    """Put a new adapter on `unet`, in place, and let it alone require gradients.

    LoRA goes on every Linear and Conv2d outside `attn2`; its B starts at 0, so the output does not change yet.
    `attn2` trains in full; all else is frozen.

    Args:
        rank: of the LoRA.
        alpha: the LoRA is scaled by `alpha / rank`; `rank` by default.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}: give 1 or more (the paper uses 16).")
    if _has_lora(unet):
        raise ValueError("The UNet already carries a LoRA: start from a plain one, or from fuse_adapter(unet).")
    # Names in full, not suffixes: "all-linear" would miss the convolutions, and suffixes would reach into attn2.
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    targets = [name for name in names if ".attn2." not in name]
    alpha = rank if alpha is None else alpha
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), ADAPTER_NAME)
    for name, parameter in unet.named_parameters():  # peft has frozen all but the LoRA
        if ".attn2." in name:
            parameter.requires_grad_(True)


def has_adapter(unet: UNet2DConditionModel) -> bool:
    """Whether `unet` carries our adapter live; a fused one, or another LoRA, does not count."""
    return ADAPTER_NAME in getattr(unet, "peft_config", {})


def save_adapter(unet: UNet2DConditionModel, folder: str | Path) -> None:
    """Write the live adapter of `unet` into `folder`: the LoRA and `attn2`, as two safetensors files.

    The LoRA keeps PEFT's own names: under diffusers' names the self-attention is lost on loading, once convolutions
    have LoRA too.
    """
    if not has_adapter(unet):
        raise ValueError("The UNet has no live adapter to save: add_adapter(unet) puts one on.")
    config = unet.peft_config[ADAPTER_NAME]
    lora, attn2 = _adapter_state(unet)
    metadata = {
        "format": "pt",
        "rank": str(config.r),
        "alpha": str(config.lora_alpha),
        "adapter": _digest({**lora, **attn2}),
        "base_adapters": json.dumps(_fused_adapters(unet)),
    }
    with filled_folder(folder) as part:
        for name, state in ((LORA_FILE, lora), (ATTN2_FILE, attn2)):
            contiguous = {key: value.contiguous() for key, value in state.items()}
            save_file(contiguous, part / name, metadata=metadata)


def load_adapter(unet: UNet2DConditionModel, folder: str | Path) -> None:
    """Put the adapter in `folder` on `unet`, in place: live and ready to train on, as `add_adapter` leaves it.

    `unet` must be the base that the adapter was trained on. Bit-exact where it also has the dtype of the training; the
    weights take the dtype of `unet`, so resume a float32 training on a float32 UNet.
    """
    lora, metadata = _read(Path(folder, LORA_FILE))
    attn2, attn2_metadata = _read(Path(folder, ATTN2_FILE))
    if metadata["adapter"] != attn2_metadata["adapter"]:
        raise ValueError(f"{LORA_FILE} and {ATTN2_FILE} in {folder} are not of one adapter: take both from one save.")
    if _has_lora(unet):
        raise ValueError(f"The UNet already carries a LoRA: load the adapter in {folder} onto a plain base.")
    fused, expected = _fused_adapters(unet), json.loads(metadata["base_adapters"])
    if fused != expected:
        raise ValueError(
            f"The adapter in {folder} was trained on a base with the fused adapters {expected}, this UNet has {fused}: "
            "load it onto the base it was trained on; a fused release needs no adapter."
        )
    rank, alpha = int(metadata["rank"]), float(metadata["alpha"])
    with torch.device("meta"):  # a UNet without weights says what the files should hold, before `unet` is touched
        template = type(unet).from_config(unet.config)
        add_adapter(template, rank, alpha)
    lora_template, attn2_template = _adapter_state(template)
    _check_state(lora, lora_template, Path(folder, LORA_FILE))
    _check_state(attn2, attn2_template, Path(folder, ATTN2_FILE))

    add_adapter(unet, rank, alpha)
    set_peft_model_state_dict(unet, lora, ADAPTER_NAME)
    unet.load_state_dict(attn2, strict=False)


def fuse_adapter(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A plain copy of `unet`, on the CPU, with the live adapter inside its weights; `unet` can train on.

    Fuse in float32 and cast afterwards: in half precision a small LoRA is rounded away.
    """
    if not has_adapter(unet):
        raise ValueError("The UNet has no live adapter to fuse: it can be saved as it is.")
    others = sorted(set(unet.peft_config) - {ADAPTER_NAME})
    if others:
        raise ValueError(f"The UNet carries other LoRAs too: call unet.delete_adapters({others}) first.")
    lora, attn2 = _adapter_state(unet)
    fused = copy.deepcopy(unet, _tensors_on_cpu(unet))
    fused.fuse_lora(safe_fusing=True)
    fused.unload_lora()
    fused.register_to_config(**{FUSED_KEY: [*_fused_adapters(unet), _digest({**lora, **attn2})]})
    return fused.requires_grad_(True).eval()  # as from_pretrained returns it


def _tensors_on_cpu(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """For `deepcopy`: copies of a model's tensors on the CPU, since a second model may not fit on its device."""
    copies: dict[int, torch.Tensor] = {
        id(parameter): torch.nn.Parameter(parameter.detach().to("cpu", copy=True), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copies | {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in model.buffers()}


def base_model(unet: UNet2DConditionModel) -> str | None:
    """The Hub id or folder of the model whose weights `unet` was made from; None for weights of this package alone."""
    return unet.config.get(BASE_KEY)


def refuse_live_adapter(unet: UNet2DConditionModel) -> None:
    """Raise ValueError where `unet` is not plain: saved so, its weights would have names that no UNet has."""
    if has_adapter(unet):
        raise ValueError(
            "The UNet has a live adapter: fuse first (unet = fuse_adapter(unet)), or keep the adapter alone with "
            "save_adapter(unet, folder)."
        )
    if _has_lora(unet):
        raise ValueError(
            "The UNet carries a LoRA: call pipe.unload_lora_weights() first, after pipe.fuse_lora() to keep its effect."
        )


def _has_lora(unet: UNet2DConditionModel) -> bool:
    """Whether any layer is wrapped, by our adapter or another LoRA, switched on or off."""
    return any(name.endswith(".base_layer") for name, _ in unet.named_modules())


def _fused_adapters(unet: UNet2DConditionModel) -> list[str]:
    """The digests of the adapters inside the weights of `unet`, oldest first."""
    return list(unet.config.get(FUSED_KEY, []))


def _adapter_state(unet: UNet2DConditionModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The two state dicts of a live adapter: the LoRA under PEFT's names, and `attn2`."""
    lora = get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME)
    return lora, {name: value for name, value in unet.state_dict().items() if ".attn2." in name}


def _digest(state: dict[str, torch.Tensor]) -> str:
    """A short name for these very weights, the same on any device."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of one file of an adapter."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: an adapter is {LORA_FILE} and {ATTN2_FILE} (safetensors) in one folder.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fetch or save it again.") from error
    if not {"rank", "alpha", "adapter", "base_adapters"} <= metadata.keys():
        raise ValueError(f"{path} was not written by save_adapter; other LoRAs load with pipe.load_lora_weights.")
    return state, metadata


def _check_state(state: dict[str, torch.Tensor], template: dict[str, torch.Tensor], path: Path) -> None:
    """Raise ValueError where the names or shapes of `state` are not those of `template`."""
    for name in sorted(state.keys() | template.keys()):
        found = tuple(state[name].shape) if name in state else None
        expected = tuple(template[name].shape) if name in template else None
        if found != expected:
            raise ValueError(
                f"{path} does not fit this UNet: {name} has shape {found} in the file and {expected} in the UNet. "
                "Load it onto the base it was trained on, converted to the same width."
            )
