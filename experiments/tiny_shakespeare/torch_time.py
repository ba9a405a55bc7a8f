"""Time of a training step of the same model in PyTorch and here, in alternating blocks of one run.

    PYTHONPATH=. python experiments/tiny_shakespeare/torch_time.py DIR

DIR holds input.txt. Both train nanoGPT's CPU setting (4 layers of width 128, 4 heads, context 64,
12 rows, AdamW, clip 1) in float32 with all cores, on the same windows. torch runs as its users
write it, with `scaled_dot_product_attention` and no compiler, then with `torch.compile` where that
works. It needs torch (`pip install -e .[torch]`).
"""

import contextlib
import itertools
import json
import os
import sys
import tempfile
import time

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from configs.tiny_shakespeare import get_config
from transformer_jax.config import from_config_dict, resolve
from transformer_jax.data import load_data
from transformer_jax.host_memory import keep_freed_memory
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.programs import make_program

BLOCKS, STEPS = 8, 25


class Layer(nn.Module):
    """A pre-norm layer, like ours without biases in attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD):
        B, T, D = x_BTD.shape
        q, k, v = (
            y.reshape(B, T, self.heads, -1).transpose(1, 2)
            for y in self.qkv(self.norm1(x_BTD)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        return x_BTD + self.down(functional.gelu(self.up(self.norm2(x_BTD))))


class Model(nn.Module):
    """The language model; the output layer is the embedding."""

    def __init__(self, model, vocab_size):
        super().__init__()
        self.tokens, self.places = (
            nn.Embedding(vocab_size, model.d_model),
            nn.Embedding(512, model.d_model),
        )
        self.layers = nn.ModuleList(
            Layer(model.d_model, model.num_heads) for _ in range(model.decoder_layers)
        )
        self.norm = nn.LayerNorm(model.d_model)

    def forward(self, inputs_BT, targets_BT):
        x_BTD = self.tokens(inputs_BT) + self.places(torch.arange(inputs_BT.shape[1]))[None]
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        logits_BTV = self.norm(x_BTD) @ self.tokens.weight.T
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def torch_step(model, parameters):
    """Return a function that takes one step of AdamW on a batch."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)

    def step(batch):
        loss = model(
            torch.from_numpy(batch.inputs_BT).long(), torch.from_numpy(batch.targets_BT).long()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    return step


def main(directory):
    """Print milliseconds per step, medians over the blocks, and their ratios to ours."""
    keep_freed_memory()
    settings = get_config('cpu')
    settings.data.source_dir = directory
    config = from_config_dict(settings)
    with tempfile.TemporaryDirectory() as workdir:
        data = load_data(
            resolve(config).pipeline, Workdir(workdir).tokenizer_path, print, ('train',)
        )
    program = make_program(resolve(config))
    batches = itertools.cycle(
        itertools.islice(
            data.train_iterator(program.partitioner.local_rows, program.rows_multiple), STEPS
        )
    )
    state = program.init_state()

    def ours(batch):
        nonlocal state
        state, metrics = program.train_step(state, program.place(batch))
        return metrics['loss'].item()

    plain = Model(config.model, config.data.vocab_size)
    steps = {'ours': ours, 'torch': torch_step(plain, list(plain.parameters()))}
    with contextlib.suppress(Exception):  # It needs a C++ compiler.
        copy = Model(config.model, config.data.vocab_size)
        compiled = torch_step(torch.compile(copy), list(copy.parameters()))
        compiled(next(batches))
        steps['torch.compile'] = compiled
    times = {name: [] for name in steps}
    for block in range(BLOCKS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            losses = [step(next(batches)) for _ in range(STEPS)]
            if block:  # The first compiles.
                times[name].append((time.perf_counter() - start) / STEPS)
    assert np.isfinite(losses).all()
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    print(
        json.dumps(
            {
                'ms_per_step': {name: round(1e3 * value, 2) for name, value in medians.items()},
                'over_ours': {
                    name: round(value / medians['ours'], 3) for name, value in medians.items()
                },
                'parameters': {
                    'ours': sum(p.size for p in jax.tree.leaves(state.params)),
                    'torch': sum(p.numel() for p in plain.parameters()),
                },
                'cpus': os.cpu_count(),
                'torch_threads': torch.get_num_threads(),
                'torch': torch.__version__,
                'jax': jax.__version__,
                'load_average_at_the_end': os.getloadavg()[0],
            }
        )
    )


if __name__ == '__main__':
    main(*sys.argv[1:])
