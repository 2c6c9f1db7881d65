"""What stands between the matrix products of a transformer, each way in a process of its own: parts of kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BETWEEN = ["as transformers does", "PyTorch's passes", "C++"]
CHAT, TEXTS, LONG = [142, 80, 60, 300, 110, 200, 90, 154], [30, 50, 20, 70, 41, 44, 33, 17] * 4, [512] * 4
ATTENTIONS = {  # lengths, heads, heads of keys, size, causal, dropout
    "SmolLM2, 8 chats": (CHAT, 9, 3, 64, True, 0.0),
    "SmolLM2, 4 x 512 tokens": (LONG, 9, 3, 64, True, 0.0),
    "ViT-base, 32 images": ([197] * 32, 12, 12, 64, False, 0.0),
    "MiniLM, 32 texts": (TEXTS, 12, 12, 32, False, 0.0),
    "MiniLM, 32 texts, dropout": (TEXTS, 12, 12, 32, False, 0.1),
}


def attention(way: str, quick: bool) -> dict[str, Any]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from frostline.kernels import sequence_attention
    from frostline.kernels.attention import AttentionRule, varlen_attention
    from frostline.plan.machine import best_seconds

    if way == BETWEEN[1]:
        sequence_attention.takes = lambda *_: False  # type: ignore[assignment]
    found: dict[str, Any] = {}
    for name, (lengths, heads, key_heads, size, causal, dropout) in list(ATTENTIONS.items())[-1 if quick else 0 :]:
        rule, longest = AttentionRule(causal=causal, dropout=dropout), max(lengths)
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        mask = (real[:, None, None, :] & (torch.ones(longest, longest).tril().bool() if causal else True)).expand(-1, 1, longest, longest)
        mask = None if mask.all() else mask
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            draw = lambda heads: torch.randn(*real.shape, heads, size).to(dtype)  # noqa: B023, E731
            padded = [draw(count) for count in (heads, key_heads, key_heads)]
            packed = [part[real].transpose(0, 1)[None].requires_grad_() for part in padded]
            whole = [part.transpose(1, 2).requires_grad_() for part in padded]
            grad = draw(heads)

            def both() -> list[Tensor]:
                if way == BETWEEN[0]:
                    y = scaled_dot_product_attention(*whole, mask, dropout, enable_gqa=heads != key_heads)  # noqa: B023
                    return list(torch.autograd.grad(y.transpose(1, 2), whole, grad * real[:, :, None, None]))  # noqa: B023
                return list(torch.autograd.grad(varlen_attention(*packed, lengths, rule), packed, grad[real][None]))  # noqa: B023

            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = {"ms": 1e3 * best_seconds(both, budget=0.3)}
    return found


def blocks(way: str, quick: bool) -> dict[str, Any]:
    import torch
    from torch.nn.functional import silu
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

    from frostline.kernels import block_kernels
    from frostline.kernels.rms_norm import rms_norm
    from frostline.kernels.rotary import rotary
    from frostline.kernels.swiglu import swiglu
    from frostline.plan.machine import best_seconds

    if way == BETWEEN[1]:
        block_kernels.library.found = "in PyTorch"
    plain, rows = way == BETWEEN[0], 64 if quick else 1024
    norm = LlamaRMSNorm(576).requires_grad_(False)
    angles = torch.linspace(0, 5, rows * 32).view(1, 1, rows, 32).repeat(1, 1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    works: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "RMSNorm": (norm if plain else lambda x: rms_norm(x, norm.weight, 1e-6, x.dtype), [torch.randn(1, rows, 576)]),
        "SwiGLU": ((lambda gate, up: silu(gate) * up) if plain else swiglu, [torch.randn(1, rows, 1536), torch.randn(1, rows, 1536)]),
        "rotary": (
            (lambda x: x * cos + rotate_half(x) * sin) if plain else lambda x: rotary(x, cos, sin),
            [torch.randn(1, rows, 9, 64).transpose(1, 2)],
        ),
    }
    found: dict[str, Any] = {}
    for name, (work, tensors) in works.items():
        for dtype in (torch.float32, torch.bfloat16):
            leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
            output = work(*leaves)
            grad = torch.randn(output.shape).to(output.dtype)
            exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
            expected = torch.autograd.grad(work(*exact), exact, grad.double())
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(torch.autograd.grad(output, leaves, grad), expected)]
            seconds = best_seconds(lambda: torch.autograd.grad(work(*leaves), leaves, grad), budget=0.3)  # noqa: B023
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = {"ms": 1e3 * seconds, "error": max(errors)}
    return found
