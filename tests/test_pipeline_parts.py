"""The pipeline with other parts of diffusers: schedulers, decoders, dtypes, offload, ways to run the UNet."""

import diffusers
import numpy as np
import pytest
import torch
from conftest import LATENT_SHAPE, tiny_encoder, tiny_pipeline, tiny_unet, tiny_vae
from diffusers import AutoencoderDC, AutoencoderTiny, HeunDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from pipeline_calls import CAMERAS, STEPS, difference, noise, picture, seeded, views

from nvb_diffusers import NVBFacePipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")  # diffusers' schedulers on numpy 2

SCHEDULERS = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepScheduler sde": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"lower_order_final": True},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing"},
    "EulerDiscreteScheduler karras": {"use_karras_sigmas": True},
    "HeunDiscreteScheduler": {},
    "LCMScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "UniPCMultistepScheduler": {},
}


def knowing_unet(scheduler, clean):
    """The forward of a UNet that knows the clean latents, and so tells the noise in any others of any time step."""
    log_sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).log() / 2

    def forward(latents, timestep, encoder_hidden_states, **kwargs):
        before, after = int(timestep), min(int(timestep) + 1, len(log_sigmas) - 1)  # some schedulers step in between
        sigma = torch.lerp(log_sigmas[before], log_sigmas[after], float(timestep) - before).exp()
        return ((latents * (1 + sigma**2) ** 0.5 - clean) / sigma,)

    return forward


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(pipe, name):
    """Assert that each leads to the latents that the UNet knows, and to finite ones with ours, by the generators."""
    clean = noise(seed=9)
    known = knowing_unet(pipe.scheduler, clean)
    pipe.scheduler = getattr(diffusers, name.split()[0]).from_config(pipe.scheduler.config, **SCHEDULERS[name])
    settings = {"num_inference_steps": 4, "eta": 1.0, "cameras": CAMERAS[:1], "output_type": "latent"}
    images = [picture(), picture(1)]
    first, again = (views(pipe, images, generator=[seeded(0), seeded(1)], **settings) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, again)
    pipe.unet.forward = known
    found = views(pipe, images, generator=[seeded(0), seeded(1)], **settings)
    # Some end at the first time step, whose noise has a deviation of 0.029, where the latents' own is about 1.
    assert (found - clean).square().mean().sqrt() < 0.04


def test_eta_adds_noise_from_the_generator(pipe):
    """Assert that DDIM's steps draw from the generator if eta is 1 and not if it is 0."""
    for eta, noisy in ((0.0, False), (1.0, True)):
        first, second = (views(pipe, latents=noise(1, 3), eta=eta, generator=seeded(seed)) for seed in (1, 2))
        assert (difference(first, second) > 1e-3) == noisy


def deviation(first, second):
    """The root mean square of the difference of two arrays of one shape."""
    assert first.shape == second.shape
    return float(np.sqrt(np.square(np.asarray(first, dtype=np.float64) - second).mean()))


def note_fetches(pipe):
    """A list to which CPU offload adds the name of each model that it fetches, until the end of a call.

    The hooks are accelerate's own; here the fast device is the CPU too, so that the order can be seen on any machine.
    """
    fetched = []
    pipe.enable_model_cpu_offload(device="cpu")
    for name, model in pipe.components.items():
        if isinstance(model, torch.nn.Module):
            fetch = model._hf_hook.pre_forward

            def noted(module, *args, _name=name, _fetch=fetch, **kwargs):
                fetched.append(_name)
                return _fetch(module, *args, **kwargs)

            model._hf_hook.pre_forward = noted
    return fetched


def turns_of(fetched):
    return [name for i, name in enumerate(fetched) if i == 0 or fetched[i - 1] != name]


def test_models_run_one_after_another():
    """Assert that with CPU offload each model is fetched in its turn of `model_cpu_offload_seq`, and only then."""
    pipe = tiny_pipeline(appearance=True)
    in_turn = pipe.model_cpu_offload_seq.split("->")
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "cameras": CAMERAS[:1], "view_batch_size": 1}
    expected = views(pipe, **settings)
    fetched = note_fetches(pipe)
    assert np.array_equal(views(pipe, **settings), expected)
    # The appearance model corrects the predicted camera before the views are built, and fuses after decoding.
    assert turns_of(fetched) == [*in_turn[:2], "appearance", *in_turn[1:]]
    # All steps' conditioning, one by one here, belongs to one turn of encoder and view transformer.
    counts = {name: fetched.count(name) for name in fetched}
    assert counts == {
        "image_encoder": 3,
        "view_transformer": 3 + 3 + 3 + 3,
        "unet": 3,
        "vae": 1,
        "appearance": 2,
    }  # read and fuse
    fetched = note_fetches(pipe)
    pipe.restore(picture(), num_inference_steps=3, fidelity=0.5)
    assert turns_of(fetched) == [name for name in in_turn if name != "view_transformer"]
    fetched = note_fetches(pipe)
    pipe.restore(picture(), num_inference_steps=3)
    assert turns_of(fetched) == ["appearance"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe, dtype):
    """Assert pictures that differ from those of float32 by rounding, with guidance; cameras stay float32."""
    settings = {"guidance_scale": 2.0, "cameras": CAMERAS[:2], "latents": noise(1, 1)}
    expected = views(pipe, **settings)
    for model in (pipe.image_encoder, pipe.view_transformer, pipe.unet, pipe.vae):
        model.to(dtype)
    output = pipe(picture(), num_inference_steps=STEPS, output_type="pt", **settings)
    assert output.images.dtype == dtype
    assert output.source_cameras.dtype == torch.float32
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert 0 < deviation(output.images.float().movedim(1, -1), expected) < 10 * rounding * expected.std()
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.isfinite(views(pipe, **settings)).all()


def test_each_model_may_have_its_own_dtype(pipe):
    """Assert that features, states and latents are cast on their way from model to model."""
    settings = {"guidance_scale": 2.0, "latents": noise(1, 1)}
    expected = views(pipe, **settings)
    pipe.image_encoder.to(torch.bfloat16)
    pipe.unet.to(torch.float64)
    # The encoder rounds to 1/256; what it tells moves the pictures of an untrained UNet by little.
    assert 0 < deviation(views(pipe, **settings), expected) < 1e-3 * expected.std()


def test_layerwise_casting(pipe):
    """Assert that with weights in 8 bits, three of them after the point, all models make nearly their pictures."""
    expected = views(pipe)
    for model in (pipe.image_encoder, pipe.view_transformer, pipe.unet, pipe.vae):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert pipe.unet.mid_block.resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    assert 0 < deviation(views(pipe), expected) < 0.2 * expected.std()


def test_ways_to_run_the_unet(pipe):
    """Assert that attention processors, fused projections and channels_last change only rounding."""
    expected = views(pipe)
    pipe.unet.to(memory_format=torch.channels_last)
    assert difference(views(pipe), expected) < 1e-4
    pipe.unet.set_attn_processor(AttnProcessor())
    assert difference(views(pipe), expected) < 1e-4
    pipe.unet.set_default_attn_processor()
    pipe.unet.fuse_qkv_projections()
    assert difference(views(pipe), expected) < 1e-4


def test_other_decoders(pipe):
    """Assert that AutoencoderTiny and AutoencoderDC decode in place of AutoencoderKL, each with its own scale."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=LATENT_SHAPE[0]
    )
    deep = AutoencoderDC(
        latent_channels=LATENT_SHAPE[0],
        attention_head_dim=4,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        decoder_block_types="ResBlock",
        encoder_block_types="ResBlock",
        scaling_factor=0.5,
    )
    latents = views(pipe, output_type="latent")
    for vae, scale in ((tiny, 1.0), (deep, 0.5)):
        other = NVBFacePipeline(**{**pipe.components, "vae": vae.eval()})
        other.set_progress_bar_config(disable=True)
        with torch.no_grad():
            decoded = vae.decode(latents / scale).sample
        assert difference(views(other, output_type="pt"), (decoded / 2 + 0.5).clamp(0, 1)) < 1e-5


def test_shifted_latents():
    """Assert that a VAE with a shift gets z / scaling_factor + shift_factor."""
    pipe = NVBFacePipeline(
        tiny_encoder(), tiny_unet(), tiny_vae(scaling_factor=0.5, shift_factor=0.25), tiny_pipeline().scheduler
    )
    with torch.no_grad():
        expected = pipe.vae.decode(noise(2) * 2 + 0.25).sample
        assert torch.equal(pipe.decode_latents(noise(2)), expected)
