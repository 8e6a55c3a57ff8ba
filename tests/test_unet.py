"""Tests of nvb_diffusers.models.unet, on UNets with two tiny levels and, for counts, on SD layouts without weights."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.models.unet import (
    ATTN2_FILE,
    FUSED_KEY,
    LORA_FILE,
    SD21_UNET_CONFIG,
    add_adapter,
    base_model,
    convert_unet,
    fuse_adapter,
    has_adapter,
    load_adapter,
    refuse_live_adapter,
    save_adapter,
)
from nvb_diffusers.training.backbone import load_unet

TINY_CONFIG = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY_21_CONFIG = {
    **TINY_CONFIG,
    "cross_attention_dim": 12,
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
}
TINY_15_CONFIG = {**TINY_CONFIG, "cross_attention_dim": 10, "attention_head_dim": 2}
SD15_UNET_CONFIG = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # as published
LAYOUTS = pytest.mark.parametrize("config", [TINY_21_CONFIG, TINY_15_CONFIG], ids=["sd21", "sd15"])


def make_unet(config=TINY_21_CONFIG, seed=0):
    """A tiny UNet with the same random weights for the same seed."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**config).eval()


def make_inputs(unet, batch_size=2, seed=1):
    """Noisy latents, time steps and features for `unet`."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch_size, 4, 8, 8, generator=generator)
    features = torch.randn(batch_size, 7, unet.config.cross_attention_dim, generator=generator)
    return sample, torch.tensor([3, 800])[:batch_size], features


@torch.no_grad()
def predict(unet):
    """The output of `unet` on fixed inputs."""
    return unet(*make_inputs(unet)).sample


def train(unet, steps=3, lr=1e-2):
    """A few optimizer steps on whatever requires gradients: LoRA's B leaves zero."""
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=lr)
    for seed in range(steps):
        unet(*make_inputs(unet, seed=seed)).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return unet


def make_trained(config=TINY_21_CONFIG, rank=3, alpha=5):
    """A tiny UNet with a trained live adapter."""
    unet = make_unet(config)
    add_adapter(unet, rank=rank, alpha=alpha)
    return train(unet)


@pytest.fixture(scope="module")
def trained():
    """One tiny UNet with a trained live adapter, for the tests that only read it."""
    return make_trained()


def base_state(unet):
    """Copies of the frozen weights of `unet` under their plain names."""
    state = {name.replace(".base_layer.", "."): value.clone() for name, value in unet.state_dict().items()}
    return {name: value for name, value in state.items() if ".attn2." not in name and ".lora_" not in name}


def copy_state(unet):
    """Copies of all the weights of `unet`."""
    return {name: value.clone() for name, value in unet.state_dict().items()}


def same_state(first, second):
    """Whether two state dicts have the same names and, bit for bit, the same weights."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def count_parameters(parameters):
    """How many numbers `parameters` hold."""
    return sum(parameter.numel() for parameter in parameters)


@pytest.fixture
def diffusers_warnings(caplog):
    """What diffusers logs from WARNING upwards, as pytest sees it."""
    diffusers_logging.enable_propagation()
    yield lambda: [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    diffusers_logging.disable_propagation()


# Layout


@pytest.mark.parametrize(
    ("config", "total"), [(SD21_UNET_CONFIG, 865_910_724), (SD15_UNET_CONFIG, 859_520_964)], ids=["sd21", "sd15"]
)
def test_published_layouts(config, total):
    """Assert that the two layouts have the parameters of the published UNets."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    assert count_parameters(unet.parameters()) == total


def test_adapter_parameters_of_sd21():
    """Assert that on SD 2.1 LoRA of rank 16 and attn2, and nothing else, require gradients: 15.3M and 50.4M of 866M."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD21_UNET_CONFIG)
        add_adapter(unet)
    trained = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
    lora = [parameter for name, parameter in trained.items() if ".lora_" in name]
    attn2 = [parameter for name, parameter in trained.items() if ".attn2." in name]
    assert count_parameters(lora) == 15_340_160
    assert count_parameters(attn2) == 50_352_320
    assert count_parameters(trained.values()) == 15_340_160 + 50_352_320
    assert count_parameters(unet.parameters()) == 865_910_724 + 15_340_160


@LAYOUTS
def test_adapter_reaches_every_layer(config):
    """Assert that every Linear and Conv2d outside attn2 has LoRA, and that in attn2 none has."""
    plain = make_unet(config)
    layers = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    add_adapter(plain, rank=2)
    wrapped = {name.removesuffix(".base_layer") for name, _ in plain.named_modules() if name.endswith(".base_layer")}
    assert wrapped == {name for name in layers if ".attn2." not in name}
    assert any(isinstance(plain.get_submodule(name).base_layer, nn.Conv2d) for name in wrapped)
    for name, parameter in plain.named_parameters():
        assert parameter.requires_grad == (".lora_" in name or ".attn2." in name), name


# Width


def test_convert_fitting_width():
    """Assert that a UNet of the right width is returned as it is."""
    unet = make_unet()
    assert convert_unet(unet, 12) is unet


@LAYOUTS
def test_convert_changes_two_layers(config):
    """Assert that only attn2.to_k and attn2.to_v are new, drawn as torch.nn.Linear's, and all else is a copy."""
    unet = make_unet(config).train()
    before, pointers = copy_state(unet), {value.data_ptr() for value in unet.state_dict().values()}
    converted = convert_unet(unet, 400, torch.Generator().manual_seed(0))
    assert converted.config.cross_attention_dim == 400
    assert converted.training
    assert all(parameter.requires_grad for parameter in converted.parameters())
    new = []
    for name, value in converted.state_dict().items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            new.append(name)
            bound = 400**-0.5  # torch.nn.Linear: uniform within 1 / sqrt(inputs)
            assert value.shape == (before[name].shape[0], 400)
            assert 0.95 * bound < value.abs().max() <= bound
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        else:
            assert torch.equal(value, before[name]), name
            assert value.data_ptr() not in pointers
    # One block down, the middle and two up, a to_k and a to_v each.
    assert len(new) == 8
    assert predict(converted).isfinite().all()
    assert same_state(unet.state_dict(), before)


def test_convert_is_deterministic():
    """Assert that a seed decides the new weights, whatever the global random state and the dtype of the UNet."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    first = convert_unet(make_unet(seed=0), 9, torch.Generator().manual_seed(5)).state_dict()[name]
    again = convert_unet(make_unet(seed=1), 9, torch.Generator().manual_seed(5)).state_dict()[name]
    other = convert_unet(make_unet(seed=0), 9, torch.Generator().manual_seed(6)).state_dict()[name]
    half = convert_unet(make_unet(seed=0).to(torch.bfloat16), 9, torch.Generator().manual_seed(5)).state_dict()[name]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert half.dtype == torch.bfloat16
    assert torch.equal(first.to(torch.bfloat16), half)


def test_convert_sd15_to_sd21_width():
    """Assert that SD 1.5 at width 1024 gains 256 inputs in each of its 16 to_k and 16 to_v, and nothing else."""
    with torch.device("meta"):
        unet = convert_unet(UNet2DConditionModel(**SD15_UNET_CONFIG), 1024)
    outputs = 5 * 320 + 5 * 640 + 6 * 1280  # 2 + 3 blocks at each of three levels, and the middle
    assert count_parameters(unet.parameters()) == 859_520_964 + 2 * 256 * outputs


# Training


@LAYOUTS
def test_new_adapter_changes_nothing(config):
    """Assert that the output before the first step is that of the base."""
    unet = make_unet(config)
    expected = predict(unet)
    add_adapter(unet)
    # Not bit-exact: torch multiplies by a frozen weight and by one that could train in two ways.
    assert (predict(unet) - expected).abs().max() < 1e-6


@LAYOUTS
def test_training_moves_the_adapter_alone(config):
    """Assert that after some steps the frozen base is bit-identical, and every part of the adapter has moved."""
    unet = make_unet(config)
    add_adapter(unet, rank=3)
    base = base_state(unet)
    start = {name: p.detach().clone() for name, p in unet.named_parameters() if p.requires_grad}
    train(unet)
    assert same_state(base_state(unet), base)
    assert not [name for name, p in unet.named_parameters() if name in start and torch.equal(p, start[name])]


def test_alpha_scales_the_adapter():
    """Assert that the LoRA is scaled by alpha / rank, by 1 unless told."""
    unet = make_unet()
    add_adapter(unet, rank=4)
    assert unet.conv_in.scaling == {"nvb_face": 1.0}
    unet = make_unet()
    add_adapter(unet, rank=4, alpha=6)
    assert unet.conv_in.scaling == {"nvb_face": 1.5}


def test_gradient_checkpointing():
    """Assert that checkpointing gives the adapter the same gradients."""
    unet = make_trained()
    unet.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.zero_grad()
        unet(*make_inputs(unet)).sample.square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


# Adapter files


@LAYOUTS
def test_adapter_round_trip(config, tmp_path):
    """Assert that a trained adapter comes back bit-exact on a fresh base, ready to train on."""
    unet = make_trained(config)
    save_adapter(unet, tmp_path / "adapter")
    fresh = make_unet(config)
    base = predict(fresh)
    load_adapter(fresh, tmp_path / "adapter")
    assert has_adapter(fresh)
    assert torch.equal(predict(fresh), predict(unet))
    assert (predict(fresh) - base).abs().max() > 1e-2
    assert same_state(fresh.state_dict(), unet.state_dict())
    wanted = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in fresh.named_parameters() if parameter.requires_grad} == wanted
    assert torch.equal(predict(train(fresh)), predict(train(unet)))


def test_adapter_files(trained, tmp_path):
    """Assert that the files hold the whole adapter, self-attention and convolutions included, with rank and alpha."""
    save_adapter(trained, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LORA_FILE, ATTN2_FILE]
    lora, attn2 = load_file(tmp_path / LORA_FILE), load_file(tmp_path / ATTN2_FILE)
    block = "mid_block.attentions.0.transformer_blocks.0"
    for layer in (f"{block}.attn1.to_q", f"{block}.attn1.to_k", f"{block}.attn1.to_v", f"{block}.attn1.to_out.0"):
        assert lora[f"{layer}.lora_A.weight"].shape == (3, 16)
        assert lora[f"{layer}.lora_B.weight"].shape == (16, 3)
        assert lora[f"{layer}.lora_B.weight"].abs().min() > 0
    assert lora["conv_in.lora_A.weight"].shape == (3, 4, 3, 3)
    assert len(lora) == 2 * sum(name.endswith(".base_layer") for name, _ in trained.named_modules())
    assert attn2.keys() == {name for name in trained.state_dict() if ".attn2." in name}
    with safe_open(tmp_path / LORA_FILE, framework="pt") as file:
        assert (file.metadata()["rank"], file.metadata()["alpha"]) == ("3", "5")


def test_second_save_replaces_the_first(tmp_path):
    """Assert that saving into the same folder again leaves the newer adapter and nothing else."""
    unet = make_trained()
    save_adapter(unet, tmp_path)
    save_adapter(train(unet), tmp_path)
    fresh = make_unet()
    load_adapter(fresh, tmp_path)
    assert torch.equal(predict(fresh), predict(unet))
    assert len(list(tmp_path.iterdir())) == 2


def test_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    """Assert that a save that breaks off half-way leaves the older adapter whole and no other file."""
    unet = make_trained()
    save_adapter(unet, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(state, path, metadata):
        save_file(state, path, metadata=metadata)
        if path.name == ATTN2_FILE:
            raise OSError("no space left on device")

    monkeypatch.setattr("nvb_diffusers.models.unet.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_adapter(train(unet), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_loading_takes_the_dtype_of_the_base(trained, tmp_path):
    """Assert that a float32 adapter on a bfloat16 base runs in bfloat16."""
    save_adapter(trained, tmp_path)
    unet = make_unet().to(torch.bfloat16)
    load_adapter(unet, tmp_path)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}
    sample, timesteps, features = make_inputs(unet)
    with torch.no_grad():
        assert unet(sample.bfloat16(), timesteps, features.bfloat16()).sample.isfinite().all()


# Fused release


@LAYOUTS
def test_fused_round_trip(config, tmp_path, diffusers_warnings):
    """Assert that the fused UNet is plain, within 1e-5 of the adapter's output, and bit-exact when saved and loaded."""
    unet = make_trained(config)
    expected = predict(unet)
    fused = fuse_adapter(unet)
    assert type(fused) is UNet2DConditionModel
    assert fused.state_dict().keys() == make_unet(config).state_dict().keys()
    assert (predict(fused) - expected).abs().max() < 1e-5
    refuse_live_adapter(fused)
    assert not has_adapter(fused)
    fused.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(predict(again), predict(fused))
    assert same_state(again.state_dict(), fused.state_dict())
    assert diffusers_warnings() == []


def test_fusing_leaves_the_original_in_training():
    """Assert that fusing changes nothing in the original, which goes on training without touching the copy."""
    unet = make_trained()
    state = copy_state(unet)
    fused = fuse_adapter(unet)
    output = predict(fused)
    assert same_state(unet.state_dict(), state)
    assert has_adapter(unet)
    train(unet)
    assert not torch.equal(unet.conv_in.lora_B["nvb_face"].weight, state["conv_in.lora_B.nvb_face.weight"])
    assert torch.equal(predict(fused), output)


def test_no_adapter_is_applied_twice(trained, tmp_path):
    """Assert that an adapter loads onto no UNet that has one already, live, fused, or fused and loaded from disk."""
    save_adapter(trained, tmp_path / "adapter")
    with pytest.raises(ValueError, match="already carries a LoRA"):
        load_adapter(trained, tmp_path / "adapter")
    fused = fuse_adapter(trained)
    fused.save_pretrained(tmp_path / "unet")
    for release in (fused, UNet2DConditionModel.from_pretrained(tmp_path / "unet"), convert_unet(fused, 9)):
        before = copy_state(release)
        with pytest.raises(ValueError, match="a fused release needs no adapter"):
            load_adapter(release, tmp_path / "adapter")
        assert same_state(release.state_dict(), before)


def test_second_adapter_on_a_fused_release(trained, tmp_path):
    """Assert that an adapter trained on a fused release loads onto that one again, and not onto the first base."""
    fused = fuse_adapter(trained)
    fused.save_pretrained(tmp_path / "unet")
    add_adapter(fused, rank=2)
    train(fused)
    save_adapter(fused, tmp_path / "adapter")
    release = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    load_adapter(release, tmp_path / "adapter")
    assert torch.equal(predict(release), predict(fused))
    with pytest.raises(ValueError, match="load it onto the base it was trained on"):
        load_adapter(make_unet(), tmp_path / "adapter")
    assert len(fuse_adapter(release).config[FUSED_KEY]) == 2


# Bad input


def test_live_adapter_is_refused():
    """Assert that a UNet with a live adapter, or another LoRA, switched off or deleted too, may not be saved."""
    unet = make_unet()
    refuse_live_adapter(unet)
    add_adapter(unet)
    with pytest.raises(ValueError, match="fuse first"):
        refuse_live_adapter(unet)
    with pytest.raises(ValueError, match="fuse first"):
        convert_unet(unet, 9)
    other = make_unet()
    other.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "few_steps")
    with pytest.raises(ValueError, match="unload_lora_weights"):
        refuse_live_adapter(other)
    other.delete_adapters("few_steps")  # the layers stay wrapped
    with pytest.raises(ValueError, match="unload_lora_weights"):
        refuse_live_adapter(other)
    other.unload_lora()
    refuse_live_adapter(other)


def test_pipeline_with_a_live_adapter_is_not_saved(trained, pipe, tmp_path):
    """Assert that a pipeline writes nothing while an adapter is live, and saves and loads the fused UNet bit-exact."""
    pipe.register_modules(unet=trained)
    with pytest.raises(ValueError, match="fuse"):
        pipe.save_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()
    pipe.register_modules(unet=fuse_adapter(trained))
    pipe.save_pretrained(tmp_path / "pipe")
    again = NVBFacePipeline.from_pretrained(tmp_path / "pipe")
    assert torch.equal(predict(again.unet), predict(pipe.unet))
    assert again.unet.config[FUSED_KEY] == pipe.unet.config[FUSED_KEY]


def test_calls_in_the_wrong_state(tmp_path):
    """Assert that saving or fusing nothing, adding twice, fusing beside other LoRAs, and zero sizes are refused."""
    unet = make_unet()
    with pytest.raises(ValueError, match="no live adapter to save"):
        save_adapter(unet, tmp_path)
    with pytest.raises(ValueError, match="no live adapter to fuse"):
        fuse_adapter(unet)
    with pytest.raises(ValueError, match="rank is 0"):
        add_adapter(unet, rank=0)
    with pytest.raises(ValueError, match="cross_attention_dim is 0"):
        convert_unet(unet, 0)
    add_adapter(unet)
    with pytest.raises(ValueError, match="already carries"):
        add_adapter(unet)
    with pytest.warns(UserWarning, match="multiple adapters"):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "few_steps")
    with pytest.raises(ValueError, match=r"other LoRAs.*few_steps"):
        fuse_adapter(unet)


def rewrite(path, state=None, **metadata):
    """Write the file at `path` again with another state, or changed metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **metadata}
    save_file(load_file(path) if state is None else state, path, metadata=metadata)


def test_files_that_do_not_fit(trained, tmp_path):
    """Assert that files of another width, layout, rank or adapter are refused by name, and leave the UNet as it was."""
    save_adapter(trained, tmp_path)
    for config, found in (
        ({**TINY_21_CONFIG, "cross_attention_dim": 9}, r"attn2.*attn2\.to_k.*\(8, 12\) in the file and \(8, 9\)"),
        (TINY_15_CONFIG, r"proj_in.*\(3, 8\) in the file and \(3, 8, 1, 1\)"),
    ):
        unet = make_unet(config)
        with pytest.raises(ValueError, match=found):
            load_adapter(unet, tmp_path)
        refuse_live_adapter(unet)

    rewrite(tmp_path / LORA_FILE, rank="4")
    with pytest.raises(ValueError, match=r"\(3, 4, 3, 3\) in the file and \(4, 4, 3, 3\)"):
        load_adapter(make_unet(), tmp_path)
    lora = load_file(tmp_path / LORA_FILE)
    without = {name: value for name, value in lora.items() if name != "conv_out.lora_A.weight"}
    rewrite(tmp_path / LORA_FILE, without, rank="3")
    with pytest.raises(ValueError, match=r"conv_out.lora_A.weight has shape None in the file"):
        load_adapter(make_unet(), tmp_path)
    rewrite(tmp_path / LORA_FILE, lora, adapter="another")
    with pytest.raises(ValueError, match="not of one adapter"):
        load_adapter(make_unet(), tmp_path)


def test_files_that_are_none_of_ours(trained, tmp_path):
    """Assert that a missing, a truncated, a foreign and a pickled file each give one clear line."""
    save_adapter(trained, tmp_path)
    content = (tmp_path / ATTN2_FILE).read_bytes()
    (tmp_path / ATTN2_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_adapter(make_unet(), tmp_path)
    (tmp_path / ATTN2_FILE).unlink()
    torch.save({}, tmp_path / "unet_attn2.bin")
    with pytest.raises(ValueError, match=r"unet_attn2.safetensors is missing"):
        load_adapter(make_unet(), tmp_path)
    save_file({"some.lora_A.weight": torch.zeros(2, 3)}, tmp_path / LORA_FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not written by save_adapter"):
        load_adapter(make_unet(), tmp_path)


# Further LoRAs, by diffusers' own means


def write_few_step_lora(folder, config=TINY_21_CONFIG):
    """A published-style LoRA on attention and convolutions of `config`, as diffusers' pipelines save it."""
    unet = make_unet(config)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False), "few_steps")
    state = get_peft_model_state_dict(unet, adapter_name="few_steps")
    NVBFacePipeline.save_lora_weights(folder, unet_lora_layers=state)


def test_further_lora_on_a_fused_release(trained, pipe, tmp_path, diffusers_warnings):
    """Assert that a further LoRA loads, changes the output, unloads bit-exact, and fuses, without loss or warning."""
    write_few_step_lora(tmp_path)
    pipe.register_modules(unet=fuse_adapter(trained))
    # Loading freezes the weights, and torch multiplies by a frozen weight in another way than by one that could train.
    pipe.unet.requires_grad_(False)
    plain = predict(pipe.unet)
    pipe.load_lora_weights(tmp_path, adapter_name="few_steps", use_safetensors=True)
    changed = predict(pipe.unet)
    assert (changed - plain).abs().max() > 1e-3
    assert not has_adapter(pipe.unet)
    with pytest.raises(ValueError, match="unload_lora_weights"):
        refuse_live_adapter(pipe.unet)
    pipe.unload_lora_weights()
    assert torch.equal(predict(pipe.unet), plain)

    pipe.load_lora_weights(tmp_path, adapter_name="few_steps", use_safetensors=True)
    pipe.fuse_lora(components=["unet"])
    pipe.unload_lora_weights()
    refuse_live_adapter(pipe.unet)
    assert (predict(pipe.unet) - changed).abs().max() < 1e-5
    assert len(pipe.unet.config[FUSED_KEY]) == 1
    assert [message for message in diffusers_warnings() if "text_encoder" not in message] == []


def test_fused_key_in_saved_config(trained, tmp_path):
    """Assert that the saved config names the fused adapter, and differs by nothing else from the base's."""
    fuse_adapter(trained).save_pretrained(tmp_path / "fused")
    make_unet().save_pretrained(tmp_path / "base")
    config, base = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("fused", "base"))
    assert len(config.pop(FUSED_KEY)) == 1
    assert config == base


def test_a_copy_is_fused_on_the_cpu(monkeypatch):
    """Assert that no tensor is copied where it is, as another UNet of the paper's size may not fit on its device."""
    unet = UNet2DConditionModel.from_config(TINY_21_CONFIG)
    add_adapter(unet, rank=2)

    def refuse(self, memo):
        raise AssertionError("copied on its own device")

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", refuse)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", refuse)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    fused = fuse_adapter(unet)
    for value in fused.state_dict().values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_base_model_is_remembered(tmp_path):
    """Assert that what is made from a base model, converted, fused, saved and made anew from, still names the first."""
    UNet2DConditionModel.from_config(TINY_21_CONFIG).save_pretrained(tmp_path / "base/unet")
    unet = convert_unet(load_unet(str(tmp_path / "base"), None), 20)
    add_adapter(unet, rank=2)
    fuse_adapter(unet).save_pretrained(tmp_path / "made/unet")
    assert base_model(load_unet(str(tmp_path / "made"), None)) == str(tmp_path / "base")
    assert base_model(UNet2DConditionModel.from_config(TINY_21_CONFIG)) is None
