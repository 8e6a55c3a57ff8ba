import pytest
import torch

from nvb_diffusers.models.image_encoder import EncoderAttention, EncoderResBlock, TimeAwareImageEncoder

SMALL = {
    "sample_size": 64,
    "patch_size": 2,
    "block_out_channels": (8, 12, 16),
    "out_channels": 20,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "time_embed_channels": 10,
}


def small_encoder(**changes):
    torch.manual_seed(0)
    return TimeAwareImageEncoder(**{**SMALL, **changes}).eval()


def pictures(count=3, side=64, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def of_type(encoder, block_type):
    return [module for module in encoder.modules() if isinstance(module, block_type)]


def test_paper_size_turns_512_pixels_into_8x8x1024():
    """Assert the shape and the parameter count of the default configuration, without its weights."""
    with torch.device("meta"):
        encoder = TimeAwareImageEncoder()
        features = encoder(torch.empty(2, 3, 512, 512), torch.empty(2)).sample
    assert features.shape == (2, 1024, 8, 8)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 115_809_216
    assert len(of_type(encoder, EncoderResBlock)) == 7 * 2 + 2
    assert len(of_type(encoder, EncoderAttention)) == 2 + 1  # at 16x16, and in the middle


@pytest.mark.parametrize(
    ("sample_size", "patch_size", "widths", "feature_size"),
    [
        (64, 1, (4, 8, 12, 16), 8),
        (64, 8, (8,), 8),
        (128, 4, (8, 12, 16), 8),
        (128, 4, (8, 16), 16),
        (60, 3, (8, 12, 16), 5),
    ],
)
def test_small_configurations_give_the_feature_size(sample_size, patch_size, widths, feature_size):
    """Assert features of that side for every way to spend a picture's size on stem and levels, with their places."""
    encoder = small_encoder(
        sample_size=sample_size,
        patch_size=patch_size,
        block_out_channels=widths,
        feature_size=feature_size,
        use_place_embedding=True,
    )
    assert encoder(pictures(2, sample_size), 5).sample.shape == (2, 20, feature_size, feature_size)


def test_the_time_step_changes_the_features():
    """Assert that t matters, that each picture has its own t, and that a number serves all pictures."""
    encoder = small_encoder()
    with torch.no_grad():
        early, late, mixed = (encoder(pictures(), t).sample for t in (10, 900, torch.tensor([10, 900, 10])))
    assert (early - late).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    torch.testing.assert_close(mixed, torch.stack([early[0], late[1], early[2]]))


def test_every_resblock_receives_the_time_step():
    """Assert that the features change where the time embedding of any single ResBlock changes."""
    encoder = small_encoder()
    blocks = of_type(encoder, EncoderResBlock)
    assert len(blocks) == 3 + 2
    with torch.no_grad():
        features = encoder(pictures(), 500).sample
        for block in blocks:
            handle = block.register_forward_pre_hook(lambda module, args: (args[0], -args[1]))
            assert not torch.allclose(encoder(pictures(), 500).sample, features, atol=1e-4)
            handle.remove()
        assert torch.equal(encoder(pictures(), 500).sample, features)


def test_resblock_and_attention_add_to_their_input():
    """Assert that, their last layers at zero, a ResBlock is its shortcut and an attention layer changes nothing."""
    torch.manual_seed(0)
    hidden_states, temb = torch.randn(2, 4, 6, 7), torch.randn(2, 5)
    for out_channels in (4, 8):
        block = EncoderResBlock(4, out_channels, time_channels=5, norm_num_groups=2)
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
        assert torch.equal(block(hidden_states, temb), block.shortcut(hidden_states))
    assert not torch.equal(block.shortcut(hidden_states)[:, :4], hidden_states)
    attention = EncoderAttention(4, num_heads=2, norm_num_groups=2)
    assert not torch.allclose(attention(hidden_states), hidden_states, atol=1e-3)
    torch.nn.init.zeros_(attention.to_out.weight)
    torch.nn.init.zeros_(attention.to_out.bias)
    assert torch.equal(attention(hidden_states), hidden_states)


def test_attention_stands_at_the_resolutions_named():
    """Assert the count of attention layers for maps of 32, 16 and 8, the middle block always among them."""
    for resolutions, count in (((), 1), ((16,), 2), ((32, 8), 3)):
        encoder = small_encoder(attention_resolutions=resolutions)
        assert len(of_type(encoder, EncoderAttention)) == count


def test_heads_have_the_width_asked_for():
    """Assert one head by default and narrower heads on request, and that heads change the result."""
    one, four = small_encoder(), small_encoder(attention_head_dim=4)
    assert [block.num_heads for block in of_type(one, EncoderAttention)] == [1, 1]
    assert [block.num_heads for block in of_type(four, EncoderAttention)] == [12 // 4, 16 // 4]
    four.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert not torch.allclose(one(pictures(), 5).sample, four(pictures(), 5).sample, atol=1e-5)


def test_every_pixel_counts():
    """Assert that no pixel is lost between the stem and the strides."""
    sample = pictures(1).requires_grad_()
    small_encoder()(sample, 3).sample.square().sum().backward()
    assert (sample.grad.abs() > 0).all()


def test_gradient_checkpointing_gives_the_same_gradients():
    """Assert equal features and gradients with and without checkpointing, and that every layer was run twice."""
    gradients, runs = [], []
    for checkpointing in (False, True):
        encoder = small_encoder()
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        count = [0]
        for block in of_type(encoder, EncoderResBlock):
            block.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        encoder.train()(pictures(), 7).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
        runs.append(count[0])
    assert runs == [5, 10]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_place_embedding_is_added_to_the_features():
    """Assert that the features differ from those without it by exactly the embedding."""
    encoder = small_encoder(use_place_embedding=True)
    with torch.no_grad():
        features = encoder(pictures(), 5).sample
        embedding = encoder.place_embedding.clone()
        encoder.place_embedding.zero_()
        torch.testing.assert_close(features - encoder(pictures(), 5).sample, embedding.expand(3, -1, -1, -1))
    assert "place_embedding" not in small_encoder().state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_float32(dtype):
    """Assert finite features of the right dtype, within a few per cent of float32."""
    encoder = small_encoder()
    with torch.no_grad():
        expected = encoder(pictures(), 999).sample
        features = encoder.to(dtype)(pictures().to(dtype), 999).sample
    assert features.dtype == dtype
    assert (features.float() - expected).norm() < 0.05 * expected.norm()


def test_channels_last_gives_the_same_features():
    """Assert that the memory format changes nothing but speed."""
    encoder = small_encoder()
    with torch.no_grad():
        expected = encoder(pictures(), 50).sample
        features = encoder.to(memory_format=torch.channels_last)(pictures(), 50).sample
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


def test_saved_and_loaded_encoder_is_the_same(tmp_path):
    """Assert bit-exact features after a round trip through safetensors, learned maps included."""
    encoder = small_encoder(use_place_embedding=True)
    encoder.save_pretrained(tmp_path)
    loaded = TimeAwareImageEncoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(pictures(), 5).sample, encoder(pictures(), 5, return_dict=False)[0])
    assert loaded.config.block_out_channels == [8, 12, 16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_size": 96}, "3 levels does not give a 8x8 map: `sample_size` must be 64"),
        ({"feature_size": 16}, "does not give a 16x16 map: `sample_size` must be 128"),
        ({"patch_size": 3}, "must be 96"),
        ({"norm_num_groups": 8}, "`norm_num_groups` 8 does not divide"),
        ({"attention_head_dim": 3}, "`attention_head_dim` 3 does not divide"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    """Assert one clear ValueError for sizes that do not lead to each other and widths that cannot be divided."""
    with pytest.raises(ValueError, match=message):
        small_encoder(**changes)


@pytest.mark.parametrize("shape", [(2, 4, 64, 64), (2, 3, 64, 60), (3, 64, 64)])
def test_pictures_of_a_wrong_shape_are_refused(shape):
    """Assert a ValueError that names the shape given and the one accepted."""
    with pytest.raises(ValueError, match=r"takes \(B, 3, 64, 64\)"):
        small_encoder()(torch.zeros(shape), 5)


def test_time_steps_of_a_wrong_count_are_refused():
    """Assert a ValueError where neither one time step nor one for each picture is given."""
    with pytest.raises(ValueError, match="has 2 values, but 1 or 3"):
        small_encoder()(pictures(), torch.tensor([1, 2]))
