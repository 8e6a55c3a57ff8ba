"""A photo read once and looked at from cameras that come later: what a call makes of it at once."""

import pytest
import torch
from conftest import SIDE, tiny_pipeline

from nvb_diffusers.camera import orbit_cameras
from nvb_diffusers.reading import look, read_once

CAMERAS = orbit_cameras(3, (-40.0, 40.0), 10.0)


@pytest.mark.parametrize("appearance", [True, False])
def test_looking_later_is_encoding_at_once(appearance):
    """Assert the conditioning of `encode`, camera by camera, and the same views."""
    pipe = tiny_pipeline(appearance=appearance)
    pipe.set_progress_bar_config(disable=True)
    photo = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    at_once = pipe.encode(photo, CAMERAS, num_inference_steps=3)
    reading = read_once(pipe, photo, num_inference_steps=3)
    for index in range(3):
        later = look(pipe, reading, CAMERAS[index : index + 1])
        expected = at_once.encoder_hidden_states[:, :, index : index + 1]
        torch.testing.assert_close(later.encoder_hidden_states, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(later.source_cameras, at_once.source_cameras)
        if appearance:
            for part, whole in zip(later.layers, at_once.layers, strict=True):
                torch.testing.assert_close(part, whole[:, index : index + 1], atol=1e-4, rtol=1e-4)
    views = [
        pipe(conditioning=conditioning, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for conditioning in (look(pipe, reading, CAMERAS), at_once)
    ]
    torch.testing.assert_close(views[0], views[1], atol=1e-4, rtol=0)


def test_what_makes_no_views_is_refused():
    """Assert an error for a pipeline without a view transformer, and for a camera that is none."""
    pipe = tiny_pipeline()
    reading = read_once(pipe, torch.rand(3, SIDE, SIDE), num_inference_steps=1)
    with pytest.raises(ValueError, match="cameras"):
        look(pipe, reading, torch.zeros(1, 24))
    pipe.view_transformer = None
    with pytest.raises(ValueError, match="no view transformer"):
        read_once(pipe, torch.rand(3, SIDE, SIDE))
