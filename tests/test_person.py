"""Several photos of one person: whose features and pixels a view takes, and what is refused."""

from dataclasses import replace

import pytest
import torch
from conftest import SIDE, tiny_pipeline

from nvb_diffusers.camera import camera_from_angles, orbit_cameras
from nvb_diffusers.person import join_photos, read_person

CAMERAS = orbit_cameras(3, (-40.0, 40.0))


@pytest.fixture(scope="module")
def pipe():
    made = tiny_pipeline(appearance=True)
    made.set_progress_bar_config(disable=True)
    return made


def encoded(pipe, count, yaws=(-40.0, 0.0, 40.0)):
    photos = list(torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)))
    sources = camera_from_angles(torch.tensor(yaws[:count]), torch.zeros(count))
    return pipe.encode(photos, CAMERAS, num_inference_steps=2, source_cameras=sources)


def test_the_same_photo_twice_is_that_photo(pipe):
    """Assert that twice the same photo makes the view of one, as a single image's."""
    photo = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    one = pipe.encode(photo, CAMERAS, num_inference_steps=2)
    both = read_person(pipe, [photo, photo], CAMERAS, num_inference_steps=2)
    make = [pipe(conditioning=c, generator=torch.Generator().manual_seed(0), output_type="pt") for c in (one, both)]
    assert make[1].images.shape == (3, 3, SIDE, SIDE)
    torch.testing.assert_close(make[1].images, make[0].images, atol=1e-3, rtol=0)
    torch.testing.assert_close(make[1].evidence, make[0].evidence, atol=1e-3, rtol=0)


def test_features_are_mostly_of_the_photo_from_nearby(pipe):
    """Assert, at each of three cameras, weights that sum to 1, of which the photo taken there has the most."""
    conditioning = encoded(pipe, 3)
    states = conditioning.encoder_hidden_states  # (T, 3, 3, L, C)
    marked = torch.zeros_like(states)
    for photo in range(3):
        marked[:, photo] = 10.0**photo
    joined = join_photos(replace(conditioning, encoder_hidden_states=marked), CAMERAS).encoder_hidden_states
    assert joined.shape == (len(states), 1, *states.shape[2:])
    weights = joined[0, 0, :, 0, 0]  # of views at the cameras of photos 0, 1 and 2
    near, far = torch.tensor(0.0), torch.tensor(40.0)
    expected = torch.softmax(-torch.stack([near, far, 2 * far]) / 12.0, dim=0)
    hand = [
        expected @ torch.tensor([1.0, 10.0, 100.0]),
        torch.softmax(-torch.stack([far, near, far]) / 12.0, dim=0) @ torch.tensor([1.0, 10.0, 100.0]),
        expected @ torch.tensor([100.0, 10.0, 1.0]),
    ]
    torch.testing.assert_close(weights, torch.stack(hand), rtol=1e-3, atol=1e-3)


def test_each_pixel_is_of_the_photo_that_sees_it_best(pipe):
    """Assert that pixels, visibility and sharpness come from the one of two photos that sees a half of the view."""
    conditioning = encoded(pipe, 2)
    layers = conditioning.layers
    direct = torch.zeros_like(layers.direct)  # (2, 3, 5, S, S)
    left, right = (slice(0, SIDE // 2), slice(SIDE // 2, SIDE))
    for photo, half in enumerate((left, right)):
        direct[photo, :, :3] = photo - 0.5
        direct[photo, :, 3, :, half] = 1.0
        direct[photo, :, 4] = 0.9
    joined = join_photos(replace(conditioning, layers=layers._replace(direct=direct)), CAMERAS).layers.direct
    assert joined.shape == (1, 3, 5, SIDE, SIDE)
    torch.testing.assert_close(joined[0, :, :3, :, left], torch.full((3, 3, SIDE, SIDE // 2), -0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(joined[0, :, :3, :, right], torch.full((3, 3, SIDE, SIDE // 2), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(joined[0, :, 3], torch.ones(3, SIDE, SIDE), atol=1e-3, rtol=0)


def test_a_person_is_read_as_its_photos_are(pipe):
    """Assert that given cameras and steps reach the encoding, and one line for no photo."""
    photos = list(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)))
    sources = camera_from_angles(torch.tensor([-40.0, 0.0]), torch.zeros(2))
    read = read_person(pipe, photos, CAMERAS, num_inference_steps=2, source_cameras=sources, view_batch_size=1)
    joined = join_photos(encoded(pipe, 2), CAMERAS)
    torch.testing.assert_close(read.encoder_hidden_states, joined.encoder_hidden_states, atol=1e-4, rtol=0)
    torch.testing.assert_close(read.source_cameras, sources[:1])
    assert (read.num_inference_steps, read.is_batch) == (2, False)
    with pytest.raises(ValueError, match="list of images is empty"):
        read_person(pipe, [], CAMERAS)


def test_more_photos_invent_less(pipe):
    """Assert that the share of what is invented falls from one photo to three from other sides."""
    invented = []
    for count in (1, 3):
        conditioning = join_photos(encoded(pipe, count), CAMERAS)
        out = pipe(conditioning=conditioning, generator=torch.Generator().manual_seed(0), output_type="pt")
        invented.append(out.evidence[:, 2].mean().item())
    assert invented[1] < invented[0]


def test_it_works_without_own_pixels():
    """Assert that the paper's system alone takes several photos, too."""
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    out = pipe(conditioning=join_photos(encoded(pipe, 2), CAMERAS), output_type="pt")
    assert out.images.shape == (3, 3, SIDE, SIDE)
    assert out.evidence is None


def test_what_is_no_person_is_refused(pipe):
    """Assert one line for a conditioning of one image and for other cameras."""
    photo = torch.rand(3, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"is of one photo: encode a list"):
        join_photos(pipe.encode(photo, CAMERAS, num_inference_steps=1), CAMERAS)
    with pytest.raises(ValueError, match=r"`cameras` are 2, but the photos were encoded for 3"):
        join_photos(encoded(pipe, 2), CAMERAS[:2])
