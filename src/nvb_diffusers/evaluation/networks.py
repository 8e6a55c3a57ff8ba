"""The networks that some measures look through: optional, found where they are installed, or given.

Nothing is downloaded. A network whose package or weights are absent is left out and named in `not_run`, so that no
measure is ever taken through another network than its name says. Some of the packages bring torchvision, so each is
imported only when it is used.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import cv2
import numpy as np
import torch
from PIL import Image

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.data.fingerprint import file_hash
from nvb_diffusers.data.images import to_images
from nvb_diffusers.evaluation.metrics import NIQE, resize_square
from nvb_diffusers.face_crop import detect_faces

INSIGHTFACE_WEIGHTS = Path.home() / ".insightface/models/buffalo_l/w600k_r50.onnx"
# Where ArcFace's 112 px crop has the right eye, left eye, nose tip, right and left corner of the mouth, right being the
# subject's, in pixels.
ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
MESH_SIDE, MESH_MARGIN = 192, 1.5  # pixels that mediapipe's mesh looks at, and their square over the face's
DLIB_SIDE = 256

Network = TypeVar("Network")
Comparator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Values (N,) of images and truths (N, 3, S, S)."""
Observer = Callable[[torch.Tensor], np.ndarray | None]
"""What is seen in an image (3, S, S); None where no face is found."""
CameraPredictor = Callable[[torch.Tensor], torch.Tensor]
"""Cameras (N, 25) of images (N, 3, S, S)."""
FeatureExtractor = Callable[[torch.Tensor], np.ndarray]
"""Features (N, E) of images (N, 3, S, S)."""


@dataclass
class Networks:
    """The networks that are there, each by the name of its column; and of the others, why they are not."""

    comparators: dict[str, Comparator] = field(default_factory=dict)
    identities: dict[str, Observer] = field(default_factory=dict)
    meshes: dict[str, Observer] = field(default_factory=dict)
    cameras: dict[str, CameraPredictor] = field(default_factory=dict)
    features: dict[str, FeatureExtractor] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of the weights that were given, by column; the others never change."""

    @property
    def columns(self) -> list[str]:
        """Names of everything that is measured of one image, in the order of the table."""
        poses = [*self.meshes, *self.cameras]
        return ["PSNR", "SSIM", *self.comparators, *self.identities, *poses, *(f"asked {name}" for name in poses), NIQE]


def find_networks(camera_predictor: str | None, arcface: str | Path | None = None) -> Networks:
    """All networks that are installed.

    Args:
        camera_predictor: a pipeline with a view transformer; None leaves its measures out.
        arcface: ArcFace as an ONNX file; None takes insightface's, where it was downloaded.
    """
    networks = Networks()

    def add(name: str, kind: dict[str, Network], find: Callable[[], Network]) -> None:
        try:
            kind[name] = find()
        except ImportError as error:
            networks.not_run[name] = str(error)

    add("LPIPS", networks.comparators, find_lpips)
    add("DISTS", networks.comparators, find_dists)
    add("FID", networks.features, find_inception)
    add("ID", networks.identities, lambda: find_arcface(arcface))
    if arcface is not None and "ID" in networks.identities:
        networks.fingerprints["ID"] = file_hash(arcface)
    add("dlib-ID", networks.identities, find_dlib)
    add("POSE (mediapipe)", networks.meshes, find_mesh)
    if camera_predictor is None:
        networks.not_run |= dict.fromkeys(("POSE (own predictor)", "FID (NVB encoder)"), "no camera predictor given")
    else:
        own = OwnPredictor(camera_predictor)
        networks.cameras["POSE (own predictor)"] = own.cameras
        networks.features["FID (NVB encoder)"] = own.features
        networks.fingerprints["POSE (own predictor)"] = own.fingerprint()
    return networks


def find_lpips() -> Comparator:
    """LPIPS (Zhang et al. 2018) with AlexNet, from the package `lpips`: 0 for equal images, lower is better."""
    module = _optional("lpips", "alexnet-owt-7be5be79.pth")
    model = module.LPIPS(net="alex", verbose=False).eval()
    return torch.no_grad()(lambda images, truths: model(images, truths).flatten())


def find_dists() -> Comparator:
    """DISTS (Ding et al. 2020) from the package `DISTS_pytorch`: 0 for equal images, lower is better."""
    module = _optional("DISTS_pytorch", "vgg16-397923af.pth")
    model = module.DISTS().eval()
    return torch.no_grad()(lambda images, truths: model(images / 2 + 0.5, truths / 2 + 0.5).flatten())


def find_inception() -> FeatureExtractor:
    """The 2048 features of FID's own InceptionV3 (Heusel et al. 2017), from the package `torch-fidelity`."""
    weights = "weights-inception-2015-12-05-6726825d.pth"
    module = _optional("torch_fidelity.feature_extractor_inceptionv3", weights)
    model = module.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(_hub_file(weights))
    ).eval()

    @torch.no_grad()
    def features(images: torch.Tensor) -> np.ndarray:
        bytes_ = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return torch.cat([model(part)[0] for part in bytes_.split(16)]).numpy()

    return features


def find_arcface(path: str | Path | None = None) -> Observer:
    """ArcFace (Deng et al. 2019) as an ONNX file, on faces found and aligned by their five points."""
    path = Path(path or INSIGHTFACE_WEIGHTS)
    if not path.is_file():
        raise ImportError("weights absent: give ArcFace as an ONNX file (--arcface), or let insightface download it")
    net = cv2.dnn.readNetFromONNX(str(path))

    def embed(image: torch.Tensor) -> np.ndarray | None:
        shown = to_images(image[None])[0]
        faces = detect_faces(shown)
        if not faces:
            return None
        affine, _ = cv2.estimateAffinePartial2D(faces[0].landmarks, ARCFACE_POINTS, method=cv2.LMEDS)
        crop = cv2.warpAffine(np.asarray(shown), affine, (112, 112), flags=cv2.INTER_CUBIC)
        net.setInput(cv2.dnn.blobFromImage(crop, 1 / 127.5, mean=(127.5,) * 3))
        return net.forward().ravel()

    return embed


def find_dlib() -> Observer:
    """The face network of dlib (128 numbers), on faces found by its detector, which sees few in profile."""
    dlib = _optional("dlib")
    folder = _package_folder("face_recognition_models") / "models"
    detect = dlib.get_frontal_face_detector()
    align = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(image: torch.Tensor) -> np.ndarray | None:
        enlarged = to_images(image[None])[0].resize((DLIB_SIDE, DLIB_SIDE), Image.Resampling.BICUBIC)
        pixels = np.asarray(enlarged)
        boxes = detect(pixels)
        if len(boxes) == 0:
            return None
        box = max(boxes, key=lambda box: box.area())
        return np.asarray(network.compute_face_descriptor(pixels, align(pixels, box)))

    return embed


def find_mesh(solid: bool = False) -> Observer:
    """The 468 points of mediapipe's face mesh, as shares of the side; its network is run by OpenCV.

    Args:
        solid: (K, 3) with the depth that the network guesses, on the scale of the others, in place of (K, 2).
    """
    path = _package_folder("mediapipe") / "modules/face_landmark/face_landmark.tflite"
    # The newer engine hides the second output, which says whether there is a face.
    net = cv2.dnn.readNetFromTFLite(str(path), engine=cv2.dnn.ENGINE_CLASSIC)

    def look(pixels: np.ndarray, center: np.ndarray, side: float) -> tuple[np.ndarray, float]:
        """Points in pixels, of the square there, and the logit of a face."""
        scale, corner = MESH_SIDE / side, center - side / 2
        affine = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
        crop = cv2.warpAffine(pixels, affine, (MESH_SIDE, MESH_SIDE), flags=cv2.INTER_LINEAR)
        net.setInput(cv2.dnn.blobFromImage(crop, 1 / 255))
        face, points = net.forward(["conv2d_31", "conv2d_21"])
        corners = [*corner, 0.0] if solid else corner
        return points.reshape(-1, 3)[:, : len(corners)] / scale + corners, float(face.ravel()[0])

    def observe(image: torch.Tensor) -> np.ndarray | None:
        pixels = np.asarray(to_images(image[None])[0])
        side = len(pixels)
        points, _ = look(pixels, np.full(2, side / 2), side)  # the test set's crops are faces: a first guess
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        points, face = look(pixels, (low + high) / 2, max(*(high - low) * MESH_MARGIN, side / 4))
        return points / side if face > 0 else None

    return observe


class OwnPredictor:
    """A pipeline's camera predictor, and the features of its encoder at time step 0, a mean over the image."""

    def __init__(self, checkpoint: str) -> None:
        pipeline = NVBFacePipeline.from_pretrained(checkpoint)
        if pipeline.view_transformer is None:
            raise ValueError(f"{checkpoint} has no view transformer, so it predicts no camera (--camera-predictor)")
        self.pipeline, self.side = pipeline, pipeline.image_encoder.config.sample_size

    def fingerprint(self) -> str:
        """Equal for equal weights, wherever they are."""
        parts = (self.pipeline.image_encoder, self.pipeline.view_transformer)
        tensors = [tensor for part in parts for tensor in part.state_dict().values()]
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()

    @torch.no_grad()
    def cameras(self, images: torch.Tensor) -> torch.Tensor:
        """Cameras (N, 25) of images (N, 3, S, S), as the pipeline predicts them."""
        return self.pipeline.predict_cameras((images / 2 + 0.5).clamp(0, 1))

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> np.ndarray:
        """(N, C) of images (N, 3, S, S)."""
        parts = resize_square(images, self.side).split(32)
        return torch.cat([self.pipeline.image_encoder(part, 0).sample.mean(dim=(2, 3)) for part in parts]).numpy()


def _optional(module: str, weights: str | None = None) -> ModuleType:
    """A module that need not be installed, if its weights are where torch keeps downloads."""
    _package_folder(module.split(".")[0])
    if weights is not None and not _hub_file(weights).is_file():
        raise ImportError(f"weights absent: {weights} is not in {_hub_file('')}")
    return importlib.import_module(module)


def _package_folder(package: str) -> Path:
    """Where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the package {package} is not installed")
    return Path(spec.origin).parent


def _hub_file(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name
