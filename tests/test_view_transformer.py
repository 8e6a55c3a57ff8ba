import pytest
import torch
import torch.nn.functional as F

from nvb_diffusers.camera import (
    camera_from_angles,
    check_camera_params,
    frustum_points,
    orbit_cameras,
    project_points,
    sample_volume,
    voxel_centers,
)
from nvb_diffusers.models.attention_blocks import AggregatorBlock, Attention, ModLN, SourceBlock
from nvb_diffusers.models.view_transformer import ViewTransformer3D

SMALL = {
    "in_channels": 10,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 3,
    "volume_size": (3, 4, 5),
    "depth": 6,
    "num_aggregator_layers": 2,
    "feature_size": 7,
    "aggregator_hidden_size": 16,
    "time_embed_channels": 12,
}


def small_transformer(trained=True, **changes):
    """A small model; a trained one has no zeros left in the layers that start at zero."""
    torch.manual_seed(0)
    model = ViewTransformer3D(**{**SMALL, **changes}).eval()
    if trained:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and not module.weight.any():
                torch.nn.init.normal_(module.weight, std=0.2)
    return model


def volume_of(model, features, timestep, source_cameras):
    return model.build_volume(model.read_source(features, timestep, source_cameras))


def source_features(count=2, seed=1):
    return torch.randn(count, 10, 7, 7, generator=torch.Generator().manual_seed(seed))


def target_cameras(yaws=(-40.0, 5.0, 33.0), count=2):
    return torch.stack([camera_from_angles(torch.tensor(yaws), pitch) for pitch in (6.0, -9.0, 14.0)[:count]])


def share_seen(cameras, half_extent, near, far):
    """The share of 8x8x8 voxel centers in each camera's frustum (V,)."""
    u, v, z = project_points(voxel_centers(8, half_extent).flatten(0, 2), cameras).unbind(-1)
    seen = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1) & (z >= near) & (z <= far)
    return seen.float().mean(dim=-1)


def test_shapes_at_pairwise_different_sizes():
    """Assert features for every view and a camera for every picture, as output and as tuple."""
    model = small_transformer()
    with torch.no_grad():
        output = model(source_features(), torch.tensor([3, 700]), target_cameras())
        features, cameras = model(source_features(), torch.tensor([3, 700]), target_cameras(), return_dict=False)
    assert output.features.shape == (2, 3, 10, 7, 7)
    assert output.source_cameras.shape == (2, 25)
    assert torch.equal(features, output.features)
    assert torch.equal(cameras, output.source_cameras)
    assert volume_of(model, source_features(), 3, cameras).shape == (2, 16, 3, 4, 5)


def test_lifted_features_reach_the_voxels_that_the_source_camera_sees_there():
    """Assert that a changed pixel changes exactly the voxels that project within one pixel of it, in each camera."""
    model = small_transformer(num_layers=0, num_source_layers=1)
    cameras = target_cameras((-40.0,)).squeeze(1)  # (2, 25)
    features = source_features()
    changed = features.clone()
    changed[:, :, 2, 4] += torch.arange(10.0)
    with torch.no_grad():
        before, after = (volume_of(model, some, 3, cameras) for some in (features, changed))
    centers = voxel_centers((3, 4, 5), model.config.half_extent).flatten(0, 2)
    uv = project_points(centers.expand(2, -1, -1), cameras)[..., :2]
    near = ((7 * uv - torch.tensor([4.5, 2.5])).abs() < 1).all(dim=-1)  # (2, Z*Y*X)
    assert torch.equal((before != after).any(dim=1).flatten(1), near)
    assert near.any(dim=1).all()
    assert not torch.equal(near[0], near[1])


def test_lifting_does_not_move_the_camera():
    """Assert that a new model's camera gets its gradient from its own loss alone, whatever the views show."""
    model = small_transformer(trained=False, num_source_layers=1)
    output = model(source_features(), torch.tensor([3, 700]), target_cameras())
    output.features.square().mean().backward()
    gradients = [parameter.grad for parameter in model.camera_predictor.parameters()]
    assert all(gradient is None or not gradient.any() for gradient in gradients)
    assert model.proj_in.weight.grad.any()


def test_centering_takes_the_mean_off_and_puts_it_back():
    """Assert views and camera of centered features from those of a plain model given what differs from the mean."""
    plain, centered = small_transformer(), small_transformer()
    mean = source_features(1, seed=8)[0]
    assert not plain.mean_features.any()
    centered.mean_features.copy_(mean)
    with torch.no_grad():
        expected = plain(source_features(), torch.tensor([3, 700]), target_cameras())
        output = centered(source_features() + mean, torch.tensor([3, 700]), target_cameras())
    torch.testing.assert_close(output.features, expected.features + mean, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(output.source_cameras, expected.source_cameras, atol=1e-5, rtol=1e-4)


def test_paper_size_fits_the_paper():
    """Assert the default's volume of 8x8x8x1024, its features of 8x8x1024 and its parameter count, without weights."""
    with torch.device("meta"):
        model = ViewTransformer3D()
        features, cameras = torch.empty(2, 1024, 8, 8), torch.empty(2, 3, 25)
        source = model.read_source(features, torch.empty(2), cameras[:, 0])
        volume = model.build_volume(source)
        assert volume.shape == (2, 1024, 8, 8, 8)
        views = model.project(volume, source, cameras)
        assert views.shape == (2, 3, 1024, 8, 8)
    assert sum(parameter.numel() for parameter in model.parameters()) == 325_773_325


def test_default_frustum_sees_most_voxels():
    """Assert the shares that the docstring states, and that rays of all views cross the cube."""
    config = ViewTransformer3D(**SMALL).config
    cube, near, far = config.half_extent, config.near, config.far
    orbit = orbit_cameras(9, (-45, 45))
    corners = camera_from_angles(torch.tensor([-60.0, -60.0, 60.0, 60.0]), torch.tensor([-20.0, 20.0, -20.0, 20.0]))
    frontal = camera_from_angles(0, 0)
    assert share_seen(frontal, cube, near, far) == 1
    assert share_seen(frontal, 0.5, near, far).item() == pytest.approx(0.41, abs=0.005)
    assert share_seen(orbit, cube, near, far).mean().item() == pytest.approx(0.93, abs=0.005)
    assert share_seen(orbit, cube, near, far).min().item() == pytest.approx(0.895, abs=0.005)
    assert share_seen(corners, cube, near, far).min().item() > 0.85
    inside = (frustum_points(torch.cat([orbit, corners]), 8, 8, 12, near, far).abs() <= cube).all(dim=-1)
    assert inside.any(dim=1).all()
    assert inside.float().mean().item() == pytest.approx(2 / 3, abs=0.02)


def test_volume_does_not_depend_on_target_cameras():
    """Assert that one volume, built once, serves any target cameras and any number of views."""
    model = small_transformer()
    volumes = []
    project = model.project
    model.project = lambda volume, *rest: (volumes.append(volume), project(volume, *rest))[1]
    with torch.no_grad():
        model(source_features(), 5, target_cameras((0.0,)))
        model(source_features(), 5, target_cameras((-80.0, 12.0, 60.0, 3.0)))
    assert len(volumes) == 2
    assert torch.equal(volumes[0], volumes[1])


def test_a_moved_camera_moves_the_features():
    """Assert that what stands at one side of the volume shows at that side of the view, and the other from behind."""
    model = small_transformer(num_aggregator_layers=0, volume_size=8)
    empty = torch.zeros(1, 16, 8, 8, 8)
    volume = empty.clone()
    volume[:, :, 4, 6, 6] = torch.randn(16)  # x and y at +0.2, z at 0.04
    cameras = camera_from_angles(torch.tensor([0.0, 180.0, 12.0]), 0)[None]
    with torch.no_grad():
        rest = model.read_source(source_features(1), 5, cameras[:, 0]), cameras
        change = (model.project(volume, *rest) - model.project(empty, *rest)).abs().sum(dim=2)[0]  # (V, H, W)
    front, back, turned = change
    assert front[:3, 4:].sum() > 0
    assert front[:, :4].sum() == 0
    assert front[3:].sum() == 0
    torch.testing.assert_close(back.flip(-1) > 0, front > 0)
    assert not torch.allclose(turned, front, atol=1e-4)


def test_what_passes_the_volume_begins_with_nothing():
    """Assert that new paths past the volume change no view of the same volume, and get a gradient."""
    plain, grown = small_transformer(), small_transformer(trained=False, num_source_layers=1)
    missing, unexpected = grown.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} == {
        "proj_samples",
        "target_camera_embedding",
        "proj_view_in",
        "view_embedding",
        "view_blocks",
        "norm_view",
        "proj_view_out",
    }
    sources = [model.read_source(source_features(), torch.tensor([3, 700])) for model in (plain, grown)]
    volume = grown.build_volume(sources[1])
    features, expected = (
        model.project(volume, source, target_cameras()) for model, source in zip((grown, plain), sources, strict=True)
    )
    assert torch.equal(features, expected)
    features.square().mean().backward()
    assert grown.proj_samples.weight.grad.any()
    assert grown.proj_view_out.weight.grad.any()


def test_the_paper_knows_the_source_by_its_volume_alone():
    """Assert that without source layers the views of a volume are the same, whichever source is given with it."""
    model = small_transformer()
    with torch.no_grad():
        sources = [model.read_source(source_features(seed=seed), 5, target_cameras()[:, 0]) for seed in (1, 2)]
        volume = model.build_volume(sources[0])
        first, second = (model.project(volume, source, target_cameras()) for source in sources)
    assert torch.equal(first, second)


def test_a_source_is_read_once():
    """Assert that volume and views use the tokens they are given: the layers that make them run once in a forward."""
    model = small_transformer(num_source_layers=2)
    runs = []
    for name in ("camera_predictor", "norm_in", "proj_in", "camera_embedding", "time_embedding"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: runs.append(name))
    with torch.no_grad():
        model(source_features(), 5, target_cameras())
    assert sorted(runs) == sorted(set(runs))
    assert len(runs) == 5


def test_frustum_samples_read_the_source_where_it_sees_them():
    """Assert that a changed source pixel shows in exactly the rays with a sample that projects within a pixel of it."""
    model = small_transformer(num_aggregator_layers=0, num_source_layers=1)
    torch.nn.init.zeros_(model.proj_view_out.weight)  # without attention to the source, which sees all of it
    sources, targets = target_cameras((-40.0,)).squeeze(1), target_cameras()  # (2, 25), (2, 3, 25)
    features, empty = source_features(), torch.zeros(2, 16, 3, 4, 5)
    changed = features.clone()
    changed[:, :, 2, 4] += torch.arange(10.0)
    with torch.no_grad():
        before, after = (
            model.project(empty, model.read_source(some, 3, sources), targets) for some in (features, changed)
        )
    points = frustum_points(targets, 7, 7, 6, model.config.near, model.config.far)  # (2, 3, 6, 7, 7, 3)
    uv = project_points(points.flatten(1, 4), sources)[..., :2].unflatten(1, points.shape[1:5])
    near = ((7 * uv - torch.tensor([4.5, 2.5])).abs() < 0.999).all(dim=-1).any(dim=2)  # (2, 3, 7, 7)
    assert torch.equal(((before - after).abs() > 1e-4).any(dim=2), near)
    assert near[:, 0].nonzero().tolist() == [[0, 2, 4], [1, 2, 4]]  # seen by the source camera itself
    assert (near[:, 1:].sum(dim=(2, 3)) > 1).all()


def test_view_blocks_see_the_source_and_both_cameras():
    """Assert that each argument changes the views of an empty volume, also where no sample reads the source."""
    model = small_transformer(num_source_layers=2)
    torch.nn.init.zeros_(model.proj_samples.weight)
    features, sources, targets = source_features(), target_cameras()[:, 0], target_cameras()
    empty = torch.zeros(2, 16, 3, 4, 5)

    def views(targets, *source):
        with torch.no_grad():
            return model.project(empty, model.read_source(*source), targets)

    expected = views(targets, features, 5, sources)
    for arguments in (
        (targets, source_features(seed=2), 5, sources),
        (targets, features, 600, sources),
        (targets, features, 5, target_cameras()[:, 1]),
        (target_cameras((-20.0, 15.0, 50.0)), features, 5, sources),
    ):
        assert (views(*arguments) - expected).abs().amax(dim=(2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("num_source_layers", [0, 1])
def test_views_are_independent(num_source_layers):
    """Assert that permuting views permutes features, and that a view alone is the view among others."""
    model = small_transformer(num_source_layers=num_source_layers)
    with torch.no_grad():
        source = model.read_source(source_features(), 5, target_cameras()[:, 0])
        volume = model.build_volume(source)
        features = model.project(volume, source, target_cameras())
        permuted = model.project(volume, source, target_cameras()[:, [2, 0, 1]])
        single = model.project(volume, source, target_cameras()[:, 1:2])
    torch.testing.assert_close(permuted, features[:, [2, 0, 1]])
    torch.testing.assert_close(single, features[:, 1:2])
    assert not torch.allclose(features[:, 0], features[:, 1], atol=1e-3)


@pytest.mark.parametrize("num_source_layers", [0, 1])
def test_pictures_are_independent(num_source_layers):
    """Assert that a batch of pictures, time steps and cameras equals single calls."""
    model = small_transformer(num_source_layers=num_source_layers)
    timesteps = torch.tensor([20, 800])
    with torch.no_grad():
        batch = model(source_features(), timesteps, target_cameras()).features
        for i in range(2):
            single = model(source_features()[i : i + 1], timesteps[i], target_cameras()[i : i + 1]).features
            torch.testing.assert_close(single[0], batch[i], atol=1e-5, rtol=1e-4)


def test_voxel_centers_give_back_the_volume_queries():
    """Assert that query i becomes the voxel whose center is voxel_centers[i]: without blocks, sampling returns it."""
    model = small_transformer(num_layers=0)
    with torch.no_grad():
        volume = volume_of(model, source_features(1), 5, target_cameras()[:1, 0])
        samples = sample_volume(volume, voxel_centers((3, 4, 5), 0.32)[None], 0.32)  # (1, 16, 3, 4, 5)
        expected = model.proj_volume(model.norm_volume(model.volume_queries))  # (60, 16)
    torch.testing.assert_close(samples[0].flatten(1).mT, expected, atol=1e-5, rtol=1e-5)


def test_volume_depends_on_features_camera_and_time():
    """Assert that each argument of Eq. 3 changes the volume."""
    model = small_transformer()
    features, cameras = source_features(), target_cameras()
    with torch.no_grad():
        volume = volume_of(model, features, 5, cameras[:, 0])
        for arguments in (
            (source_features(seed=2), 5, cameras[:, 0]),
            (features, 600, cameras[:, 0]),
            (features, 5, cameras[:, 1]),
        ):
            assert (volume_of(model, *arguments) - volume).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


def test_places_in_the_source_are_told_apart():
    """Assert that moving the source features changes the volume, as attention without positions could not see."""
    model = small_transformer()
    with torch.no_grad():
        volume = volume_of(model, source_features(), 5, target_cameras()[:, 0])
        rolled = volume_of(model, source_features().roll(2, dims=-1), 5, target_cameras()[:, 0])
    assert (rolled - volume).abs().max() > 1e-2


def test_modln_is_the_equation():
    """Assert Eq. 4 by hand, and that a new ModLN is a plain layer norm whatever the camera."""
    torch.manual_seed(0)
    norm, tokens, camera, temb = ModLN(6), torch.randn(2, 5, 6), torch.randn(2, 6), torch.randn(2, 6)
    normalized = F.layer_norm(tokens, (6,))
    torch.testing.assert_close(norm(tokens, camera, torch.zeros(2, 6)), normalized)
    torch.nn.init.normal_(norm.modulation.weight)
    gamma, beta = (F.silu(camera) @ norm.modulation.weight.mT).chunk(2, dim=-1)
    expected = normalized * (1 + gamma[:, None]) + beta[:, None] + temb[:, None]
    torch.testing.assert_close(norm(tokens, camera, temb), expected)


def test_new_model_ignores_camera_and_time():
    """Assert that modulation and time start at zero, so that training begins from plain layer norms."""
    model = small_transformer(trained=False)
    with torch.no_grad():
        volume = volume_of(model, source_features(), 5, target_cameras()[:, 0])
        assert torch.equal(volume_of(model, source_features(), 900, target_cameras()[:, 1]), volume)


def test_attention_is_the_same_in_both_forms():
    """Assert that bfloat16 on the CPU, which has a form of its own, gives what float32 gives, across and within."""
    torch.manual_seed(0)
    attention, tokens, context = Attention(12, 3), torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    with torch.no_grad():
        expected = attention(tokens, context), attention(tokens)
        attention, tokens, context = attention.bfloat16(), tokens.bfloat16(), context.bfloat16()
        for actual, exact in zip((attention(tokens, context), attention(tokens)), expected, strict=True):
            torch.testing.assert_close(actual.float(), exact, atol=0.02, rtol=0)


def test_source_block_adds_three_updates_to_its_tokens():
    """Assert that a block without outputs changes nothing, and a changed token reaches others by self-attention."""
    torch.manual_seed(0)
    block, tokens, source_tokens = SourceBlock(8, 2, mlp_ratio=2), torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    conditions = torch.randn(1, 8), torch.zeros(1, 8)
    changed = tokens.clone()
    changed[0, 2] += torch.randn(8)
    with torch.no_grad():
        difference = block(changed, source_tokens, *conditions) - block(tokens, source_tokens, *conditions)
        assert (difference.abs().amax(dim=-1) > 1e-4).all()
        for linear in (block.cross_attention.to_out, block.self_attention.to_out, block.feed_forward[-1]):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
        assert torch.equal(block(tokens, source_tokens, *conditions), tokens)


def test_aggregator_attends_across_depth_and_image_of_one_view():
    """Assert that a change at one sample reaches the other depths of its ray, then its whole view, and no other."""
    torch.manual_seed(0)
    block, tokens = AggregatorBlock(8, 2, mlp_ratio=2), torch.randn(2, 3, 5, 8)
    changed = tokens.clone()
    changed[0, 1, 2] += torch.randn(8)
    with torch.no_grad():
        torch.nn.init.zeros_(block.spatial_attention.to_out.weight)
        across_depth = (block(changed) - block(tokens)).abs().sum(dim=-1) > 0
        torch.nn.init.normal_(block.spatial_attention.to_out.weight)
        everywhere = (block(changed) - block(tokens)).abs().sum(dim=-1) > 0
    assert across_depth[0, :, 2].all()
    assert across_depth.sum() == 3
    assert everywhere[0].all()
    assert not everywhere[1].any()


def test_given_source_cameras_are_used_and_returned():
    """Assert that given cameras replace the prediction, and that the prediction is used where none are given."""
    model = small_transformer()
    given = target_cameras()[:, 2]
    with torch.no_grad():
        predicted = model.predict_camera(source_features())
        free = model(source_features(), 5, target_cameras())
        told = model(source_features(), 5, target_cameras(), source_cameras=given)
        same = model(source_features(), 5, target_cameras(), source_cameras=predicted)
    assert torch.equal(told.source_cameras, given)
    assert torch.equal(free.source_cameras, predicted)
    assert torch.equal(free.features, same.features)
    assert not torch.allclose(free.features, told.features, atol=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients():
    """Assert equal gradients with and without checkpointing, and that it ran the blocks of all stacks twice."""
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = small_transformer(num_source_layers=1).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        count = [0]
        for block in (*model.volume_blocks, *model.aggregator_blocks, *model.view_blocks):
            assert isinstance(block, SourceBlock | AggregatorBlock)
            block.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        output = model(source_features(), torch.tensor([3, 700]), target_cameras())
        (output.features.square().mean() + output.source_cameras.square().mean()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        runs.append(count[0])
    assert runs == [5, 10]
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_float32(dtype):
    """Assert finite features of the right dtype within a few per cent of float32, and float32 cameras."""
    model, cameras = small_transformer(), target_cameras()
    with torch.no_grad():
        expected = model(source_features(), 999, cameras, cameras[:, 0]).features
        output = model.to(dtype)(source_features().to(dtype), 999, cameras)
        features = model(source_features().to(dtype), 999, cameras, cameras[:, 0]).features
    assert features.dtype == dtype
    assert output.source_cameras.dtype == torch.float32
    assert output.features.isfinite().all()
    assert (features.float() - expected).norm() < 0.05 * expected.norm()


def test_autocast_trains():
    """Assert finite gradients under bfloat16 autocast, as training runs it."""
    model = small_transformer().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(source_features(), torch.tensor([3, 700]), target_cameras())
    (output.features.float().square().mean() + output.source_cameras.square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    check_camera_params(output.source_cameras)


def test_saved_and_loaded_model_is_the_same(tmp_path):
    """Assert bit-exact features after a round trip through safetensors, tuple sizes included."""
    model = small_transformer()
    model.save_pretrained(tmp_path)
    loaded = ViewTransformer3D.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(source_features(), 5, target_cameras()).features
        assert torch.equal(loaded(source_features(), 5, target_cameras()).features, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "`num_heads` 5 does not divide `hidden_size` 24"),
        ({"aggregator_hidden_size": 18}, "`aggregator_hidden_size` 18"),
        ({"near": 3.0, "far": 2.0}, "`near` 3.0 and `far` 2.0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    """Assert one clear ValueError for widths that do not fit and for a frustum without depth."""
    with pytest.raises(ValueError, match=message):
        small_transformer(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(2, 9, 7, 7)}, r"`features` has shape \(2, 9, 7, 7\)"),
        ({"features": torch.zeros(2, 10, 7, 8)}, r"takes \('B', 10, 7, 7\)"),
        ({"timestep": torch.zeros(3)}, "`timestep` has 3 values, but 1 or 2"),
        ({"target_cameras": torch.zeros(2, 25)}, r"must be \(2, V, 25\)"),
        ({"target_cameras": torch.zeros(3, 4, 25)}, r"`target_cameras` has shape \(3, 4, 25\)"),
        ({"source_cameras": torch.zeros(1, 25)}, r"must be \(2, 25\)"),
    ],
)
def test_inputs_of_a_wrong_shape_are_refused(changes, message):
    """Assert a ValueError that names the argument, the shape given and the one accepted."""
    arguments = {"features": source_features(), "timestep": 5, "target_cameras": target_cameras(), **changes}
    with pytest.raises(ValueError, match=message):
        small_transformer()(**arguments)
