"""The losses against numbers computed by hand and the weights of the Min-SNR paper."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from nvb_diffusers.training.adversary import PatchDiscriminator, UnitConv2d
from nvb_diffusers.training.losses import (
    camera_loss,
    depth_gradient_loss,
    depth_loss,
    diffusion_loss,
    diffusion_target,
    feature_loss,
    gradient_loss,
    restoration_loss,
)


def make_scheduler(prediction_type="epsilon"):
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


def test_feature_loss_by_hand():
    """Assert MSE + 2 (1 - cosine), the cosine over channels: (3, 4) and (4, 3) have MSE 1 and cosine 24/25."""
    one, other = torch.zeros(2, 3, 2, 4, 5), torch.zeros(2, 3, 2, 4, 5)  # (B, V, C, H, W)
    one[:, :, 0], one[:, :, 1], other[:, :, 0], other[:, :, 1] = 3, 4, 4, 3
    assert feature_loss(one, other).item() == pytest.approx(1 + 2 * (1 - 24 / 25))
    assert feature_loss(one, other, cosine_weight=0.5).item() == pytest.approx(1 + 0.5 * (1 - 24 / 25))
    assert feature_loss(one, one).item() == pytest.approx(0, abs=1e-6)


def test_camera_loss_by_hand():
    """Assert the squared distance of the 25 numbers, not their mean: 25 differences of 0.2 make 1."""
    true = torch.zeros(3, 25)
    assert camera_loss(true + 0.2, true).item() == pytest.approx(1.0)
    predicted = torch.stack([true[0] + 0.2, true[1], true[2]])
    assert camera_loss(predicted, true).item() == pytest.approx(1 / 3)


def test_diffusion_loss_is_a_plain_mean_without_weights():
    """Assert the mean squared error over everything."""
    prediction, target = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    loss = diffusion_loss(prediction, target, torch.tensor([0, 500, 999]), make_scheduler())
    assert loss.item() == pytest.approx((prediction - target).square().mean().item())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [0, 200, 600, 999])
def test_min_snr_weights_are_the_papers(prediction_type, timestep):
    """Assert min(SNR, 5) on the clean sample, min(SNR, 5)/SNR on epsilon, min(SNR, 5)/(SNR + 1) on v."""
    scheduler = make_scheduler(prediction_type)
    alpha = scheduler.alphas_cumprod[timestep].item()
    snr = alpha / (1 - alpha)
    weight = min(snr, 5) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    error = torch.full((1, 4, 3, 2), 2.0)
    loss = diffusion_loss(error, torch.zeros_like(error), torch.tensor([timestep]), scheduler, snr_gamma=5.0)
    assert loss.item() == pytest.approx(4 * weight, rel=1e-4)


def test_min_snr_loss_is_one_loss_in_three_units():
    """Assert that the same error of the clean sample weighs the same, whatever the UNet predicts."""
    latents, wrong, noise = torch.randn(2, 4, 3, 2), torch.randn(2, 4, 3, 2), torch.randn(2, 4, 3, 2)
    timesteps = torch.tensor([150, 700])
    losses = []
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        scheduler = make_scheduler(prediction_type)
        alpha = scheduler.alphas_cumprod[timesteps][:, None, None, None].sqrt()
        noisy = scheduler.add_noise(latents, noise, timesteps)
        wrong_noise = (noisy - alpha * wrong) / (
            1 - alpha**2
        ).sqrt()  # what the UNet means if it takes `wrong` for clean
        prediction = diffusion_target(scheduler, wrong, wrong_noise, timesteps)
        target = diffusion_target(scheduler, latents, noise, timesteps)
        losses.append(diffusion_loss(prediction, target, timesteps, scheduler, snr_gamma=5.0).item())
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)
    assert losses[1] == pytest.approx(losses[2], rel=1e-3)


def test_targets():
    """Assert epsilon, v = alpha noise - sigma latents, and the clean latents."""
    latents, noise, timesteps = torch.randn(2, 4, 3, 2), torch.randn(2, 4, 3, 2), torch.tensor([10, 900])
    assert torch.equal(diffusion_target(make_scheduler("epsilon"), latents, noise, timesteps), noise)
    assert torch.equal(diffusion_target(make_scheduler("sample"), latents, noise, timesteps), latents)
    velocity = diffusion_target(make_scheduler("v_prediction"), latents, noise, timesteps)
    for i, timestep in enumerate(timesteps.tolist()):
        alpha = math.sqrt(make_scheduler().alphas_cumprod[timestep])
        torch.testing.assert_close(velocity[i], alpha * noise[i] - math.sqrt(1 - alpha**2) * latents[i])


def test_an_unknown_prediction_type_is_refused():
    """Assert one line that says what is accepted."""
    scheduler = make_scheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="'flow', expected epsilon, v_prediction or sample"):
        diffusion_target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_the_restoration_loss_counts_every_image_alike():
    """Assert the mean of log(squared error + 1e-4): a tenth of the error is worth as much for each, to the floor."""
    target = torch.zeros(2, 3, 4, 5)
    errors = torch.tensor([0.5, 0.05])[:, None, None, None].expand_as(target)
    expected = (math.log(0.25 + 1e-4) + math.log(0.0025 + 1e-4)) / 2
    assert restoration_loss(errors, target).item() == pytest.approx(expected, rel=1e-5)
    assert restoration_loss(target, target).item() == pytest.approx(math.log(1e-4), rel=1e-5)


def test_depth_losses_by_hand():
    """Assert errors within the mask alone, clamped at .15; a slope is an error of the gradients, an offset is none."""
    true, mask = torch.full((2, 6, 7), 2.5), torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[:, 1:, :5] = True
    offset = torch.where(mask, true + torch.tensor([0.1, 0.9])[:, None, None], true + 5)
    assert depth_loss(offset, true, mask).item() == pytest.approx((0.1 + 0.15) / 2, rel=1e-4)
    assert depth_gradient_loss(offset, true, mask).item() == pytest.approx(0, abs=1e-6)
    slope = true + 0.01 * torch.arange(7)
    # 25 pixels in the mask: at 1 pixel 20 pairs along x err by .01; at 4 pixels 5 pairs by .04, weighing a quarter
    assert depth_gradient_loss(slope, true, mask).item() == pytest.approx(0.01 + 0.04 / 4, rel=1e-3)
    assert depth_loss(true, true, torch.zeros_like(mask)).item() == 0


def test_blur_pays_for_gradients():
    """Assert that blur lowers the absolute error of a misplaced edge, and not by half its gradient error."""
    places = torch.arange(32.0)
    true, beside = ((places >= edge).float().expand(1, 3, 32, 32) for edge in (16, 20))
    blurred = ((places - 12) / 8).clamp(0, 1).expand(1, 3, 32, 32)
    assert (blurred - true).abs().mean() < (beside - true).abs().mean()
    assert gradient_loss(true, true) == 0
    assert gradient_loss(true + 0.3, true).item() == pytest.approx(0, abs=1e-5)
    assert gradient_loss(blurred, true) > 0.5 * gradient_loss(beside, true)


def test_the_adversary_judges_and_images_fool_it():
    """Assert that each loss reaches its own side alone, that both fall, and that autocast changes little."""
    torch.manual_seed(0)
    judge = PatchDiscriminator((4, 6, 8))
    made, true = (torch.rand(3, 3, 32, 32) - 1).requires_grad_(), torch.rand(3, 3, 32, 32)
    fooling, judging = judge.losses(made, true)
    fooling.backward(retain_graph=True)
    assert made.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judge.parameters())
    made.grad = None
    judging.backward()
    assert made.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in judge.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert judge.losses(made, true)[1].item() == pytest.approx(judging.item(), abs=0.05)

    optimizer = torch.optim.Adam(judge.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        judge.losses(made, true)[1].backward()
        optimizer.step()
    after, judged = judge.losses(made, true)
    assert judged < 0.5 * judging
    assert after > fooling  # what is seen through fools less


def test_the_adversarys_inner_weights_have_norm_1():
    """Assert that a convolution behaves as one whose weight, as a matrix, has spectral norm 1, whatever its scale."""
    torch.manual_seed(0)
    conv, sample = UnitConv2d(4, 5, kernel_size=4, stride=2, padding=1, bias=False), torch.randn(2, 4, 8, 8)
    expected = conv.weight.detach() / torch.linalg.matrix_norm(conv.weight.detach().flatten(1), ord=2)
    torch.testing.assert_close(conv(sample), torch.nn.functional.conv2d(sample, expected, stride=2, padding=1))
    with torch.no_grad():
        before = conv(sample)
        conv.weight *= 7
        torch.testing.assert_close(conv(sample), before)
