"""The other side of gpt_from_zero.py: plain PyTorch, the loop as nanoGPT's train.py has it (github.com/karpathy/nanoGPT).

Runs as: python nanogpt_loop.py FOLDER, which holds config.json, train.bin and val.bin (uint16) and initial.safetensors.

As there: random crops of a memory-mapped stream, AdamW with decay on matrices alone, warm-up and cosine, clipping, logits of every
position, cross-entropy, nothing fused on a processor, no compilation. Unlike there: a Llama's blocks, named as in its weight files,
the cosine falls to zero, β₂ is torch's 0.999, and the held-out text is scored whole rather than by random crops.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

folder = Path(sys.argv[1])
config: dict[str, Any] = json.loads((folder / "config.json").read_text())
width, depth, heads, key_heads = config["width"], config["depth"], config["heads"], config["key_heads"]
block_size, batch_size, max_iters, eval_interval = config["length"], config["batch"], config["steps"], config["eval_interval"]
learning_rate, warmup_iters, weight_decay, grad_clip = config["lr"], config["warmup"], config["weight_decay"], config["clip"]
log_interval = 10


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.size = width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, key_heads * self.size, bias=False)
        self.v_proj = nn.Linear(width, key_heads * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        q, k, v = (
            part(x).view(rows, tokens, count, self.size).transpose(1, 2)
            for part, count in [(self.q_proj, heads), (self.k_proj, key_heads), (self.v_proj, key_heads)]
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (part.repeat_interleave(heads // key_heads, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).contiguous().view(rows, tokens, width))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, config["hidden"], bias=False)
        self.up_proj = nn.Linear(width, config["hidden"], bias=False)
        self.down_proj = nn.Linear(config["hidden"], width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=config["eps"])
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(width, eps=config["eps"])
        self.mlp = MLP()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocabulary"], width)
        self.layers = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=config["eps"])
        size = width // heads
        angles = torch.outer(torch.arange(block_size).float(), config["theta"] ** -(torch.arange(0, size, 2).float() / size))
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        x, tokens = self.embed_tokens(idx), idx.shape[1]
        for block in self.layers:
            x = block(x, self.cos[:tokens], self.sin[:tokens])
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def get_batch() -> tuple[Tensor, Tensor]:
    data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")  # anew for each batch, as there: a kept one holds its pages
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in ix])
    return x, y


@torch.no_grad()
def bits_per_byte(model: GPT) -> float:
    """Of the held-out stream, in blocks from its start, each token predicted once; the last block is shorter."""
    data = torch.from_numpy(np.fromfile(folder / "val.bin", dtype=np.uint16).astype(np.int64))
    whole = (len(data) - 1) // block_size * block_size
    x, y = data[:whole].view(-1, block_size), data[1 : whole + 1].view(-1, block_size)
    parts = [*zip(x.split(batch_size), y.split(batch_size))]
    if whole < len(data) - 1:
        parts.append((data[None, whole:-1], data[None, whole + 1 :]))
    model.eval()
    nll = sum(float(model(idx, targets)) * targets.numel() for idx, targets in parts)
    model.train()
    return nll / math.log(2) / config["val_bytes"]


def get_lr(it: int) -> float:
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    decay_ratio = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    return learning_rate * 0.5 * (1.0 + math.cos(math.pi * decay_ratio))


torch.manual_seed(1337)
model = GPT()
model.load_state_dict(load_file(folder / "initial.safetensors"))
parameters = list(model.parameters())
groups = [
    {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
    {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=learning_rate)
X, Y = get_batch()
curve, iter_num = [bits_per_byte(model)], 0
start = time.perf_counter()
while iter_num < max_iters:
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iter_num)
    loss = model(X, Y)
    X, Y = get_batch()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if iter_num % log_interval == 0:
        loss.item()
    iter_num += 1
    if iter_num % eval_interval == 0:
        curve.append(bits_per_byte(model))
seconds = time.perf_counter() - start
print(json.dumps({
    "seconds": seconds, "tokens": max_iters * batch_size * block_size, "curve": curve,
    "parameters": sum(p.numel() for p in parameters), "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))  # fmt: skip
