"""The kernels one by one, each way in a process of its own: seconds, memory and errors.

    python benchmarks/kernels.py [loss] [linear] [learning] [lora] [convolution] [attention] [blocks] [--repeat 3] [--quick]

loss    the head of a language model, frozen, forward and back to the hidden states, at 2 048 labelled rows, width 576 and vocabulary
        49 152: ``linear_cross_entropy``, plain and with a packed weight, against logits and ``F.cross_entropy``. The transient memory is
        the peak of resident memory over what was resident before the first call, packed weights included.
linear  a frozen linear layer, forward and the gradient that passes through, in the shapes of SmolLM2-135M and MiniLM (inputs x outputs)
        at 512 and 2 048 rows: ``F.linear`` in fp32 and bf16, the packed weight in both, int8, and PyTorch's own dynamic int8
        (``torch.ops.quantized.linear_dynamic``, oneDNN). Errors are those of Gaussian numbers against float64, relative.
learning  a linear layer that learns, in fp32, forward and back to input, weight and bias, in those shapes and ViT-base's: ``F.linear``, and
        as a convolution over its rows, which oneDNN multiplies.
lora    a frozen linear layer with a LoRA update of rank 16, forward and back to input and factors: ``lora_linear``, plain and with a
        packed weight, against ``F.linear`` and two products written out.

convolution  a frozen convolution of VGG16 and its ReLU at 4 images of 224 x 224, forward, channels innermost: PyTorch's in fp32 and bf16,
        both packed as one operation, int8 with the quantising of what comes in, and int8 as a link of a chain, from steps to steps.
attention  of texts of different lengths, forward and back: PyTorch's on the padded batch with a mask, as a network calls it; ours in
        groups of like length; ours in C++. SmolLM2's heads (causal), MiniLM's with dropout of its weights, long texts, and images,
        which are all as long and need no mask.
blocks  RMS norms, SwiGLU and rotary positions in the shapes of SmolLM2-135M at 1 024 tokens, forward and back: written out as in
        transformers, as one function of PyTorch's passes, as one function in C++.

Ways in bf16 are left out where the machine multiplies fp32 faster. A cell is the median over the processes of the shortest time in
each. About four minutes in all on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import harness
from transformer_kernels import BETWEEN, attention, blocks

if TYPE_CHECKING:
    from torch import Tensor

    Product = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

SMOLLM2 = [(576, 576), (576, 192), (1536, 576), (576, 1536)]
MINILM = [(384, 384), (384, 1536), (1536, 384)]
VIT = [(768, 768), (768, 3072), (3072, 768)]
ROWS = [512, 2048]
HEAD = (2048, 576, 49_152)
RANK, SCALING = 16, 2.0
VGG16 = [(64, 64, 224), (128, 128, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14)]
IMAGES = 4


def _logits_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(functional.linear(hidden, weight), labels, reduction="sum")


def _chunked_loss(packed: bool, weight: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from frostline.kernels.cross_entropy import linear_cross_entropy

    product: Any = _packed(weight, "float32", rows=256) if packed else weight
    if packed:  # both forms are made now, since they stay and are no transient memory
        product.gradient(product.forward(weight.new_zeros(1, weight.shape[1]), None))
    return lambda hidden, _, labels: linear_cross_entropy(hidden, product, None, labels).nll.sum()


def _packed(weight: Tensor, dtype: str, rows: int) -> Any:
    import torch

    from frostline.kernels.packed_product import PackedProduct

    return PackedProduct(weight, dtype=getattr(torch, dtype), rows=rows)


LOSSES = {"logits, F.cross_entropy": None, "linear_cross_entropy": False, "linear_cross_entropy, packed": True}


def loss(way: str, quick: bool) -> dict[str, Any]:
    import torch

    from frostline.plan.machine import best_seconds, resident_bytes
    from frostline.train.memory import peak_bytes, reset_peak

    rows, width, vocabulary = (64, 64, 1024) if quick else HEAD
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight, labels = torch.randn(vocabulary, width) / width**0.5, torch.randint(vocabulary, (rows,))
    packed = LOSSES[way]
    work = _logits_loss if packed is None else _chunked_loss(packed, weight)

    def both() -> Tensor:
        hidden.grad = None
        total = work(hidden, weight, labels)
        total.backward()
        return total.detach()

    torch.ones(512, 512) @ torch.ones(512, 512)  # what the first product of a process sets up is not the kernel's
    reset_peak()
    before = resident_bytes()
    total = both()
    transient = peak_bytes() - before
    seconds = best_seconds(both, budget=0.05 if quick else 2.0)
    gradient = hidden.grad
    assert gradient is not None, "backward gives one"
    exact = hidden.detach().double().requires_grad_()
    reference = _logits_loss(exact, weight.double(), labels)
    reference.backward()
    return {
        "ms": 1e3 * seconds, "transient_mb": transient / 1e6, "loss_error": abs(float(total) / float(reference.detach()) - 1),
        "gradient_error": _error(gradient, exact.grad),
    }  # fmt: skip


def _error(found: Tensor, exact: Any) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _plain(dtype: str) -> Callable[[Tensor, int], Product]:
    def make(weight: Tensor, rows: int) -> Product:
        import torch
        from torch.nn import functional

        cast = weight.to(getattr(torch, dtype))
        return lambda x: functional.linear(x, cast), lambda grad: grad @ cast

    return make


def _of_product(kind: str) -> Callable[[Tensor, int], Product]:
    def make(weight: Tensor, rows: int) -> Product:
        from frostline.kernels.int8_product import Int8Product

        product = Int8Product(weight) if kind == "int8" else _packed(weight, kind, rows)
        return lambda x: product.forward(x, None), product.gradient

    return make


def _dynamic(weight: Tensor, rows: int) -> Product:
    import torch

    torch.backends.quantized.engine = "onednn"

    def one(matrix: Tensor) -> Callable[[Tensor], Tensor]:
        scales, zeros = matrix.abs().amax(1) / 127, torch.zeros(len(matrix), dtype=torch.int64)
        quantised = torch.quantize_per_channel(matrix.contiguous(), scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, None)
        return lambda x: torch.ops.quantized.linear_dynamic(x, packed)

    return one(weight), one(weight.t())


LINEARS: dict[str, tuple[str, Callable[[Tensor, int], Product]]] = {
    # the way: what comes in and goes out, and what makes it
    "F.linear fp32": ("float32", _plain("float32")),
    "packed fp32": ("float32", _of_product("float32")),
    "F.linear bf16": ("bfloat16", _plain("bfloat16")),
    "packed bf16": ("bfloat16", _of_product("bfloat16")),
    "int8": ("float32", _of_product("int8")),
    "linear_dynamic": ("float32", _dynamic),
}


def _each_shape(quick: bool, besides: Sequence[tuple[int, int]] = ()) -> list[tuple[str, int, int, int]]:
    shapes, counts = ([(64, 128)], [32]) if quick else ([*SMOLLM2, *MINILM, *besides], ROWS)
    return [(f"{inputs}x{outputs}, {rows} rows", inputs, outputs, rows) for inputs, outputs in shapes for rows in counts]


def linear(way: str, quick: bool) -> dict[str, Any]:
    import torch

    from frostline.plan.machine import best_seconds

    name, make = LINEARS[way]
    dtype = getattr(torch, name)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for shape, width, outputs, rows in _each_shape(quick):
            torch.manual_seed(0)
            weight, x, grad = torch.randn(outputs, width) / width**0.5, torch.randn(rows, width), torch.randn(rows, outputs)
            forward, back = make(weight, rows)
            given, gradient = x.to(dtype), grad.to(dtype)
            found[shape] = {
                "forward_ms": 1e3 * best_seconds(lambda: forward(given), budget=0.15),  # noqa: B023
                "back_ms": 1e3 * best_seconds(lambda: back(gradient), budget=0.15),  # noqa: B023
                "forward_error": _error(forward(given), x.double() @ weight.double().t()),
                "back_error": _error(back(gradient), grad.double() @ weight.double()),
            }
    return found


LEARNING = ["F.linear", "linear_by_convolution"]


def learning(way: str, quick: bool) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from frostline.kernels.onednn_linear import linear_by_convolution
    from frostline.plan.machine import best_seconds

    found: dict[str, Any] = {}
    linear = functional.linear if way == LEARNING[0] else linear_by_convolution
    for shape, width, outputs, rows in _each_shape(quick, VIT):
        torch.manual_seed(0)
        operands = [torch.randn(rows, width), torch.randn(outputs, width) / width**0.5, torch.randn(outputs)]
        leaves, grad = [tensor.clone().requires_grad_() for tensor in operands], torch.randn(rows, outputs)

        def both() -> list[Tensor]:
            return list(torch.autograd.grad(linear(*leaves), leaves, grad))  # noqa: B023

        exact = [tensor.double().requires_grad_() for tensor in operands]
        true = torch.autograd.grad(functional.linear(*exact), exact, grad.double())
        found[shape] = {"ms": 1e3 * best_seconds(both, budget=0.3), "error": max(map(_error, both(), true))}
    return found


LORAS = ["F.linear and two products", "lora_linear", "lora_linear, packed"]


def lora(way: str, quick: bool) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from frostline.kernels.lora_linear import lora_linear
    from frostline.plan.machine import best_seconds

    found: dict[str, Any] = {}
    for shape, width, outputs, rows in _each_shape(quick):
        torch.manual_seed(0)
        weight, grad = torch.randn(outputs, width) / width**0.5, torch.randn(rows, outputs)
        x = torch.randn(rows, width, requires_grad=True)
        a, b = torch.randn(RANK, width, requires_grad=True), torch.randn(outputs, RANK, requires_grad=True)
        base: Any = _packed(weight, "float32", rows) if way.endswith("packed") else weight

        def both() -> None:
            x.grad = a.grad = b.grad = None  # noqa: B023
            if way == LORAS[0]:
                y = functional.linear(x, weight) + SCALING * functional.linear(functional.linear(x, a), b)  # noqa: B023
            else:
                y = lora_linear(x, base, None, a, b, SCALING)  # noqa: B023
            y.backward(grad)  # noqa: B023

        seconds = best_seconds(both, budget=0.3)
        exact = [tensor.detach().double().requires_grad_() for tensor in (x, a, b)]
        plain = exact[0] @ weight.double().t() + SCALING * (exact[0] @ exact[1].t()) @ exact[2].t()
        plain.backward(grad.double())
        errors = [_error(tensor.grad, other.grad) for tensor, other in zip((x, a, b), exact) if tensor.grad is not None]
        found[shape] = {"ms": 1e3 * seconds, "error": max(errors)}
    return found


CONVOLUTIONS = ["F.conv2d fp32", "F.conv2d bf16", "packed fp32", "packed bf16", "int8", "int8 in a chain"]


def convolution(way: str, quick: bool) -> dict[str, Any]:
    import torch
    from torch import nn

    from frostline.kernels.convolution_unit import ConvolutionUnit
    from frostline.kernels.int8_convolution import Int8Convolution
    from frostline.kernels.int8_product import largest_activation
    from frostline.kernels.packed_convolution import PackedConvolution
    from frostline.plan.machine import best_seconds

    dtype = torch.bfloat16 if way.endswith("bf16") else torch.float32
    found: dict[str, Any] = {}
    with torch.no_grad():
        for inputs, outputs, size in VGG16[-1:] if quick else VGG16:
            torch.manual_seed(0)
            layer = nn.Conv2d(inputs, outputs, 3, padding=1).to(memory_format=torch.channels_last)
            x = torch.randn(IMAGES, inputs, size, size).relu_().contiguous(memory_format=torch.channels_last)
            exact = layer(x).relu_()
            unit = ConvolutionUnit(convolution=layer, activation=nn.ReLU())
            product, given, cast = Int8Convolution(unit, low=0.0, high=float(x.max())), x.to(dtype), copy.deepcopy(layer).to(dtype)
            after = Int8Convolution(ConvolutionUnit(convolution=nn.Conv2d(outputs, 1, 1)), low=0.0, high=float(exact.max()))
            packed, steps = PackedConvolution(unit, dtype=dtype, images=tuple(x.shape)), product.steps(x)
            runs = {
                "packed fp32": lambda: packed.forward(given, None),  # noqa: B023
                "packed bf16": lambda: packed.forward(given, None),  # noqa: B023
                "int8": lambda: product.forward(x, None),  # noqa: B023
                "int8 in a chain": lambda: product.of_steps(steps, after),  # noqa: B023
            }
            run = runs.get(way, lambda: cast(given).relu_())  # noqa: B023
            y = run() * (float(exact.max()) / largest_activation() if way == "int8 in a chain" else 1)
            found[f"{inputs} to {outputs}, {size} x {size}"] = {"ms": 1e3 * best_seconds(run), "error": _error(y, exact.double())}
    return found


PARTS = {
    "loss": loss, "linear": linear, "learning": learning, "lora": lora,
    "convolution": convolution, "attention": attention, "blocks": blocks,
}  # fmt: skip


def _runs(part: str, ways: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    kept, _ = harness.without_slow_bf16(dict.fromkeys(ways))
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in kept}
    for _ in range(options.repeat):
        for way, found in runs.items():
            found.append(harness.last_json_line([sys.executable, __file__, "--side", part, way, str(int(options.quick))]))
    return runs


def publish_loss(options: argparse.Namespace) -> None:
    runs, rows = _runs("loss", list(LOSSES), options), []
    for way, found in runs.items():
        ms, first = harness.median([run["ms"] for run in found]), harness.median([run["ms"] for run in next(iter(runs.values()))])
        transient, errors = harness.median([run["transient_mb"] for run in found]), found[0]
        rows.append([
            way, f"{ms:.0f}", f"{first / ms:.2f} ×", f"{transient:.0f}", f"{errors['loss_error']:.0e}", f"{errors['gradient_error']:.0e}",
        ])  # fmt: skip
    headers = ["", "ms, forward and back", "against the first", "transient MB", "error of the loss", "error of the gradient"]
    sizes = "{} rows, width {}, vocabulary {}".format(*HEAD)
    harness.publish("kernels_loss", headers, rows, sizes=sizes, repeats=options.repeat)


def publish_shapes(part: str, ways: list[str], times: list[str], options: argparse.Namespace) -> None:
    """A row for each shape and a column for each way: the sum of its ``times``, and how that compares with the first way."""
    runs, rows = _runs(part, ways, options), []
    for shape in next(iter(runs.values()))[0]:
        ms = {way: harness.median([sum(run[shape][time] for time in times) for run in found]) for way, found in runs.items()}
        rows.append([shape, *(f"{value:.2f} ({ms[ways[0]] / value:.2f} ×)" for value in ms.values())])
    kinds = [name for name in next(iter(runs[ways[0]][0].values())) if "error" in name]
    errors = {
        way: ", ".join(f"{kind.replace('_', ' ')} {max(shape[kind] for shape in found[0].values()):.1e}" for kind in kinds)
        for way, found in runs.items()
    }
    headers = [f"ms, forward{'' if part == 'convolution' else ' and back'} (against the first)", *runs]
    facts = {"largest_errors": "; ".join(f"{way}: {text}" for way, text in errors.items())} if kinds else {}
    harness.publish(f"kernels_{part}", headers, rows, **facts, repeats=options.repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, once: to see that every way works")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        part, way, quick = options.side
        print(json.dumps(PARTS[part](way, quick == "1")))
        return
    if options.quick:
        options.repeat = 1
    publishers: dict[str, Callable[[], None]] = {
        "loss": lambda: publish_loss(options),
        "linear": lambda: publish_shapes("linear", list(LINEARS), ["forward_ms", "back_ms"], options),
        "learning": lambda: publish_shapes("learning", LEARNING, ["ms"], options),
        "lora": lambda: publish_shapes("lora", LORAS, ["ms"], options),
        "convolution": lambda: publish_shapes("convolution", CONVOLUTIONS, ["ms"], options),
        "attention": lambda: publish_shapes("attention", BETWEEN, ["ms"], options),
        "blocks": lambda: publish_shapes("blocks", BETWEEN, ["ms"], options),
    }
    if unknown := [part for part in options.parts if part not in publishers]:
        parser.error(f"unknown part {unknown[0]!r}, expected one of {', '.join(publishers)}")
    for part in options.parts:
        publishers[part]()


if __name__ == "__main__":
    main()
