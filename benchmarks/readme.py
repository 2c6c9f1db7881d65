"""Write the figures of benchmarks/results/*.json into both READMEs, so that no number there is typed by hand.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from typing import Any

import harness

START, END = "<!-- figures: written by benchmarks/readme.py -->", "<!-- end of figures -->"
TITLES = {
    "vgg16_keras": (
        "VGG16 (random weights) frozen, a new head, 224 × 224, against Keras",
        "冻结的 VGG16（随机权重）、新的头部、224 × 224，与 Keras 对比",
    ),
    "vgg16_keras_augment": (
        "The same with shear, zoom and flip anew in each epoch",
        "同上，每轮重新做剪切、缩放和翻转",
    ),
    "fashion_mnist": ("Fashion-MNIST, images", "Fashion-MNIST，图片"),
    "text": ("Text", "文本"),
    "lora_chat": (
        "SmolLM2-135M, LoRA of rank 16 on all linear layers, batch 8, against HF Trainer + PEFT",
        "SmolLM2-135M，所有线性层上秩为 16 的 LoRA，批大小 8，与 HF Trainer + PEFT 对比",
    ),
    "lora_classify": (
        "MiniLM, LoRA of rank 8 on query and value, batch 32, against HF Trainer + PEFT",
        "MiniLM，query 和 value 上秩为 8 的 LoRA，批大小 32，与 HF Trainer + PEFT 对比",
    ),
    "vit_last_blocks": (
        "ViT-base (random weights), its last two blocks learning, against HF Trainer",
        "ViT-base（随机权重），最后两个块在学习，与 HF Trainer 对比",
    ),
    "gpt_from_zero": (
        "A GPT of 11 M numbers from zero, against a plain PyTorch loop",
        "从零训练一千一百万参数的 GPT，与纯 PyTorch 循环对比",
    ),
    "packing": ("Packing: SmolLM2-135M with LoRA on chats of uneven length", "打包：长短不一的对话上对 SmolLM2-135M 做 LoRA"),
    "kernels_loss": ("The loss of a language model", "语言模型的损失"),
    "kernels_linear": ("Frozen linear layers", "冻结的线性层"),
    "kernels_learning": ("Linear layers that learn, in fp32", "学习的线性层（fp32）"),
    "kernels_lora": ("Frozen linear layers with LoRA", "带 LoRA 的冻结线性层"),
    "kernels_attention": ("Attention of texts of different lengths, and of images", "不同长度文本的注意力，以及图像的注意力"),
    "kernels_blocks": ("Between the products of a language model", "语言模型各矩阵乘积之间的运算"),
    "kernels_convolution": ("Frozen convolutions", "冻结的卷积层"),
    "step_memory": ("What a training step holds", "一个训练步占用的内存"),
    "offload": ("A run for which memory is too short", "内存不够的一次训练"),
    "planner": ("Predicted against actual", "预测值与实际值"),
    "regret": ("As planned, plainly, and each choice the other way", "按计划、不作任何优化、以及逐项反过来选择"),
    "head_tuning": ("A head on a frozen network, against the least that it can take", "冻结网络上的头部：与理论最少用时对比"),
    "fast_quality": ("What plan.quality=fast costs in quality", "plan.quality=fast 对质量的影响"),
    "trials": (
        "What only a trial tells: cores for the step while others load, PyTorch's compiler",
        "只有试过才知道的：加载时用几个核计算、PyTorch 编译器",
    ),
    "teach_orders": ("A small behaviour taught to SmolLM2-135M", "教给 SmolLM2-135M 的一个小行为"),
    "startup": ("Start-up", "启动时间"),
}
PARTS = {"vgg16_keras_": "vgg16_keras.py --", "lora_": "lora_peft.py ", "kernels_": "kernels.py "}
"""Scripts that write several results, by the beginning of their names."""


def section(name: str, content: dict[str, Any], chinese: bool) -> str:
    """One benchmark as a table with its facts, its command, its date and its machine."""
    rows = [content["headers"], ["---"] * len(content["headers"]), *content["rows"]]
    table = "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    facts = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in content["facts"].items())
    command = next((f"{script}{name.removeprefix(part)}" for part, script in PARTS.items() if name.startswith(part)), f"{name}.py")
    source = f"`python benchmarks/{command}`, {content['date']}, {content['machine']}"
    about = f"{facts + '. ' if facts else ''}{'来源：' if chinese else 'From '}{source}."
    return f"**{TITLES[name][chinese]}**\n\n{table}\n\n{about}"


def main() -> None:
    found = {name: harness.RESULTS / f"{name}.json" for name in TITLES}
    contents = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()}
    for file, chinese in [("README.md", False), ("README.zh-CN.md", True)]:
        path = harness.ROOT / file
        body = "\n\n".join(section(name, content, chinese) for name, content in contents.items())
        before, _, rest = path.read_text(encoding="utf-8").partition(START)
        after = rest.partition(END)[2]
        path.write_text(f"{before}{START}\n{body}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
