"""What only a CUDA device can show: the same views as a CPU's, in half precision, offloaded and compiled."""

import pytest
import torch
from conftest import SIDE, tiny_pipeline

from nvb_diffusers.camera import orbit_cameras

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_views(pipe):
    """Three views (3, 3, S, S) of one photo, on the CPU, of noise drawn there."""
    photo = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    views = pipe(photo, orbit_cameras(3, (-30.0, 30.0)), 3, generator=generator, output_type="pt").images
    return views.float().cpu()


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32, so that the devices can be compared."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_views_are_those_of_the_cpu():
    """Assert the same views within 1e-3, with the noise of a generator on the CPU."""
    pipe = tiny_pipeline()
    expected = make_views(pipe)
    torch.testing.assert_close(make_views(pipe.to("cuda")), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype):
    """Assert finite views of the same noise, near those of full precision."""
    pipe = tiny_pipeline()
    expected = make_views(pipe)
    views = make_views(pipe.to("cuda", dtype))
    assert views.isfinite().all()
    assert (views - expected).abs().mean() < 0.05


@pytest.mark.parametrize("way", ["model", "sequential", "leaf", "leaf with a stream"])
def test_offloaded_views_are_the_same(way):
    """Assert that offloading changes no view."""
    pipe = tiny_pipeline()
    expected = make_views(pipe)
    if way == "model":
        pipe.enable_model_cpu_offload()
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload()
    else:
        pipe.enable_group_offload("cuda", offload_type="leaf_level", use_stream=way != "leaf")
    torch.testing.assert_close(make_views(pipe), expected, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TensorFloat32:UserWarning")  # of the compiler
def test_compiled_views_are_the_same():
    """Assert that a compiled UNet changes no view, without a break in its graph."""
    pipe = tiny_pipeline().to("cuda")
    expected = make_views(pipe)
    pipe.unet.compile(fullgraph=True)
    torch.testing.assert_close(make_views(pipe), expected, rtol=0, atol=1e-3)
