"""Heads with depth and masks: they fit their images and cameras, and what varies them is a value of the key."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from nvb_diffusers.camera import project_points
from nvb_diffusers.data.datasets import MultiViewFaceDataset, SampleTransform, held_out_batch
from nvb_diffusers.data.keys import VARIED, sample_generator
from nvb_diffusers.data.surfaces import (
    BACKDROP,
    CROP,
    VARIATIONS,
    Backdrop,
    Colors,
    CropError,
    SurfaceDataset,
    SurfaceImage,
    Variation,
)
from nvb_diffusers.warp import carry, unproject_depth

SIZE = 128  # of the rendered heads


def heads(folder, variations=(), views=2, resolution=SIZE, presets=("mild", "clean"), **kwargs):
    transform = SampleTransform(resolution, presets, seed=4, **kwargs)
    return SurfaceDataset(folder, "train", transform, views, variations)


def draw(kinds, key):
    return Variation.draw(sample_generator(key, 4, VARIED), kinds)


def some_head(seed=0, side=64):
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    mask = (((x - 0.4) ** 2 + (y - 0.55) ** 2) < 0.25**2).astype(np.float32)
    positions = np.stack([x - 0.5, 0.5 - y, 0.1 * x], axis=-1).astype(np.float32)
    return SurfaceImage(image, (2.5 + 0.1 * x).astype(np.float32) * mask, mask, positions)


# Samples


def test_samples_are_those_of_the_multi_view_set(rendered_heads):
    """Assert the same views, degradations and flips to the bit, and depth and mask beside them."""
    plain = MultiViewFaceDataset(rendered_heads, "train", SampleTransform(SIZE, ("mild", "clean"), seed=4), 2)
    dataset = heads(rendered_heads)
    for key in range(4):
        expected, sample = plain[key], dataset[key]
        assert sample.keys() == expected.keys() | {"depth", "mask", "positions"}
        assert all(torch.equal(sample[name], value) for name, value in expected.items())
        assert sample["depth"].shape == sample["mask"].shape == (3, SIZE, SIZE)
        assert 0 <= sample["mask"].min() < 0.01 < 0.99 < sample["mask"].max() <= 1


def test_depth_fits_the_cameras_mirrored_or_not(rendered_heads):
    """Assert that points of one view's depth map lie on those of the others, that mask and depth agree."""
    dataset, flips = heads(rendered_heads, presets=()), set()
    for key in range(6):
        sample = dataset[key]
        flips.add(bool(sample["flipped"]))
        depth, mask, cameras = sample["depth"], sample["mask"], sample["camera_params"]
        assert ((depth > 0) == (mask > 0.5)).float().mean() > 0.94  # hair is thinner than it is deep
        there = (depth[0] > 0).flatten()
        points = unproject_depth(depth[0], cameras[0])[there]
        torch.testing.assert_close(sample["positions"][0].flatten(1).mT[there], points, atol=1e-4, rtol=0)
        uvz = project_points(points, cameras[1])  # (P, 3)
        found = carry(depth[1][None, None], uvz[None, None, :, None, :2])[0, 0, 0, :, 0]
        assert ((found - uvz[:, 2]).abs() < 0.01).float().mean() > 0.5  # the others are hidden
    assert flips == {True, False}


def test_positions_stay_those_of_their_pixels_under_a_crop_error():
    """Assert that a moved head's points stand where their colors went, unchanged."""
    head = some_head()
    moved = CropError((0.25, 0.0), 1.0, 0.0).run(head)
    assert np.array_equal(moved.positions[:, 16:], head.positions[:, :48])


def test_depth_of_another_size_is_not_mixed_with_what_is_behind(rendered_heads):
    """Assert that a smaller depth map holds values of the large one alone, and the mask its means."""
    large, small = heads(rendered_heads, flip=False)[3], heads(rendered_heads, resolution=32, flip=False)[3]
    assert small["depth"].shape == (3, 32, 32)
    assert torch.isin(small["depth"], large["depth"]).all()
    torch.testing.assert_close(small["mask"], torch.nn.functional.avg_pool2d(large["mask"], 4), atol=1e-5, rtol=0)


def test_held_out_samples_are_not_varied(rendered_heads):
    """Assert batches that can be stacked, the same for every set of variations but for the camera of crops."""
    transform = SampleTransform(64, ("medium",), flip=False)
    batch = held_out_batch(SurfaceDataset(rendered_heads, "validation", transform, 1), 2)
    assert batch["depth"].shape == (2, 2, 64, 64)
    assert batch["camera_params"].shape == (2, 2, 25)


# Variations


def test_a_variation_is_a_value_of_the_key(rendered_heads):
    """Assert that a sample is its stored images, varied by what its key draws, the same for all its views."""
    stored, varied = heads(rendered_heads, flip=False), heads(rendered_heads, ("colors", "backdrop"), flip=False)
    for key in (0, 1, 2 + len(stored)):
        variation, sample, again = draw(("colors", "backdrop"), key), varied[key], varied[key]
        assert all(torch.equal(sample[name], again[name]) for name in sample)
        assert variation != draw(("colors", "backdrop"), key + len(stored))
        before = stored[key]
        assert torch.equal(sample["depth"], before["depth"])
        for image, source, mask in zip(sample["pixel_values"], before["pixel_values"], sample["mask"], strict=True):
            expected = variation.colors.run(((source + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
            shown = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            head = (mask > 0.999).numpy()
            assert np.array_equal(shown[head], expected[head])
            assert np.array_equal(shown, expected) == (variation.backdrop is None)


def test_only_what_is_asked_for_is_drawn():
    """Assert that each kind is drawn where it is named, at its share of the samples."""
    drawn = {kind: [draw((kind,), key) for key in range(200)] for kind in VARIATIONS}
    for kind, variations in drawn.items():
        shares = {name: np.mean([getattr(v, name) is not None for v in variations]) for name in VARIATIONS}
        assert all(shares[name] == 0 for name in VARIATIONS if name != kind)
        assert shares[kind] == pytest.approx({"colors": 1, "backdrop": BACKDROP, "crop": CROP}[kind], abs=0.1)
    kinds = [v.backdrop.kind for v in drawn["backdrop"] if v.backdrop is not None]
    assert min(kinds.count(kind) for kind in ("picture", "noise", "plain")) > 10
    assert 10 < sum(v.colors.gray for v in drawn["colors"]) < 60
    assert draw((), 0) == Variation()


def test_colors_by_hand():
    """Assert gamma, gain and offset of each channel, and gray as their mean."""
    image = np.full((4, 5, 3), 128, dtype=np.uint8)
    gain = (0.5, 1.0, 1.5)
    expected = np.clip([(128 / 255) ** 2 * g + 0.1 for g in gain], 0, 1) * 255
    assert np.abs(Colors(2.0, gain, 0.1, False).run(image)[2, 3] - expected).max() <= 0.5
    assert np.abs(Colors(2.0, gain, 0.1, True).run(image) - expected.mean()).max() <= 0.5
    assert np.array_equal(Colors(1.0, (1.0, 1.0, 1.0), 0.0, False).run(image), image)


@pytest.mark.parametrize("kind", ["picture", "noise", "plain"])
def test_a_backdrop_stands_behind_the_head(kind):
    """Assert that the head stays to the bit, and that what is behind comes from what the kind says."""
    same = Colors(1.0, (1.0, 1.0, 1.0), 0.0, False)
    backdrop = Backdrop(kind, 0.5, 0.0, 1.0, (0.0, 0.0), 2, cv2.INTER_NEAREST, 7, same, 0.0)
    head, picture = some_head(), some_head(1).image
    result = backdrop.run(head, picture)
    inside, behind = head.mask == 1, head.mask == 0
    assert np.array_equal(result.image[inside], head.image[inside])
    assert result.depth is head.depth
    if kind != "picture":
        assert len(np.unique(result.image[behind], axis=0)) == {"noise": 4, "plain": 1}[kind]
    else:
        assert np.array_equal(result.image[behind], picture[behind])


def test_a_crop_error_moves_image_depth_and_mask_alike():
    """Assert that the disc moves by the shift and grows by the scale in all three, and its distances stay."""
    head = some_head()
    head = head._replace(image=np.repeat((head.mask * 200).astype(np.uint8)[..., None], 3, axis=-1))
    moved = CropError((0.1, -0.05), 1.2, 0.0).run(head)

    def middle(values):
        y, x = (np.mgrid[:64, :64] + 0.5) / 64
        return np.array([(x * values).sum(), (y * values).sum()]) / values.sum()

    expected = (np.array([0.4, 0.55]) - 0.5) * 1.2 + 0.5 + [0.1, -0.05]
    for part in (moved.image[..., 0].astype(float), (moved.depth > 0).astype(float), moved.mask):
        assert np.abs(middle(part) - expected).max() < 0.01
        assert (part > part.max() / 2).mean() == pytest.approx(np.pi * (0.25 * 1.2) ** 2, rel=0.05)
    assert np.isin(moved.depth, head.depth).all()


def test_crop_errors_leave_no_camera(rendered_heads):
    """Assert that the sample does not claim a camera, whether or not its crop errs."""
    dataset = heads(rendered_heads, VARIATIONS, views=0)
    for key in range(3):
        sample = dataset[key]
        assert "camera_params" not in sample
        assert sample["depth"].shape == (1, SIZE, SIZE)


# Errors


def test_bad_surfaces_are_one_line(rendered_heads, tmp_path):
    """Assert what is said of a missing, a broken, a too small and a wrong file, and of crops."""
    folder = shutil.copytree(rendered_heads, tmp_path / "heads")
    with pytest.raises(ValueError, match="random crops change the camera"):
        heads(folder, crop_jitter=0.1)
    dataset = heads(folder, views=3)
    index = dataset.chosen_views(0)[0]
    depth, mask = dataset.depths[index], dataset.masks[index]
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(mask)
    with pytest.raises(ValueError, match=r"uint8 \(8, 8\), but uint8 \(128, 128\) is accepted"):
        dataset[0]
    Image.fromarray(np.zeros((SIZE, SIZE), dtype=np.uint8)).save(depth)
    with pytest.raises(ValueError, match="but uint16"):
        dataset[0]
    depth.write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"cannot read {depth}"):
        dataset[0]
    depth.unlink()
    with pytest.raises(ValueError, match=f"{depth} does not exist: images with depth and masks are needed"):
        heads(folder)
