"""Several samples of every view: they share the conditioning, and their deviation is what it says."""

import numpy as np
import pytest
import torch
from conftest import SIDE, tiny_pipeline
from PIL import Image

from nvb_diffusers.camera import orbit_cameras


def photo(seed=5):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def make(image, output_type="pt", seed=3, **kwargs):
    pipe = tiny_pipeline()
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        image, cameras=orbit_cameras(2, (-30, 40)), num_inference_steps=2, generator=generator,
        output_type=output_type, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("share_noise", [True, False])
def test_the_first_sample_is_the_call_without_samples(share_noise):
    """Assert equal pictures for one photo and for a list, and that the other samples differ from the first."""
    for image in (photo(), [photo(), photo(6), photo(7)]):
        plain, several = make(image, share_noise=share_noise), make(image, share_noise=share_noise, num_samples=4)
        torch.testing.assert_close(several.images, plain.images, atol=1e-5, rtol=0)
        samples = several.samples if isinstance(image, list) else several.samples[None]  # (B, K, V, 3, S, S)
        assert samples.shape[1:3] == (4, 2)
        torch.testing.assert_close(samples[:, 0].reshape(plain.images.shape), several.images, atol=0, rtol=0)
        assert all(not torch.equal(samples[:, 0], samples[:, k]) for k in (1, 2, 3))
        assert plain.samples is None
        assert plain.deviation is None


def test_the_deviation_is_that_of_the_samples():
    """Assert the standard deviation over samples, averaged over colors, for each view of each photo."""
    output = make([photo(), photo(6), photo(7)], num_samples=4)
    assert output.deviation.shape == (3, 2, SIDE, SIDE)
    torch.testing.assert_close(output.deviation, output.samples.std(dim=1).mean(dim=2), atol=1e-5, rtol=0)
    assert output.deviation.max() > 0
    assert make(photo(), num_samples=2).deviation.shape == (2, SIDE, SIDE)


def test_pictures_are_nested_by_image_sample_and_view():
    """Assert the same pictures as PIL as in the tensor."""
    pictures, tensor = (make([photo(), photo(6)], kind, num_samples=3).samples for kind in ("pil", "pt"))
    for b, k, v in np.ndindex(2, 3, 2):
        expected = (tensor[b, k, v].permute(1, 2, 0) * 255).round().numpy()
        assert np.abs(np.asarray(pictures[b][k][v]) - expected).max() <= 1
    single = make(photo(), "pil", num_samples=3)
    assert [len(views) for views in single.samples] == [2, 2, 2]
    assert single.samples[0] == single.images


def test_the_conditioning_is_made_once():
    """Assert that more samples need no more passes of encoder and view transformer."""
    counts = []
    for num_samples in (1, 5):
        pipe, calls = tiny_pipeline(), []
        pipe.image_encoder.register_forward_hook(lambda *_, calls=calls: calls.append("encoder"))
        project = pipe.view_transformer.project
        pipe.view_transformer.project = lambda *a, calls=calls, project=project: calls.append("project") or project(*a)
        pipe(photo(), cameras=orbit_cameras(2, (-30, 40)), num_inference_steps=3, num_samples=num_samples)
        counts.append(calls)
    assert counts[0] == counts[1]


def test_latents_restoration_and_tuple():
    """Assert shapes of latents, of restored samples and of the tuple."""
    output = make(photo(), "latent", num_samples=3)
    assert output.samples.shape[:2] == (3, 2)
    assert output.deviation is None
    restored = tiny_pipeline().restore([photo()], num_inference_steps=1, num_samples=2, output_type="pt")
    assert restored.samples.shape[:3] == (1, 2, 1)
    assert len(make(photo(), return_dict=False)) == 2
    assert len(make(photo(), return_dict=False, num_samples=2)) == 4


def test_bad_numbers_of_samples():
    """Assert one error for none, and one for samples of noise that is given."""
    with pytest.raises(ValueError, match="`num_samples` is 0"):
        make(photo(), num_samples=0)
    latents = make(photo(), "latent").images[None]
    with pytest.raises(ValueError, match="exactly 1 where `latents` are given"):
        make(photo(), num_samples=2, latents=latents)
