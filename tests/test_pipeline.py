"""The pipeline's call on tiny random models: what it computes, from what, and how often."""

import io

import numpy as np
import pytest
import torch
from conftest import LATENT_SHAPE, SIDE, WIDTH, tiny_pipeline
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from PIL import Image
from pipeline_calls import CAMERAS, STEPS, difference, noise, picture, seeded, views

from nvb_diffusers import NVBFacePipeline, NVBFacePipelineOutput
from nvb_diffusers.camera import average_cameras, camera_from_angles, check_camera_params, orbit_cameras
from nvb_diffusers.denoising import guided_prediction

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")  # diffusers' schedulers on numpy 2


@pytest.fixture
def batches(pipe, monkeypatch):
    """The sizes of all batches that go through each part of `pipe`."""
    sizes = {"image_encoder": [], "build_volume": [], "project": [], "unet": [], "decode": []}

    def count(owner, method, name):
        original = getattr(owner, method)

        def counted(first, *args, **kwargs):
            output = original(first, *args, **kwargs)
            # A volume is of as many images as it has, a projection of as many feature maps as volumes times views.
            made = {"build_volume": 1, "project": 2}
            sizes[name].append(output.shape[: made[name]].numel() if name in made else len(first))
            return output

        monkeypatch.setattr(owner, method, counted)

    count(pipe.image_encoder, "forward", "image_encoder")
    count(pipe.view_transformer, "build_volume", "build_volume")
    count(pipe.view_transformer, "project", "project")
    count(pipe.unet, "forward", "unet")
    count(pipe.vae, "decode", "decode")
    return sizes


# What comes out


def test_call_in_its_simplest_form(pipe):
    """Assert that a photo of any square size gives a list of pictures, one for each camera, and its own camera."""
    image = Image.fromarray((255 * picture(side=90)).astype(np.uint8))
    output = pipe(image, cameras=CAMERAS, num_inference_steps=STEPS)
    assert isinstance(output, NVBFacePipelineOutput)
    assert [(type(view), view.size) for view in output.images] == [(Image.Image, (SIDE, SIDE))] * 3
    assert output.source_cameras.shape == (1, 25)
    check_camera_params(output.source_cameras)


@pytest.mark.parametrize(
    ("output_type", "shape"),
    [("np", (SIDE, SIDE, 3)), ("pt", (3, SIDE, SIDE)), ("latent", LATENT_SHAPE)],
)
def test_shapes_of_output_types(pipe, output_type, shape):
    """Assert (V, ...) for one image and (B, V, ...) for several, of which one in a list is a case."""
    assert views(pipe, output_type=output_type).shape == (3, *shape)
    assert views(pipe, [picture()], output_type=output_type).shape == (1, 3, *shape)
    assert views(pipe, [picture(), picture(1)], output_type=output_type).shape == (2, 3, *shape)


def test_output_types_hold_the_same_pictures(pipe):
    """Assert that arrays, tensors, 8-bit pictures and decoded latents are one result."""
    array = views(pipe)
    assert 0 <= array.min() < array.max() <= 1
    assert difference(views(pipe, output_type="pt").movedim(1, -1), array) == 0
    pil = views(pipe, output_type="pil")
    assert difference(np.stack(pil), (255 * array).round()) == 0
    with torch.no_grad():
        decoded = pipe.decode_latents(views(pipe, output_type="latent"))
    assert difference((decoded.movedim(1, -1) / 2 + 0.5).clamp(0, 1), array) < 1e-6
    lists = views(pipe, [picture(1), picture()], output_type="pil", latents=noise(2, 1))
    assert [len(of_image) for of_image in lists] == [3, 3]
    single = views(pipe, picture(1), output_type="pil", latents=noise(2, 1)[:1])
    # Within a level: sums over a batch of another size may round otherwise, which the processor decides.
    assert difference(np.stack(lists[0]).astype(float), np.stack(single).astype(float)) <= 1


def test_tuple_equals_dict(pipe):
    """Assert that `return_dict=False` gives the same two things, as a tuple."""
    settings = {"cameras": CAMERAS, "num_inference_steps": STEPS, "output_type": "np"}
    output = pipe(picture(), generator=seeded(), **settings)
    images, source_cameras = pipe(picture(), generator=seeded(), return_dict=False, **settings)
    assert np.array_equal(images, output.images)
    assert torch.equal(source_cameras, output.source_cameras)


def test_seed_image_and_camera_decide(pipe):
    """Assert the same views for the same seed, and others for another seed, another image or another camera."""
    first = views(pipe)
    assert np.array_equal(views(pipe), first)
    assert difference(views(pipe, generator=seeded(1)), first) > 1e-3
    assert difference(views(pipe, picture(1)), first) > 1e-4
    moved = views(pipe, cameras=[(-40, 0), (0, 0), (40, 20)])
    assert difference(moved[:2], first[:2]) < 1e-5
    assert difference(moved[2], first[2]) > 1e-4


# What is computed, and how often


@pytest.mark.parametrize("num_views", [1, 5])
def test_volume_is_built_once_per_image_and_step(pipe, batches, num_views):
    """Assert that encoder and volume run B T times whatever the number of views, projection and UNet B T V times."""
    views(pipe, [picture(), picture(1)], orbit_cameras(num_views, (-30, 30)))
    totals = {name: sum(sizes) for name, sizes in batches.items()}
    assert totals == {
        "image_encoder": 2 * STEPS,
        "build_volume": 2 * STEPS,
        "project": 2 * STEPS * num_views,
        "unet": 2 * STEPS * num_views,
        "decode": 2 * num_views,
    }


def test_repeated_time_steps_are_encoded_once(pipe, batches):
    """Assert that a second-order scheduler, which visits all time steps but the first twice, costs no conditioning."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    views(pipe)
    assert sum(batches["unet"]) == 3 * (2 * STEPS - 1)
    assert sum(batches["build_volume"]) == sum(batches["image_encoder"]) == STEPS


def test_conditioning_follows_the_time_step(pipe):
    """Assert that each step's cross-attention reads the features of that very time step, in any order of steps."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    states = []

    def collect(_, step, timestep, tensors):
        states.append((timestep, tensors["encoder_hidden_states"]))
        return tensors

    views(pipe, callback_on_step_end=collect, callback_on_step_end_tensor_inputs=["encoder_hidden_states"])
    assert len(states) == 2 * STEPS - 1
    pixel_values = pipe.preprocess_images([picture()])
    with torch.no_grad():
        source_cameras = pipe.predict_cameras(picture(), STEPS)
        for timestep, encoder_hidden_states in states:
            features = pipe.image_encoder(pixel_values, timestep).sample
            expected = pipe.view_transformer(features, timestep, CAMERAS[None], source_cameras).features[0]
            assert difference(encoder_hidden_states, expected.flatten(2).mT) < 1e-5


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_views_together_equal_single_views(pipe, guidance_scale):
    """Assert that with given latents a view does not depend on which others are made with it."""
    latents = noise(1, 3)
    together = views(pipe, latents=latents, guidance_scale=guidance_scale)
    for i in range(3):
        alone = views(pipe, cameras=CAMERAS[i : i + 1], latents=latents[:, i : i + 1], guidance_scale=guidance_scale)
        assert difference(alone[0], together[i]) < 1e-5


def test_batch_equals_single_calls(pipe):
    """Assert that images in a list, each with its generator and cameras, get what each gets alone, noisy steps too."""
    images = [picture(), picture(1)]
    cameras = torch.stack([CAMERAS, orbit_cameras(3, (-10, 50), pitch_deg=5)])
    settings = {"eta": 1.0}
    batch = views(pipe, images, cameras, generator=[seeded(3), seeded(4)], **settings)
    for i, seed in enumerate((3, 4)):
        assert difference(views(pipe, images[i], cameras[i], generator=seeded(seed), **settings), batch[i]) < 1e-5
    assert difference(batch[0], batch[1]) > 1e-3


@pytest.mark.parametrize("view_batch_size", [1, 2, 7])
def test_view_batch_size_bounds_memory_alone(pipe, batches, view_batch_size):
    """Assert that no part sees more pictures or views at a time than asked for, and that the views stay the same."""
    images, settings = [picture(i) for i in range(3)], {"guidance_scale": 2.0, "cameras": CAMERAS[:2]}
    expected = views(pipe, images, **settings)
    for sizes in batches.values():
        sizes.clear()
    assert difference(views(pipe, images, view_batch_size=view_batch_size, **settings), expected) < 1e-5
    largest = {name: max(sizes) for name, sizes in batches.items()}
    assert largest.pop("unet") == 2 * min(view_batch_size, 6)  # guidance makes two of each
    assert max(largest.values()) == min(view_batch_size, 6)


# Noise, cameras, guidance


def test_a_seed_shows_the_same_picture_in_half_precision():
    """Assert that the noise that a generator draws does not depend on the precision of the models."""
    expected, half = (
        views(tiny_pipeline().to(dtype), generator=torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert abs(half - expected).mean() < 0.03


def test_shared_noise_makes_equal_views_of_equal_cameras(pipe):
    """Assert that all views of an image begin with one noise, unless each is given its own."""
    twice = CAMERAS[:1].repeat(2, 1)
    shared, own = views(pipe, cameras=twice), views(pipe, cameras=twice, latents=noise(1, 2))
    assert difference(shared[0], shared[1]) < 1e-5
    assert difference(own[0], own[1]) > 1e-3


def test_given_latents_stand_for_drawn_ones(pipe):
    """Assert that noise given for all views, or one for all, equals the same noise drawn, and is left as it was."""
    latents = noise(2, 1)
    expected = views(pipe, [picture(), picture(1)])
    assert np.array_equal(views(pipe, [picture(), picture(1)], latents=latents), expected)
    assert np.array_equal(views(pipe, [picture(), picture(1)], latents=latents.expand(-1, 3, -1, -1, -1)), expected)
    assert torch.equal(latents, noise(2, 1))


def test_initial_latents_have_the_scheduler_s_scale(pipe):
    """Assert that noise is multiplied by `init_noise_sigma`, and scaled again for the UNet, as Euler's steps ask."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    inputs = []
    pipe.unet.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    views(pipe, latents=noise(1, 3))
    sigma = pipe.scheduler.sigmas[0]
    assert pipe.scheduler.init_noise_sigma == sigma > 10
    assert difference(inputs[0], noise(1, 3)[0] * sigma / (sigma**2 + 1) ** 0.5) < 1e-5


def test_source_camera_is_the_mean_over_steps(pipe):
    """Assert that the returned camera averages the predictions at all time steps, for each image of a batch."""
    images = [picture(), picture(1)]
    output = pipe(images, CAMERAS, num_inference_steps=STEPS, output_type="latent")
    with torch.no_grad():
        pixel_values = pipe.preprocess_images(images)
        features = [pipe.image_encoder(pixel_values, t).sample for t in pipe.scheduler.timesteps]
        predicted = torch.stack([pipe.view_transformer.predict_camera(of_step) for of_step in features])  # (T, B, 25)
    assert difference(output.source_cameras, average_cameras(predicted)) < 1e-5
    assert torch.equal(output.source_cameras, pipe.predict_cameras(images, STEPS))
    assert difference(predicted[0], predicted[-1]) > 1e-5


def test_given_source_camera_is_used(pipe):
    """Assert that a known camera of the input is returned as it is and changes the views, and is not predicted."""
    predicted = pipe(picture(), CAMERAS, num_inference_steps=STEPS, generator=seeded(), output_type="np")
    known = camera_from_angles(35.0, 10.0)[None]
    pipe.view_transformer.camera_predictor = None
    output = pipe(picture(), CAMERAS, STEPS, generator=seeded(), output_type="np", source_cameras=known)
    assert torch.equal(output.source_cameras, known)
    assert difference(output.images, predicted.images) > 1e-5
    again = views(pipe, source_cameras=predicted.source_cameras)
    assert np.array_equal(again, predicted.images)


@pytest.mark.parametrize(
    "cameras",
    [
        CAMERAS[None],
        CAMERAS.double(),
        CAMERAS.numpy(),
        list(CAMERAS),
        CAMERAS.tolist(),
        [(-40, 0), (0, 0), (40, 0)],
        ((-40.0, 0.0), (0.0, 0.0), (40.0, 0.0)),
        np.array([[-40, 0], [0, 0], [40, 0]]),
    ],
    ids=["batch", "float64", "array", "list of labels", "nested list", "pairs", "tuples", "array of pairs"],
)
def test_forms_of_cameras(pipe, cameras):
    """Assert that labels and (yaw, pitch) in degrees mean the same cameras in every form."""
    assert difference(views(pipe, cameras=cameras), views(pipe)) < 1e-6


def test_single_label_is_one_view(pipe):
    """Assert that what `camera_from_angles` returns can be given as it is."""
    assert np.array_equal(views(pipe, cameras=CAMERAS[1]), views(pipe, cameras=CAMERAS[1:2]))


def test_without_cameras_the_own_view(pipe):
    """Assert that no cameras mean one view at the predicted camera of each image."""
    output = pipe([picture(), picture(1)], num_inference_steps=STEPS, latents=noise(2, 1), output_type="np")
    own = output.source_cameras[:, None]
    assert output.images.shape == (2, 1, SIDE, SIDE, 3)
    assert difference(views(pipe, [picture(), picture(1)], own, latents=noise(2, 1)), output.images) < 1e-6


def test_restore_leaves_the_view_transformer_out(pipe, batches):
    """Assert that restoring equals that without a view transformer, batch or single, and never runs it."""
    step1 = NVBFacePipeline(**{**pipe.components, "view_transformer": None})
    step1.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "latents": noise(2, 1), "output_type": "np", "guidance_scale": 2.0}
    restored = pipe.restore([picture(), picture(1)], **settings)
    assert restored.images.shape == (2, 1, SIDE, SIDE, 3)
    assert np.array_equal(step1.restore([picture(), picture(1)], **settings).images, restored.images)
    (images,) = step1.restore(picture(), return_dict=False, **settings | {"latents": noise(2, 1)[:1]})
    assert difference(images, restored.images[0]) < 1e-5
    assert batches["build_volume"] == batches["project"] == []
    assert difference(views(pipe, [picture(), picture(1)], None, latents=noise(2, 1)), restored.images) > 1e-4


def test_guidance_moves_away_from_no_photo(pipe):
    """Assert that guidance changes the views and costs a second UNet pass, which reads zeros."""
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: calls.append(args[2]))
    plain, guided = views(pipe, guidance_scale=1.0), views(pipe, guidance_scale=3.0)
    assert difference(plain, guided) > 1e-4
    assert [len(states) for states in calls] == [3] * STEPS + [6] * STEPS
    assert not calls[-1][:3].any()
    assert torch.equal(calls[-1][3:], calls[STEPS - 1])
    hook.remove()


def test_a_checkpoint_brings_its_own_defaults(pipe, tmp_path):
    """Assert that steps and guidance come from the checkpoint where a call names none, and are 50 and 1 without."""
    defaults = {"default_num_inference_steps": 3, "default_guidance_scale": 2.0}
    NVBFacePipeline(**pipe.components, **defaults).save_pretrained(tmp_path)
    loaded = NVBFacePipeline.from_pretrained(tmp_path)
    unasked = views(loaded, num_inference_steps=None)
    assert (loaded.num_timesteps, loaded.guidance_scale) == (3, 2.0)
    np.testing.assert_array_equal(unasked, views(pipe, num_inference_steps=3, guidance_scale=2.0))
    np.testing.assert_array_equal(views(loaded, guidance_scale=1.0), views(pipe))
    views(pipe, cameras=CAMERAS[:1], num_inference_steps=None)
    assert (pipe.num_timesteps, pipe.guidance_scale) == (50, 1.0)


def test_guidance_formula():
    """Assert uncond + s (cond - uncond), where a UNet that returns 1 and its condition's mean shows which is which."""
    means = torch.tensor([3.0, 5.0])  # of the two views' features

    def fake_forward(latents, timestep, states, return_dict):
        return ((1 + states.mean(dim=(1, 2)))[:, None, None, None].expand_as(latents),)

    states = means[:, None, None].expand(2, 64, WIDTH)
    prediction = guided_prediction(fake_forward, noise(2), torch.tensor(5), states, guidance_scale=4.0)
    assert torch.equal(prediction[:, 0, 0, 0], torch.tensor([1 + 4 * 3.0, 1 + 4 * 5.0]))


# Conditioning


def test_a_conditioning_stands_for_its_image(pipe, batches):
    """Assert that calls with one give what the image gives, for a list too, and run neither encoder nor volume."""
    for image in (picture(), [picture(), picture(1)]):
        conditioning = pipe.encode(image, CAMERAS, STEPS)
        expected = [views(pipe, image, generator=seeded(seed)) for seed in (0, 1)]
        for sizes in batches.values():
            sizes.clear()
        for seed in (0, 1):
            output = pipe(conditioning=conditioning, generator=seeded(seed), output_type="np")
            assert np.array_equal(output.images, expected[seed])
            assert torch.equal(output.source_cameras, conditioning.source_cameras)
        assert batches["image_encoder"] == batches["build_volume"] == batches["project"] == []


def test_a_conditioning_brings_its_steps(pipe):
    """Assert shapes of its states and time steps, and as many steps in the call, whatever the scheduler's order."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    conditioning = pipe.encode([picture(), picture(1)], CAMERAS, num_inference_steps=4)
    assert conditioning.encoder_hidden_states.shape == (4, 2, 3, 64, WIDTH)
    assert torch.equal(conditioning.timesteps, pipe.scheduler.timesteps.unique())
    views(pipe)  # which leaves the scheduler with others
    pipe(conditioning=conditioning, output_type="latent")
    assert pipe.num_timesteps == 2 * 4 - 1


def test_a_conditioning_of_another_scheduler_is_refused(pipe, batches):
    """Assert one line, before any model runs, where the time steps are no longer those it was made for."""
    conditioning = pipe.encode(picture(), CAMERAS, STEPS)
    batches["unet"].clear()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    with pytest.raises(ValueError, match="time steps of another scheduler: `encode` again"):
        pipe(conditioning=conditioning)
    assert batches["unet"] == []


@pytest.mark.parametrize(
    ("clashing", "message"),
    [
        ({"image": picture()}, "`image` and `conditioning` were given"),
        ({"cameras": CAMERAS}, "`cameras` and `conditioning` were given"),
        ({"num_inference_steps": STEPS, "source_cameras": CAMERAS[:1]}, "`num_inference_steps`, `source_cameras` and"),
    ],
)  # fmt: skip
def test_what_a_conditioning_was_made_of_is_not_given_again(pipe, clashing, message):
    """Assert one line that names all that clashes."""
    conditioning = pipe.encode(picture(), CAMERAS, STEPS)
    with pytest.raises(ValueError, match=message):
        pipe(conditioning=conditioning, **clashing)


def test_latents_and_generators_must_fit_a_conditioning(pipe):
    """Assert that noise is checked against its images and views as against those of a call."""
    conditioning = pipe.encode([picture(), picture(1)], CAMERAS, STEPS)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 8, 8\) or \(2, 1, 4, 8, 8\) is accepted"):
        pipe(conditioning=conditioning, latents=noise(1, 3))
    with pytest.raises(ValueError, match="3 generators were given for 2 images"):
        pipe(conditioning=conditioning, generator=[seeded()] * 3)


# Callbacks, progress


def test_callback_sees_every_step(pipe):
    """Assert that a callback gets the step, the time step and the tensors asked for, and sees the running call."""
    calls = []

    def collect(running, step, timestep, tensors):
        assert running is pipe
        calls.append((step, int(timestep), {name: tuple(tensor.shape) for name, tensor in tensors.items()}))
        assert (running.num_timesteps, running.guidance_scale) == (STEPS, 1.5)
        return tensors

    settings = {"guidance_scale": 1.5, "callback_on_step_end": collect}
    plain = views(pipe, **settings)
    assert calls == [(i, int(t), {"latents": (3, *LATENT_SHAPE)}) for i, t in enumerate(pipe.scheduler.timesteps)]
    views(pipe, callback_on_step_end_tensor_inputs=["latents", "encoder_hidden_states"], **settings)
    assert calls[-1][2] == {"latents": (3, *LATENT_SHAPE), "encoder_hidden_states": (3, 64, WIDTH)}
    assert np.array_equal(plain, views(pipe, guidance_scale=1.5))


def test_callback_replaces_features(pipe):
    """Assert that features which a callback returns are what the UNet reads from then on, and its own are not."""
    read = []
    pipe.unet.register_forward_pre_hook(lambda _, args: read.append(args[2].clone()))
    names = ["encoder_hidden_states"]

    def silence(running, step, timestep, tensors):
        return {"encoder_hidden_states": torch.zeros_like(tensors["encoder_hidden_states"])} if step == 1 else tensors

    views(pipe, guidance_scale=1.0, callback_on_step_end=silence, callback_on_step_end_tensor_inputs=names)
    assert [bool(states.any()) for states in read] == [True, True] + [False] * (STEPS - 2)


def test_callback_replaces_latents(pipe):
    """Assert that latents which a callback returns are those that the next step and the decoder get."""
    replaced = views(
        pipe,
        output_type="latent",
        callback_on_step_end=lambda _, step, timestep, tensors: {"latents": torch.full_like(tensors["latents"], step)},
    )
    assert torch.equal(replaced, torch.full((3, *LATENT_SHAPE), STEPS - 1.0))
    assert np.array_equal(views(pipe, callback_on_step_end=lambda *_: {}), views(pipe))


def test_progress_bar_counts_unet_passes(pipe):
    """Assert that the bar ends at the number of passes, which is not the number of steps for second-order ones."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    written = io.StringIO()
    pipe.set_progress_bar_config(disable=False, file=written)
    views(pipe)
    assert f"{2 * STEPS - 1}/{2 * STEPS - 1}" in written.getvalue()
