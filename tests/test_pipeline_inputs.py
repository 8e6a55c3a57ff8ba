"""What the pipeline reads, what it refuses, and in which words: pictures, arguments, components, files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LATENT_SHAPE, SIDE, tiny_encoder, tiny_pipeline, tiny_unet, tiny_vae, tiny_view_transformer
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import orbit_cameras

PICTURE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ARRAY = PICTURE.astype(np.float32) / 255  # (H, W, 3)
TENSOR = torch.from_numpy(ARRAY).movedim(-1, 0)  # (3, H, W)
CAMERAS = orbit_cameras(2, (-20, 30))


def latents_of(pipe, image=ARRAY, cameras=CAMERAS, **kwargs):
    """The latents after two steps, the same for the same seed."""
    settings = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    if pipe.view_transformer is None:
        return pipe.restore(image, **settings, **kwargs).images
    return pipe(image, cameras, **settings, **kwargs).images


@pytest.fixture(scope="module")
def shared_pipe():
    """A pipeline for the tests that leave it as it is."""
    return tiny_pipeline()


@pytest.fixture(scope="module")
def saved(shared_pipe, tmp_path_factory):
    """The folder of a saved pipeline, for the tests that only read it."""
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    shared_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def diffusers_warnings(caplog):
    """What diffusers logs from WARNING upwards, as pytest sees it."""
    diffusers_logging.enable_propagation()
    yield lambda: [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    diffusers_logging.disable_propagation()


# Pictures


def test_forms_of_a_batch(shared_pipe):
    """Assert that a list of pictures, a batch and a list of batches are the same pictures."""
    for batch in ([ARRAY, ARRAY], np.stack([ARRAY, ARRAY]), torch.stack([TENSOR, TENSOR]), [TENSOR[None], ARRAY]):
        for latents in latents_of(shared_pipe, batch, latents=torch.zeros(2, 1, *LATENT_SHAPE)):
            expected = latents_of(shared_pipe, latents=torch.zeros(1, 1, *LATENT_SHAPE))
            torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_forms_of_a_picture(shared_pipe, tmp_path):
    """Assert that one picture gives the same pixels as a PIL image, a path, an array and a tensor."""
    Image.fromarray(PICTURE).save(tmp_path / "face.png")
    read_only = ARRAY.copy()
    read_only.flags.writeable = False
    forms = [
        Image.fromarray(PICTURE),
        Image.fromarray(PICTURE).convert("RGBA"),
        tmp_path / "face.png",
        str(tmp_path / "face.png"),
        ARRAY,
        ARRAY.astype(np.float64),
        read_only,
        ARRAY[:, ::-1].copy()[:, ::-1],  # with a negative stride
        TENSOR,
    ]
    pixel_values = shared_pipe.preprocess_images(forms)
    assert pixel_values.shape == (len(forms), 3, SIDE, SIDE)
    assert (pixel_values - (2 * TENSOR - 1)).abs().max() < 1e-6


def test_several_pictures(shared_pipe):
    """Assert that a list, a tuple, an array (B, H, W, 3) and a tensor (B, 3, H, W) are batches, of one too."""
    expected = latents_of(shared_pipe, [ARRAY, 1 - ARRAY])
    for images in (
        (ARRAY, 1 - ARRAY),
        np.stack([ARRAY, 1 - ARRAY]),
        torch.stack([TENSOR, 1 - TENSOR]),
        [Image.fromarray(PICTURE), 1 - TENSOR],
    ):
        assert (latents_of(shared_pipe, images) - expected).abs().max() < 1e-4
    assert latents_of(shared_pipe, TENSOR[None]).shape == (1, 2, *LATENT_SHAPE)
    assert latents_of(shared_pipe, TENSOR).shape == (2, *LATENT_SHAPE)


def test_pictures_are_resized(shared_pipe):
    """Assert that a smooth picture of any size arrives at the encoder's size, the same from PIL and from arrays."""
    ramp = np.broadcast_to(np.linspace(0, 1, 200, dtype=np.float32)[None, :, None], (200, 200, 3))
    pil = Image.fromarray((255 * ramp).round().astype(np.uint8))
    pixel_values = shared_pipe.preprocess_images([ramp, pil, pil.convert("L")])
    middle = (torch.arange(SIDE) + 0.5) / SIDE
    assert (pixel_values[:, :, :, 4:-4] - (2 * middle - 1)[4:-4]).abs().max() < 0.02


def test_a_turned_photo_is_read_upright(shared_pipe, tmp_path):
    """Assert that the orientation which a camera writes into a file is obeyed."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn counterclockwise
    Image.fromarray(np.rot90(PICTURE).copy()).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(*shared_pipe.preprocess_images([tmp_path / "turned.png", Image.fromarray(PICTURE)]))


# What is refused


def with_value(array, value):
    changed = array.copy()
    changed[3, 5, 1] = value
    return changed


def scaled(factor):
    cameras = CAMERAS.clone()
    cameras[1, :16].view(4, 4)[:3, :3] *= factor
    return cameras


BAD_CALLS = {
    "too small": ({"image": ARRAY[:4, :4]}, "4x4, but a square face crop of at least 8 pixels"),
    "too small PIL": ({"image": Image.fromarray(PICTURE[:4, :4])}, "4x4, but a square face crop of at least 8 pixels"),
    "not square": ({"image": Image.fromarray(PICTURE[:50])}, "64x50, but a square face crop"),
    "tensor not square": ({"image": TENSOR[:, :40]}, "64x40, but a square face crop"),
    "four channels": ({"image": np.concatenate([ARRAY, ARRAY[..., :1]], axis=-1)}, "shape (64, 64, 4), but an array"),
    "no channels": ({"image": ARRAY[..., 0]}, "shape (64, 64), but an array (H, W, 3) or a tensor (3, H, W)"),
    "array as tensor": ({"image": torch.from_numpy(ARRAY)}, "shape (64, 64, 3)"),
    "video": ({"image": ARRAY[None, None]}, "shape (1, 1, 64, 64, 3)"),
    "NaN": ({"image": with_value(ARRAY, np.nan)}, "float32 from nan to nan, but floating-point numbers from 0 to 1"),
    "infinite": ({"image": with_value(ARRAY, np.inf)}, "to inf, but"),
    "above 1": ({"image": 255 * ARRAY}, "to 255, but floating-point numbers from 0 to 1"),
    "below 0": ({"image": [TENSOR, 2 * TENSOR - 1]}, "from -1 to 1, but"),
    "bytes": ({"image": PICTURE}, "uint8 from 0 to 255, but floating-point"),
    "no file": ({"image": "nowhere/face.png"}, "cannot read image 'nowhere/face.png': there is no such file"),
    "a folder": ({"image": Path(__file__).parent}, "tests': "),
    "no image": ({"image": Path(__file__)}, "test_pipeline_inputs.py': Pillow cannot decode it"),
    "a number": ({"image": 7}, "An image is a int, but a PIL image, path, array or tensor is accepted"),
    "nothing": ({"image": None}, "`image` is missing: give one, or the `conditioning`"),
    "nothing in a list": ({"image": [None]}, "An image is a NoneType"),
    "no images": ({"image": []}, "list of images is empty"),
    "no images in a batch": ({"image": ARRAY[None][:0]}, "list of images is empty"),
    "camera of 16": ({"cameras": CAMERAS[:, :16]}, "`cameras` has shape (2, 16), but its last dimension must be 25"),
    "one pair": ({"cameras": (30, 0)}, "`cameras` has shape (2,), but (V, 25), (1, V, 25) or a sequence of (yaw"),
    "cameras of two images": ({"cameras": CAMERAS.repeat(2, 1, 1)}, "`cameras` has shape (2, 2, 25), but (V, 25), (1,"),
    "a number of views": ({"cameras": 7}, "`cameras` has shape (), but"),
    "words": ({"cameras": ["left", "right"]}, "`cameras` are no numbers in rows of equal length"),
    "uneven pairs": ({"cameras": [(0, 0), (10,)]}, "`cameras` are no numbers in rows of equal length"),
    "no cameras": ({"cameras": []}, "`cameras` is empty, but at least one view"),
    "no labels": ({"cameras": CAMERAS[:0]}, "`cameras` is empty, but at least one view"),
    "not rigid": ({"cameras": scaled(1.1)}, "`cameras` holds a cam2world that is not rigid: it deviates by 0.33"),
    "NaN angle": ({"cameras": [(0, float("nan"))]}, "`cameras` holds values that are not finite"),
    "source of two": ({"source_cameras": CAMERAS}, "`source_cameras` has shape (2, 25), but (1, 25) is accepted"),
    "source not rigid": ({"source_cameras": scaled(0.9)[1]}, "`source_cameras` holds a cam2world that is not rigid"),
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` is 0, but it must be a whole number of at least 1"),
    "negative steps": ({"num_inference_steps": -5}, "`num_inference_steps` is -5, but"),
    "generators": ({"generator": [torch.Generator()] * 3}, "3 generators were given for 1 images"),
    "no generators": ({"generator": []}, "0 generators were given for 1 images"),
    "latents without views": ({"latents": torch.zeros(1, *LATENT_SHAPE)}, "(1, 4, 8, 8), but (1, 2, 4, 8, 8) or (1"),
    "latents of 3 views": ({"latents": torch.zeros(1, 3, *LATENT_SHAPE)}, "`latents` has shape (1, 3, 4, 8, 8), but"),
    "no batch": ({"view_batch_size": 0}, "`view_batch_size` is 0, but it must be a whole number of at least 1"),
    "output type": ({"output_type": "jpeg"}, "`output_type` is 'jpeg', but pil, np, pt or latent"),
    "callback tensor": (
        {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
        "Callbacks cannot be given ['prompt_embeds'], but only ['latents', 'encoder_hidden_states']",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_is_refused(shared_pipe, batch_counter, name):
    """Assert one line that says what was given and what is accepted, before any model runs."""
    arguments, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        shared_pipe(**({"image": ARRAY, "cameras": CAMERAS} | arguments))
    assert "\n" not in str(caught.value)
    assert batch_counter == []


@pytest.fixture
def batch_counter(shared_pipe):
    """An entry for each time that the image encoder runs."""
    runs = []
    hook = shared_pipe.image_encoder.register_forward_pre_hook(lambda *_: runs.append(1))
    yield runs
    hook.remove()


def test_views_without_a_view_transformer_are_refused():
    """Assert that a pipeline which only restores says so, to whatever asks for views or their cameras."""
    step1 = tiny_pipeline(view_transformer=False)
    for make in (step1, step1.encode, step1.predict_cameras):
        with pytest.raises(ValueError, match="has no view transformer, so it makes no views: it can only `restore`"):
            make(ARRAY)
    assert len(step1.restore(ARRAY, num_inference_steps=1).images) == 1


# Arguments that a restoration shares with a call are checked in the same words.
RESTORABLE = {"image", "num_inference_steps", "generator", "view_batch_size", "output_type"}
BAD_RESTORATIONS = [name for name, (arguments, _) in BAD_CALLS.items() if arguments.keys() <= RESTORABLE]


@pytest.mark.parametrize("name", BAD_RESTORATIONS)
def test_bad_restoration_is_refused(shared_pipe, batch_counter, name):
    """Assert the line that a call gives, before any model runs."""
    arguments, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        shared_pipe.restore(**({"image": ARRAY} | arguments))
    assert batch_counter == []


BAD_COMPONENTS = {
    "image_encoder": (lambda: tiny_encoder(out_channels=20), "image encoder's features are 20 wide, but the UNet's"),
    "view_transformer": (lambda: tiny_view_transformer(in_channels=20), "view transformer's features are 20 wide, but"),
    "unet": (lambda: tiny_unet(cross_attention_dim=20), "are 12 wide, but the UNet's cross-attention reads 20"),
    "vae": (lambda: tiny_vae(latent_channels=6), "latents have 6 channels, but the UNet takes 4"),
    "scheduler": (FlowMatchEulerDiscreteScheduler, "The scheduler predicts None, but one of"),
    "view_transformer of another side": (
        lambda: tiny_view_transformer(feature_size=4),
        "feature maps have side 4, but the image encoder's have 8",
    ),
    **{
        f"{name} missing": (lambda: None, f"`{name}` is None, but only `view_transformer` and `appearance` may be")
        for name in ("image_encoder", "unet", "vae", "scheduler")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COMPONENTS)
def test_component_that_does_not_fit_is_refused(pipe, name):
    """Assert a ValueError for a wrong size or none, when a pipeline is made and when a component is replaced later."""
    make, message = BAD_COMPONENTS[name]
    component, name = make(), name.split()[0]
    with pytest.raises(ValueError, match=message):
        NVBFacePipeline(**{**pipe.components, name: component})
    pipe.register_modules(**{name: component})
    for call in (pipe, pipe.restore):
        with pytest.raises(ValueError, match=message):
            call(ARRAY)


def test_unknown_prediction_type_is_refused(pipe):
    """Assert that the scheduler's target is one that the training knows; all three of those run."""
    for known in ("epsilon", "v_prediction", "sample"):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=known)
        assert latents_of(pipe).isfinite().all()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="flow_prediction")
    with pytest.raises(ValueError, match=r"predicts 'flow_prediction', but one of .*epsilon"):
        latents_of(pipe)


# Files


@pytest.mark.parametrize("view_transformer", [True, False])
@pytest.mark.parametrize("loader", [NVBFacePipeline, DiffusionPipeline])
def test_saved_pipeline_loads_bit_exact(tmp_path, diffusers_warnings, loader, view_transformer):
    """Assert that a folder gives the same latents by our class and by the base class, with and without step 2."""
    pipe = tiny_pipeline(view_transformer=view_transformer)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    names = ["nvb_diffusers", "ViewTransformer3D"] if view_transformer else [None, None]
    assert index["view_transformer"] == names
    loaded = loader.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is NVBFacePipeline
    assert not any(model.training for model in (loaded.image_encoder, loaded.unet, loaded.vae))
    assert torch.equal(latents_of(loaded), latents_of(pipe))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert diffusers_warnings() == []


def test_components_make_another_pipeline(saved, shared_pipe):
    """Assert that the components of a pipeline make one that does the same, and that one given replaces a saved one."""
    settings = {"cameras": CAMERAS[:1]}
    expected = latents_of(shared_pipe, **settings)
    again = NVBFacePipeline(**shared_pipe.components)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents_of(again, **settings), expected)
    changed = NVBFacePipeline.from_pretrained(saved, unet=tiny_pipeline(seed=1).unet)
    changed.set_progress_bar_config(disable=True)
    assert (latents_of(changed, **settings) - expected).abs().max() > 1e-3


def test_half_precision_variant(saved, tmp_path):
    """Assert that `variant` and `dtype` save and load half the bytes, which make nearly the same views."""
    half = NVBFacePipeline.from_pretrained(saved, dtype=torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    weights = tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors"
    full = saved / "unet/diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 0.7 * full.stat().st_size
    assert not (tmp_path / "unet/diffusion_pytorch_model.safetensors").exists()
    loaded = NVBFacePipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    for pipe in (half, loaded):
        pipe.set_progress_bar_config(disable=True)
    assert loaded.dtype == loaded.view_transformer.dtype == loaded.vae.dtype == torch.float16
    assert torch.equal(latents_of(loaded), latents_of(half))
    with pytest.raises(ValueError, match="variant"):
        NVBFacePipeline.from_pretrained(saved, variant="fp16")


@pytest.mark.parametrize("component", ["image_encoder", "view_transformer", "unet", "vae"])
def test_pickle_is_refused(shared_pipe, tmp_path, component):
    """Assert that a folder in which one component's weights are a pickle is not loaded, and says what to do."""
    shared_pipe.save_pretrained(tmp_path)
    weights = tmp_path / component / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save(getattr(shared_pipe, component).state_dict(), weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"lacks safetensors weights, and a pickle is refused: convert it first\.$"):
        NVBFacePipeline.from_pretrained(tmp_path)


def test_bad_loading_is_refused(saved, shared_pipe, tmp_path):
    """Assert one line for `use_safetensors=False`, for damaged weights, and for a folder that is not there."""
    with pytest.raises(ValueError, match=r"only safetensors weights are loaded, never a pickle"):
        NVBFacePipeline.from_pretrained(saved, use_safetensors=False)
    with pytest.raises(ValueError, match="nowhere"):
        NVBFacePipeline.from_pretrained(tmp_path / "nowhere")
    shared_pipe.save_pretrained(tmp_path)
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"Damaged weights.*unet/diffusion_pytorch_model\.safetensors"):
        NVBFacePipeline.from_pretrained(tmp_path)


def make_lora():
    """A LoRA for the UNet of the tiny pipeline, as others would train it."""
    unet = tiny_unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False), "few_steps")
    return get_peft_model_state_dict(unet, adapter_name="few_steps")


def test_lora_comes_and_goes(pipe, tmp_path, diffusers_warnings):
    """Assert that a LoRA loads by path, by dict and by name, scales, unloads bit-exact and fuses, without a warning."""
    NVBFacePipeline.save_lora_weights(tmp_path, unet_lora_layers=make_lora())
    # Loading freezes the weights, and torch multiplies by a frozen weight in another way than by one that could train.
    pipe.unet.requires_grad_(False)
    plain = latents_of(pipe)
    pipe.load_lora_weights(tmp_path, adapter_name="few_steps")
    assert pipe.get_active_adapters() == ["few_steps"]
    changed = latents_of(pipe)
    assert (changed - plain).abs().max() > 1e-3
    pipe.set_adapters("few_steps", 0.0)
    assert (latents_of(pipe) - plain).abs().max() < 1e-4
    pipe.unload_lora_weights()
    assert torch.equal(latents_of(pipe), plain)
    for source, kwargs in (
        ({f"unet.{name}": value for name, value in make_lora().items()}, {}),
        (str(tmp_path / "pytorch_lora_weights.safetensors"), {}),
        (tmp_path, {"weight_name": "pytorch_lora_weights.safetensors", "use_safetensors": True}),
    ):
        pipe.load_lora_weights(source, **kwargs)
        assert (latents_of(pipe) - plain).abs().max() > 1e-3
        pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path)
    for _ in range(2):
        pipe.fuse_lora()
        assert (latents_of(pipe) - changed).abs().max() < 1e-4
        pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert (latents_of(pipe) - plain).abs().max() < 1e-4
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora(["unet"])
    pipe.unload_lora_weights()
    assert (latents_of(pipe) - changed).abs().max() < 1e-4
    assert diffusers_warnings() == []


def test_pickled_lora_is_refused(pipe, tmp_path):
    """Assert that a LoRA in a pickle is not loaded, by whichever argument it is named, and leaves nothing behind."""
    name = "pytorch_lora_weights.bin"
    torch.save({f"unet.{name}": value for name, value in make_lora().items()}, tmp_path / name)
    for source, kwargs, message in (
        (tmp_path / name, {}, "is no .safetensors file, and a pickle is refused"),
        (tmp_path, {"weight_name": name}, "pytorch_lora_weights.bin is no .safetensors file"),
        (tmp_path, {"use_safetensors": False}, "never a pickle"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.load_lora_weights(source, **kwargs)
    with pytest.raises(OSError, match=r"no file named pytorch_lora_weights\.safetensors"):
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {}


def test_pipeline_with_a_lora_is_not_saved(pipe, tmp_path):
    """Assert that nothing is written while a LoRA is live, or fused but not unloaded; afterwards it saves."""
    pipe.load_lora_weights({f"unet.{name}": value for name, value in make_lora().items()})
    for step in (pipe.fuse_lora, pipe.unload_lora_weights):
        with pytest.raises(ValueError, match=r"live LoRA adapter.*pipe.fuse_lora\(\)"):
            pipe.save_pretrained(tmp_path / "pipe")
        assert not (tmp_path / "pipe").exists()
        step()
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = NVBFacePipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    loaded.unet.requires_grad_(False)
    assert torch.equal(latents_of(loaded), latents_of(pipe))
