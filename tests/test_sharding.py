"""Rows of tensors in the files of several processes, and what does not shard."""

import subprocess
import sys
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


THREE = """
import sys
import torch
import torch.distributed as processes
from pathlib import Path
from nvb_diffusers.training.sharding import SavedRows, Sharded, whole

class Blocks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 5), torch.nn.Linear(5, 1)])

processes.init_process_group("gloo")
torch.manual_seed(processes.get_rank())  # other weights in each process
sharded = Sharded([Blocks()], torch.device("cpu"))
torch.manual_seed(0)
first = Blocks()
rows = SavedRows([Path(sys.argv[1], f"{rank}.safetensors") for rank in range(2)])
for number, (mine, expected) in enumerate(zip(sharded.models[0].parameters(), first.parameters(), strict=True)):
    assert torch.equal(whole(mine.detach()), expected), "what the first process has"
    with torch.no_grad():
        rows.fill(f"weights.{number}", mine)
    ramp = torch.arange(float(len(expected))).view(-1, *[1] * (expected.ndim - 1))
    assert torch.equal(whole(mine.detach()), (ramp + number).expand_as(expected)), "rows in their places"
processes.barrier()  # one that goes first can abort the others
processes.destroy_process_group()
"""


def test_three_processes_take_up_the_rows_of_two(tmp_path):
    """Assert every row in its place, and that models which differ become those of the first process."""
    shapes = [(5, 4), (5,), (1, 5), (1,)]
    ramps = [torch.arange(float(len(torch.zeros(s)))).view(-1, *[1] * (len(s) - 1)).expand(s) for s in shapes]
    write_rows(tmp_path, 2, **{f"weights.{n}": (ramp + n).contiguous() for n, ramp in enumerate(ramps)})
    (tmp_path / "three.py").write_text(THREE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    done = subprocess.run([*launch, tmp_path / "three.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("damage", ["missing", "cut off", "no description"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage):
    """Assert a ValueError that names the folder."""
    write_rows(tmp_path, 1, **{"weights.0": torch.zeros(3)})
    file = (tmp_path / "0.safetensors").rename(tmp_path / "sharded-00001-of-00001.safetensors")
    (tmp_path / sharding.DESCRIPTION).write_text('{"processes": 1, "averages": {}}' if damage[0] != "n" else "[]")
    if damage == "missing":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"^cannot resume from [^\n]+$"):
        sharding.load_state(tmp_path, [], None, None)


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
