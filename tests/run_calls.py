"""A run of `Run` on three numbers, and what it leaves."""

import argparse
import json

import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from nvb_diffusers.training.options import add_run_arguments
from nvb_diffusers.training.run import Run


class Samples(Dataset):
    """Pairs of a sample's key and three numbers."""

    records = None  # neither shards nor files
    count = 5

    def keep_first(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        return {"key": torch.tensor(key), "values": torch.arange(3.0) + key % self.count}


def options(folder, *words):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser, train_batch_size=2, learning_rate=0.1, lr_warmup_steps=0, dataloader_num_workers=0)
    common = ["--data_dir", "-", "--output_dir", str(folder), "--report_to", "none", "--logging_steps", "1"]
    return parser.parse_args([*common, *map(str, words)])


def train(folder, *words, in_step=lambda step: None, outputs=1):
    """Run to the end; the weight as it was at each validation, after each step, and at the end."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, outputs, bias=False)
    validated, stepped = {}, {}
    with Run("test", options(folder, *words)) as run:
        (wrapped,) = run.prepare([model], Samples())
        for batch in run:
            in_step(run.global_step)
            loss = wrapped(batch["values"]).square().mean()
            run.step(loss, {"part": 2 * loss.detach()})
            if run.validates:
                validated[run.global_step] = model.weight.detach().clone()
                run.log({"validation": 1.0})
            else:
                stepped[run.global_step] = model.weight.detach().clone()
    return validated, stepped, model.weight.detach().clone()


def curve(folder, name):
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def saved(folder, step):
    return load_file(folder / f"checkpoint-{step}/trainable_0.safetensors")["weight"]
