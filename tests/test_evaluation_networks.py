import json

import numpy as np
import pytest
import torch
from conftest import SIDE, tiny_pipeline

from nvb_diffusers import NVBFacePipeline
from nvb_diffusers.camera import camera_from_angles
from nvb_diffusers.data.images import load_photo
from nvb_diffusers.evaluation import networks
from nvb_diffusers.evaluation.metrics import camera_from_mesh, fit_mesh, identity_cosine, pose_error
from nvb_diffusers.face_crop import Face

STUBS = {
    "lpips": "class LPIPS:\n    def __init__(self, net, verbose): self.net = net\n",
    "DISTS_pytorch": "class DISTS:\n",
}
CALL = (
    "    def eval(self): return self\n"
    "    def __call__(self, x, y): return (x - y).abs().amax(dim=(1, 2, 3), keepdim=True) + 10 * (x.min() < 0)\n"
)
WEIGHTS = {"lpips": "alexnet-owt-7be5be79.pth", "DISTS_pytorch": "vgg16-397923af.pth"}


@pytest.fixture
def no_networks(tmp_path, monkeypatch):
    """An installation without optional packages and downloads; returns the folder that is searched for both."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(networks, "INSIGHTFACE_WEIGHTS", tmp_path / "none.onnx")
    find_spec = networks.importlib.util.find_spec

    def find_stub(name):
        return find_spec(name) if (tmp_path / f"{name}.py").is_file() else None

    monkeypatch.setattr(networks.importlib.util, "find_spec", find_stub)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path


def test_absent_networks_are_named_with_the_reason(no_networks):
    """Assert that nothing is measured through a network that is not there, and that each has its reason."""
    found = networks.find_networks(None)
    assert not found.comparators
    assert not found.identities
    assert not found.features
    columns = {
        "LPIPS",
        "DISTS",
        "FID",
        "ID",
        "dlib-ID",
        "POSE (mediapipe)",
        "POSE (own predictor)",
        "FID (NVB encoder)",
    }
    assert found.not_run.keys() == columns
    assert "weights absent" in found.not_run["ID"]
    assert "not installed" in found.not_run["LPIPS"]


@pytest.mark.parametrize("package", STUBS)
def test_packages_run_where_their_weights_are(no_networks, package):
    """Assert that a package without weights is reported, and with them gets pictures in the range that it asks for."""
    (no_networks / f"{package}.py").write_text(STUBS[package] + CALL)
    column = {"lpips": "LPIPS", "DISTS_pytorch": "DISTS"}[package]
    assert "weights absent" in networks.find_networks(None).not_run[column]
    (no_networks / "hub/checkpoints" / WEIGHTS[package]).touch()
    compare = networks.find_networks(None).comparators[column]
    truths = torch.full((2, 3, 8, 8), -0.5)
    values = compare(truths + torch.tensor([0.0, 0.4])[:, None, None, None], truths)
    expected = [10.0, 10.4] if package == "lpips" else [0.0, 0.2]
    assert torch.allclose(values, torch.tensor(expected), atol=1e-6)


def test_arcface_sees_the_face_aligned(no_networks, monkeypatch):
    """Assert that five marked points of a face land where ArcFace expects them, and that no face gives None."""
    seen = []

    class Net:
        def setInput(self, blob):
            seen.append(blob)

        def forward(self):
            return np.ones((1, 4))

    landmarks = networks.ARCFACE_POINTS[:, ::-1] * [-1, 1] * 1.5 + [200, 20]  # turned by 90 degrees, enlarged, moved
    picture = -torch.ones(3, 256, 256)
    for x, y in landmarks.round().astype(int):
        picture[:, y - 2 : y + 3, x - 2 : x + 3] = 1
    faces = [Face(np.zeros(4), 1.0, landmarks)]
    (no_networks / "net.onnx").touch()
    monkeypatch.setattr(networks.cv2.dnn, "readNetFromONNX", lambda path: Net())
    monkeypatch.setattr(networks, "detect_faces", lambda image: faces)
    observe = networks.find_arcface(no_networks / "net.onnx")
    assert observe(picture).tolist() == [1, 1, 1, 1]
    (blob,) = seen
    assert blob.shape == (1, 3, 112, 112)
    assert blob.min() == -1
    for x, y in networks.ARCFACE_POINTS.round().astype(int):
        assert blob[0, :, y, x].min() > 0.5
    faces.clear()
    assert observe(picture) is None


def test_own_predictor_is_the_pipelines(tmp_path):
    """Assert the cameras that a call reports for its input, at any picture size, and a fingerprint of the weights."""
    tiny_pipeline().save_pretrained(tmp_path / "pipe")
    own = networks.OwnPredictor(str(tmp_path / "pipe"))
    pictures = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    pipe = NVBFacePipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    output = pipe(list(pictures / 2 + 0.5), camera_from_angles(torch.zeros(2, 1), 0.0))
    assert torch.allclose(own.cameras(pictures), output.source_cameras, atol=1e-5)
    assert own.features(torch.zeros(3, 3, 2 * SIDE, 2 * SIDE)).shape == (3, 12)
    before = own.fingerprint()
    own.pipeline = pipe
    assert own.fingerprint() == before
    next(pipe.view_transformer.parameters()).data += 1
    assert own.fingerprint() != before
    tiny_pipeline(view_transformer=False).save_pretrained(tmp_path / "restoration")
    with pytest.raises(ValueError, match="no view transformer"):
        networks.OwnPredictor(str(tmp_path / "restoration"))


@pytest.fixture(scope="module")
def heads(rendered_heads):
    """Pictures, cameras and numbers of two rendered people, of each the two views nearest to the front."""
    records = [json.loads(line) for line in (rendered_heads / "images/metadata.jsonl").read_text().splitlines()]
    chosen = []
    for person in (0, 1):
        views = [record for record in records if record["identity"] == person]
        chosen += sorted(views, key=lambda record: abs(record["camera"][2]))[:2]
    pictures = [np.asarray(load_photo(rendered_heads / "images" / record["file_name"])) for record in chosen]
    tensors = [torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1) for picture in pictures]
    return tensors, torch.tensor([record["camera"] for record in chosen]), [record["identity"] for record in chosen]


def test_dlib_knows_people_apart(heads):
    """Assert that views of one head are nearer to each other than to another head's, and that noise has no face."""
    pytest.importorskip("dlib")
    observe, (pictures, _, people) = networks.find_dlib(), heads
    seen = [(person, observe(picture)) for person, picture in zip(people, pictures, strict=True)]
    seen = [(person, embedding) for person, embedding in seen if embedding is not None]
    assert len(seen) > 0.7 * len(pictures)
    pairs = [(a[0] == b[0], identity_cosine(a[1], b[1])) for i, a in enumerate(seen) for b in seen[:i]]
    same, other = ([value for equal, value in pairs if equal == kind] for kind in (True, False))
    assert np.mean(same) > np.mean(other) + 0.03
    assert observe(torch.rand(3, 128, 128) * 2 - 1) is None


def test_mesh_sees_the_camera(heads):
    """Assert that cameras found by the mesh are near the true ones, and that noise has no face."""
    try:
        observe = networks.find_mesh()
    except ImportError as error:
        pytest.skip(str(error))
    pictures, cameras, _ = heads
    points = [observe(picture) for picture in pictures]
    assert all(p is not None and p.shape == (468, 2) for p in points)
    mesh = fit_mesh(points, cameras)
    errors = [pose_error(camera_from_mesh(p, mesh, c), c) for p, c in zip(points, cameras, strict=True)]
    shuffled = [pose_error(camera_from_mesh(p, mesh, c), c) for p, c in zip(points, cameras.roll(1, 0), strict=True)]
    assert np.mean(errors) < 8
    assert np.mean(shuffled) > 2 * np.mean(errors)
    assert observe(torch.rand(3, 128, 128) * 2 - 1) is None
