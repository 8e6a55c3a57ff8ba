"""Cameras of a data set, as in `nvb_diffusers.camera` but in NumPy, so that rendering needs no torch.

A camera is its cam2world (4, 4) in OpenCV axes (x right, y down, z forward); the intrinsics are those of every image.
"""

import numpy as np

RADIUS, FOCAL = 2.7, 4.2647  # nvb_diffusers.camera's
INTRINSICS = [FOCAL, 0.0, 0.5, 0.0, FOCAL, 0.5, 0.0, 0.0, 1.0]
ORBIT_YAW_DEG = 45.0


def look_at_origin(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """The cam2world (4, 4) of `nvb_diffusers.camera.camera_from_angles`."""
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    sin_y, cos_y, sin_p, cos_p = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
    cam2world = np.eye(4)
    cam2world[:3, 0] = cos_y, 0.0, -sin_y
    cam2world[:3, 1] = sin_y * sin_p, -cos_p, cos_y * sin_p
    cam2world[:3, 2] = -sin_y * cos_p, -sin_p, -cos_y * cos_p
    cam2world[:3, 3] = -RADIUS * cam2world[:3, 2]
    return cam2world


def draw_cameras(rng: np.random.Generator, views: int) -> list[np.ndarray]:
    """One near the front, the others spread over yaws of +-45, some of them +-60 degrees, and pitches of +-20."""
    cameras = [look_at_origin(rng.normal(0, 8), rng.normal(0, 5))]
    for view in range(views - 1):  # one in each stripe of yaws
        widest = 60 if rng.random() < 0.3 else 45
        yaw = widest * (2 * (view + rng.random()) / (views - 1) - 1)
        cameras.append(look_at_origin(yaw, np.clip(rng.normal(0, 9), -20, 20)))
    return cameras


def orbit(views: int) -> list[np.ndarray]:
    """Evenly spaced yaws from right to left at eye level (one alone: the front), the same for every identity."""
    yaws = np.linspace(-ORBIT_YAW_DEG, ORBIT_YAW_DEG, views) if views > 1 else [0.0]
    return [look_at_origin(yaw, 0.0) for yaw in yaws]


def label(cam2world: np.ndarray) -> list[float]:
    """The 25 numbers of a camera."""
    return [round(float(value), 7) for value in cam2world.ravel()] + INTRINSICS


def project(points: np.ndarray, cam2world: np.ndarray) -> np.ndarray:
    """Where world points (N, 3) fall: (N, 2) as shares of the image, u right and v down."""
    in_camera = (points - cam2world[:3, 3]) @ cam2world[:3, :3]
    return in_camera[:, :2] / in_camera[:, 2:] * FOCAL + 0.5
