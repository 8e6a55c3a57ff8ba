"""The data sets: one degradation a sample, cameras that follow the pictures, splits, errors, latents and shards."""

import gc
import json
import shutil
import tarfile
from itertools import islice

import fsspec
import numpy as np
import pytest
import torch
from conftest import load_script, tiny_vae
from PIL import Image
from small_data import write_small_set
from torch.utils.data import DataLoader

from nvb_diffusers.camera import camera_from_angles, project_points
from nvb_diffusers.data import datasets as data_module
from nvb_diffusers.data.datasets import (
    FaceDataset,
    MultiViewFaceDataset,
    SampleTransform,
    held_out_batch,
    key_sampler,
    load_records,
    split_batch,
)
from nvb_diffusers.data.tar_shards import read_tar, write_tar
from nvb_diffusers.training.latents import cache_latents, encode_latents, latent_side, with_latents

POINT = torch.tensor([[0.11, 0.09, 0.06]])  # in the world, off every axis
prepare_shards = load_script("prepare_shards")


@pytest.fixture
def folder(tmp_path):
    return write_small_set(tmp_path / "data")


def write_dots(folder, size=64, views=5):
    """One identity whose pictures show one bright dot where `POINT` projects to."""
    lines = []
    for view in range(views):
        camera = camera_from_angles(15.0 * view - 30, 4.0 * view)
        u, v, _ = project_points(POINT, camera)[0].tolist()
        y, x = (np.mgrid[:size, :size] + 0.5) / size
        dot = np.exp(-((x - u) ** 2 + (y - v) ** 2) * size**2 / (2 * 2.5**2))
        path = folder / "images" / "0" / f"{view}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat((30 + 220 * dot)[..., None], 3, axis=2).round().astype(np.uint8)).save(path)
        record = {
            "file_name": f"0/{view}.png",
            "identity": 0,
            "view": view,
            "camera": camera.tolist(),
            "split": "train",
        }
        lines.append(json.dumps(record))
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def find_dot(pixel_values):
    """(u, v) of the dot in a picture (3, S, S), in shares of the side."""
    weights = (pixel_values.mean(0).double() + 0.5).clamp(min=0)
    side = len(weights)
    places = (torch.arange(side) + 0.5) / side
    return torch.stack([(weights.sum(0) * places).sum(), (weights.sum(1) * places).sum()]) / weights.sum()


@pytest.mark.parametrize("crop_jitter", [0.0, 0.4])
def test_cameras_follow_flips_and_crops(tmp_path, crop_jitter):
    """Assert that a known 3D point projects to its pixel after mirroring and random cropping, at another size too."""
    transform = SampleTransform(48, (), seed=1, crop_jitter=crop_jitter)
    dataset = MultiViewFaceDataset(write_dots(tmp_path), "train", transform, num_target_views=4)
    flips, worst, moved = set(), 0.0, 0.0
    plain = {tuple(camera) for camera in dataset.records["camera"]}
    for key in range(8):
        sample = dataset[key]
        flipped = bool(sample["flipped"])
        flips.add(flipped)
        point = POINT * torch.tensor([-1.0, 1, 1]) if flipped else POINT  # the mirrored world
        for picture, camera in zip(sample["pixel_values"], sample["camera_params"], strict=True):
            projected = project_points(point, camera)[0, :2]
            if not 0.15 < projected.min() <= projected.max() < 0.85:
                continue  # the crop cuts the dot
            worst = max(worst, (find_dot(picture) - projected).abs().max().item() * 48)
            moved = max(moved, min((camera - torch.tensor(c)).abs().max().item() for c in plain))
    assert flips == {True, False}
    assert moved > 0.05
    assert worst < 0.35  # pixels


def test_views_of_a_sample_share_one_degradation(folder, monkeypatch):
    """Assert that source and targets get the same parameters (Eq. 7), and other samples other ones."""
    seen = []
    real = data_module.apply
    monkeypatch.setattr(data_module, "apply", lambda image, params: seen.append(params) or real(image, params))
    dataset = MultiViewFaceDataset(folder, "train", SampleTransform(64, ("severe",), seed=3), num_target_views=2)
    sample = dataset[0]
    dataset[1]
    assert len(seen) == 6
    assert seen[0] == seen[1] == seen[2] != seen[3]
    flipped_back = sample["pixel_values"]
    pictures = ((flipped_back + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    again = [real(np.ascontiguousarray(picture), seen[0]) for picture in pictures]
    shown = ((sample["degraded_pixel_values"] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert (np.stack(again) == shown).all()


def test_a_key_gives_the_same_sample_again(folder):
    """Assert equal samples for equal keys, and other flips, degradations and views in other epochs."""
    dataset = MultiViewFaceDataset(folder, "train", SampleTransform(64, ("mild",), crop_jitter=0.1), 1)
    one, again, later = dataset[2], dataset[2], dataset[2 + len(dataset)]
    assert one.keys() == {"pixel_values", "degraded_pixel_values", "camera_params", "flipped", "key"}
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["degraded_pixel_values"], later["degraded_pixel_values"])


def test_single_pictures(folder):
    """Assert the shapes of step 1's samples, and that a set without degradation gives clean pictures alone."""
    sample = FaceDataset(folder, "train", SampleTransform(64, ("mild",)))[5]
    assert sample["pixel_values"].shape == sample["degraded_pixel_values"].shape == (3, 64, 64)
    assert sample["camera_params"].shape == (25,)
    assert sample["key"].item() == 5
    assert "degraded_pixel_values" not in FaceDataset(folder, "train", SampleTransform(64, ()))[5]


def test_splits_hold_different_identities(folder):
    """Assert that no identity is in two splits and that all are in one."""
    splits = [set(load_records(folder, split)["identity"]) for split in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [4, 1, 1]
    assert len(set.union(*splits)) == 6
    with pytest.raises(ValueError, match=r"metadata.jsonl has no image in split 'dev'"):
        load_records(folder, "dev")


def test_a_bad_record_is_named_by_file_and_line(folder):
    """Assert that the error says which line of which file is wrong."""
    path = folder / "images" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[6])
    lines[6] = json.dumps({**record, "camera": record["camera"][:-1]})
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"metadata.jsonl:7: camera has shape \(24,\)"):
        FaceDataset(folder, "train", SampleTransform(64, ()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves a broken file open
def test_unreadable_and_oblong_pictures_are_named(folder):
    """Assert that the error of a broken file, and of a picture that is no square, names it."""
    broken, oblong = folder / "images/000001/00.png", folder / "images/000001/01.png"
    broken.write_bytes(broken.read_bytes()[:60])
    Image.new("RGB", (64, 50)).save(oblong)
    dataset = FaceDataset(folder, "train", SampleTransform(64, ()))
    with pytest.raises(ValueError, match=r"cannot read image .*000001/00.png"):
        dataset[3]
    with pytest.raises(ValueError, match=r"image .*000001/01.png is 64x50"):
        dataset[4]
    gc.collect()


def test_pictures_with_and_without_cameras_make_a_batch(folder):
    """Assert that step 1 reads a set in which some pictures have a camera, and step 2 refuses it."""
    path = folder / "images" / "metadata.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    del records[0]["camera"]
    path.write_text("\n".join(json.dumps(record) for record in records))
    batch = next(iter(DataLoader(FaceDataset(folder, "train", SampleTransform(64, ())), batch_size=4)))
    assert "camera_params" not in batch
    with pytest.raises(ValueError, match="images without a camera in split 'train'"):
        MultiViewFaceDataset(folder, "train", SampleTransform(64, ()), 1)


def test_too_few_views_are_refused(folder):
    """Assert one line that says how many views there are and what to change."""
    with pytest.raises(ValueError, match="has 3 views, but 3 targets and the source need 4: lower --num_target_views"):
        MultiViewFaceDataset(folder, "train", SampleTransform(64, ()), 3)


def test_held_out_batch_is_evenly_taken_and_fixed(folder):
    """Assert equal batches in every run, from over all of the set, and parts that add up to the whole."""
    dataset = FaceDataset(folder, "train", SampleTransform(64, ("mild",), flip=False))
    batch = held_out_batch(dataset, 5)
    assert [key % 12 for key in batch["key"].tolist()] == [0, 3, 6, 8, 11]
    assert torch.equal(batch["degraded_pixel_values"], held_out_batch(dataset, 5)["degraded_pixel_values"])
    assert len(held_out_batch(dataset, 99)["key"]) == 12
    parts = split_batch(batch, 2)
    assert [len(part["key"]) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part["pixel_values"] for part in parts]), batch["pixel_values"])


def test_cached_latents_are_those_of_the_pictures(tmp_path, folder):
    """Assert the latents of each sample as it is shown, mirrored or not, and from a larger picture too."""
    vae = tiny_vae().eval()
    plain = FaceDataset(folder, "train", SampleTransform(32, ()))
    cached = FaceDataset(folder, "train", SampleTransform(32, ()))
    cached.use_latents(cache_latents(vae, cached.records, 32, tmp_path / "latents.npy", batch_size=5))
    assert latent_side(vae, 32) == 4
    flips = set()
    for key in range(12):
        sample = cached[key]
        with torch.no_grad():
            expected = encode_latents(vae, plain[key]["pixel_values"][None])[0]
        torch.testing.assert_close(sample["latents"], expected, atol=1e-3, rtol=1e-3)  # they are kept in 16 bits
        flips.add(bool(sample["flipped"]))
    assert flips == {True, False}
    batch = next(iter(DataLoader(cached, batch_size=2)))
    assert with_latents(batch, vae) is batch


def test_a_stale_cache_is_refused(tmp_path, folder):
    """Assert that latents of another autoencoder or resolution are not taken for these, and that a cache is kept."""
    vae, path = tiny_vae().eval(), tmp_path / "latents.npy"
    records = load_records(folder, "train")
    cache_latents(vae, records, 64, path)
    written = path.stat().st_mtime_ns
    cache_latents(vae, records, 64, path)
    assert path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"latents.npy holds latents of another autoencoder, resolution or data set"):
        cache_latents(vae, records, 32, path)
    with pytest.raises(ValueError, match="remove it"):
        cache_latents(tiny_vae().eval(), records, 64, path)
    with pytest.raises(ValueError, match=r"expected \(3, 2, ...\)"):
        FaceDataset(folder, "test", SampleTransform(64, ())).use_latents(np.zeros((12, 2, 4, 8, 8)))


def test_an_interrupted_cache_is_made_again(tmp_path, folder):
    """Assert that a picture which cannot be read leaves no cache behind."""
    vae, path = tiny_vae().eval(), tmp_path / "latents.npy"
    records = load_records(folder, "train")
    picture = folder / "images/000002/01.png"
    content = picture.read_bytes()
    picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*000002/01.png"):
        cache_latents(vae, records, 64, path, batch_size=2)
    assert not path.exists()
    picture.write_bytes(content)
    assert cache_latents(vae, records, 64, path).shape == (12, 2, 4, 8, 8)


# Shards


@pytest.fixture(params=["parquet", "webdataset"])
def shards(tmp_path, folder, request):
    """The small set in several shards: of the train split two identities each."""
    size = sum(path.stat().st_size for path in (folder / "images").glob("00000[01]/*.png")) - 100
    arguments = ["--data_dir", str(folder), "--output_dir", str(tmp_path / "shards"), "--shard_size", str(size / 1e6)]
    arguments += ["--shard_format", request.param]
    assert prepare_shards.main(arguments) == 0
    assert prepare_shards.main(arguments) == 0, "the second run finds everything in place"
    index = json.loads((tmp_path / "shards/shards.json").read_text())
    assert [shard["views"] for shard in index["train"]] == [[3, 3], [3, 3]]
    shutil.rmtree(folder / "images")  # nothing else is read
    return tmp_path / "shards"


def test_streamed_samples_are_those_of_the_folder(tmp_path, shards):
    """Assert that each key gives the same sample from shards as from the folder, in both steps."""
    folder = write_small_set(tmp_path / "again")
    transform = SampleTransform(64, ("mild",), crop_jitter=0.1)
    for make in (FaceDataset, lambda *args, **kwargs: MultiViewFaceDataset(*args, 1, **kwargs)):
        streamed, plain = make(shards, "train", transform, streaming=True), make(folder, "train", transform)
        assert len(streamed) == len(plain)
        for key in (0, 3, len(plain) - 1, len(plain) + 1):
            one, other = streamed[key], plain[key]
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = held_out_batch(streamed, 2), held_out_batch(plain, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_shards_are_read_from_a_url(shards):
    """Assert that an address of fsspec gives the same samples as a folder."""
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    one, other = (FaceDataset(at, "train", SampleTransform(64, ()), True)[7] for at in ("memory://shards", shards))
    assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_each_worker_reads_each_shard_once(shards, monkeypatch):
    """Assert that the sampler gives an epoch without jumping between shards, and goes on where a run stopped."""
    opened = []
    real = data_module.ShardedRecords._load

    def load(records, shard):
        if records._loaded is None or records._loaded[0] != shard:
            opened.append(shard)
        return real(records, shard)

    monkeypatch.setattr(data_module.ShardedRecords, "_load", load)
    dataset = MultiViewFaceDataset(shards, "train", SampleTransform(64, ()), 2, streaming=True)
    loader = DataLoader(dataset, batch_size=1, sampler=key_sampler(dataset, 0, 0, batch_size=1, readers=1))
    keys = [batch["key"].item() for batch in islice(loader, 8)]
    assert sorted(key % 4 for key in keys[:4]) == sorted(key % 4 for key in keys[4:]) == [0, 1, 2, 3]
    assert len(opened) <= 4  # two shards, two epochs
    with_workers = DataLoader(
        dataset, batch_size=1, sampler=key_sampler(dataset, 0, 3, batch_size=1, readers=1), num_workers=1
    )
    assert [batch["key"].item() for batch in islice(with_workers, 5)] == keys[3:]


def test_shards_that_are_missing_or_broken_are_named(tmp_path, shards):
    """Assert one line for a folder without shards, an unknown split, a broken shard and a broken picture in it."""
    with pytest.raises(ValueError, match=r"no shards at .*shards.json does not exist"):
        FaceDataset(tmp_path, "train", SampleTransform(64, ()), streaming=True)
    with pytest.raises(ValueError, match="no shard of split 'dev'"):
        FaceDataset(shards, "dev", SampleTransform(64, ()), streaming=True)
    (broken,) = shards.glob("test-00000.*")
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(OSError, match=rf"cannot read shard .*{broken.name}"):
        FaceDataset(shards, "test", SampleTransform(64, ()), streaming=True)[0]


def test_a_broken_picture_in_a_shard_is_named(tmp_path, folder):
    """Assert that the error names the picture and its shard."""
    (folder / "images/000000/02.png").write_bytes(b"no picture")
    assert prepare_shards.main(["--data_dir", str(folder), "--output_dir", str(tmp_path / "shards")]) == 0
    dataset = FaceDataset(tmp_path / "shards", "train", SampleTransform(64, ()), streaming=True)
    with pytest.raises(ValueError, match=r"cannot read image 000000/02.png in .*train-00000.parquet"):
        dataset[2]


def test_a_tar_shard_is_webdatasets_layout(tmp_path):
    """Assert the members of a file, what comes back, and one line for a sample that lacks one."""
    rows = [
        {"image": {"bytes": b"one", "path": "7/a.b.png"}, "identity": "7", "view": 3, "camera": [0.5] * 25},
        {"image": {"bytes": b"two", "path": "8/c.jpg"}, "identity": "8", "view": 0, "camera": None},
    ]
    write_tar(tmp_path / "a.tar", rows)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["00000000.png", "00000000.json", "00000001.jpg", "00000001.json"]
    with (tmp_path / "a.tar").open("rb") as file:
        assert read_tar(file) == {name: [row[name] for row in rows] for name in rows[0]}
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("5.png"))
    with (tmp_path / "b.tar").open("rb") as file, pytest.raises(ValueError, match="sample 5 has png, expected a pict"):
        read_tar(file)


def test_shuffled_shards_hold_the_same_pictures(tmp_path, folder):
    """Assert that mixing identities keeps each together and loses none."""
    arguments = ["--data_dir", str(folder), "--output_dir", str(tmp_path / "mixed"), "--shuffle_seed", "2"]
    assert prepare_shards.main(arguments) == 0
    dataset = MultiViewFaceDataset(tmp_path / "mixed", "train", SampleTransform(64, ()), 2, streaming=True)
    identities = [[dataset.records[index]["identity"] for index in views] for views in dataset.views]
    assert all(len(set(identity)) == 1 for identity in identities)
    order = [identity[0] for identity in identities]
    assert sorted(order) == ["0", "1", "2", "3"] != order


def test_the_first_samples_alone(folder):
    """Assert the same samples as of the whole set, that no other is ever among them, and that a limit may be high."""
    transform = SampleTransform(32, [], flip=False)
    for make in (
        lambda: FaceDataset(folder, "train", transform),
        lambda: MultiViewFaceDataset(folder, "train", transform, num_target_views=2),
    ):
        whole, cut = make(), make()
        cut.keep_first(2)
        assert len(cut) == 2 < len(whole)
        first = [whole[key]["pixel_values"] for key in (0, 1)]
        for key in range(6):  # views of a head come in another order each time
            means = [sample.mean() for sample in (cut[key]["pixel_values"], first[key % 2])]
            torch.testing.assert_close(*means, atol=1e-5, rtol=0)
        cut.keep_first(10**6)
        assert len(cut) == len(whole)
