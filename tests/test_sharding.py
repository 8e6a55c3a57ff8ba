"""Rows of tensors in the files of several processes, and what does not shard."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from conftest import tiny_unet
from safetensors.torch import save_file
from training_runs import assert_one_line, run

from nvb_diffusers.training import sharding
from nvb_diffusers.training.sharding import SavedRows, units


def write_rows(folder, processes, **tensors):
    """Write tensors as so many processes would, by `torch.chunk`; a process without rows has an empty tensor."""
    paths = []
    for rank in range(processes):
        rows = {}
        for name, tensor in tensors.items():
            chunks = tensor.chunk(processes)
            rows[name] = chunks[rank].contiguous() if rank < len(chunks) else tensor[:0]
        paths.append(folder / f"{rank}.safetensors")
        save_file(rows, paths[-1])
    return paths


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_rows_of_any_number_of_processes_come_together(tmp_path, processes):
    """Assert the tensor again, of five rows, one row and rows of two axes."""
    tensors = {"weights.0": torch.randn(5, 2, 3), "weights.1": torch.randn(1), "averages.0": torch.randn(4, 6)}
    rows = SavedRows(write_rows(tmp_path, processes, **tensors))
    for name, tensor in tensors.items():
        target = torch.zeros_like(tensor)
        rows.fill(name, target)
        assert torch.equal(target, tensor)
    assert (rows.count("weights"), rows.count("averages")) == (2, 1)


def test_another_shape_is_refused(tmp_path):
    """Assert one line for other rows and for other columns."""
    rows = SavedRows(write_rows(tmp_path, 2, weight=torch.zeros(5, 2)))
    for shape in ((6, 2), (5, 3), (5,)):
        with pytest.raises(ValueError, match="saved with other trainable parameters"):
            rows.fill("weight", torch.zeros(shape))


def test_every_block_is_a_unit_and_none_holds_another():
    """Assert that the UNet's blocks are units, whose parts are none; the mid block is in no list, but its parts are."""
    unet = tiny_unet()
    found, middle = list(units(unet)), unet.mid_block
    assert set(found) == {*unet.down_blocks, *middle.attentions, *middle.resnets, *unet.up_blocks}
    inside = [child for unit in found for child in unit.modules() if child is not unit]
    assert not set(map(id, inside)) & set(map(id, found))


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--use_muon"], {}, "--use_muon: with FSDP the weights are split by rows"),
        (["--use_8bit_adam"], {}, "--use_8bit_adam: with FSDP the weights are split by rows"),
        ([], {"FSDP_VERSION": "1"}, "--fsdp_version 1: the models are sharded by FSDP2"),
        ([], {"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params true: the rows of a process stay on its device"),
    ],
)
def test_what_does_not_shard_is_one_line(place, tmp_path, monkeypatch, capsys, options, environment, words):
    """Assert exit 2 and no checkpoint."""
    monkeypatch.setattr(sharding, "is_asked", lambda: True)
    for name, value in {"FSDP_VERSION": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    assert run("restoration", place, tmp_path, *options) == 2
    assert_one_line(capsys, words)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_deepspeed_is_refused():
    """Assert that the line says what shards instead."""
    with pytest.raises(ValueError, match="launch with --use_fsdp --fsdp_version 2"):
        sharding.check_launch(SimpleNamespace(distributed_type=DistributedType.DEEPSPEED))
