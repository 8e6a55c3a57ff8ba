"""The blur kernels of the Real-ESRGAN chain: six bell shapes and the circular sinc filter."""

import math

import numpy as np

KERNEL_KINDS = (
    "isotropic", "anisotropic", "generalized_isotropic", "generalized_anisotropic", "plateau_isotropic",
    "plateau_anisotropic",
)  # fmt: skip


def gaussian_line(taps: int, sigma: float) -> np.ndarray:
    """(taps,) float32 with sum 1: the line whose outer product is the isotropic Gaussian kernel; sigma in pixels."""
    line = np.exp(-0.5 * ((np.arange(taps) - taps // 2) / sigma) ** 2)
    return (line / line.sum()).astype(np.float32)


def gaussian_kernel(kind: str, taps: int, sigma_x: float, sigma_y: float, rotation: float, shape: float) -> np.ndarray:
    """(taps, taps) float32 with sum 1: one of the six bell-shaped kernels of Real-ESRGAN.

    Args:
        kind: One of `KERNEL_KINDS`; plateau kernels are `1 / (1 + d^shape)`, the others `exp(-d^shape / 2)`, where d is
            the squared distance in sigmas.
        taps: Odd side of the kernel.
        sigma_x: Pixels along the first axis of the ellipse.
        sigma_y: Pixels along the second axis.
        rotation: Radians from image x (right) towards image y (down).
        shape: Exponent; 1 is a Gaussian.
    """
    offsets = np.arange(taps) - taps // 2
    cosine, sine = math.cos(rotation), math.sin(rotation)
    along = cosine * offsets[None, :] + sine * offsets[:, None]
    across = cosine * offsets[:, None] - sine * offsets[None, :]
    distance = ((along / sigma_x) ** 2 + (across / sigma_y) ** 2) ** shape
    kernel = 1 / (1 + distance) if kind.startswith("plateau") else np.exp(-distance / 2)
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(taps: int, cutoff: float) -> np.ndarray:
    """(taps, taps) float32 with sum 1: the circular low-pass filter that leaves ringing at edges.

    The kernel is `cutoff J1(cutoff r) / (2 pi r)`, the inverse Fourier transform of a disc of radius `cutoff`.

    Args:
        taps: Odd side of the kernel.
        cutoff: Radians per pixel, below pi.
    """
    offsets = np.arange(taps) - taps // 2
    squared, where = np.unique(offsets[None, :] ** 2 + offsets[:, None] ** 2, return_inverse=True)
    radius = np.sqrt(squared[1:])
    # Bessel's integral; the midpoint rule is exact to rounding with more nodes than the largest argument
    num_nodes = math.ceil(cutoff * radius[-1]) + 32
    nodes = (np.arange(num_nodes) + 0.5) * np.pi / num_nodes
    bessel = np.cos(nodes - cutoff * radius[:, None] * np.sin(nodes)).mean(axis=1)
    profile = np.concatenate([[cutoff**2 / (4 * np.pi)], cutoff * bessel / (2 * np.pi * radius)])
    kernel = profile[where].reshape(taps, taps)
    return (kernel / kernel.sum()).astype(np.float32)
