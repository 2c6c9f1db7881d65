"""A plan as one HTML file that stands alone: the network with its frost line, memory, seconds, decisions.

Style and drawings are inline; there is no script, nothing is fetched, and the page's content security policy lets nothing load.
Light or dark as the reader's system is; headings in English and Chinese. Every number is one that the plan has: memory is the sum
of :func:`frostline.plan.cost.predict_peak_bytes`, seconds are ``Cost.parts``, the widths of the parts are counted multiply-adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from frostline.device import device_of
from frostline.plan.decision import Decision
from frostline.plan.machine import memory_limit, resident_bytes
from frostline.plan.network_picture import STATE_NAMES, groups, network_svg, share_of, short, states, text, weight_of
from frostline.plan.outline import LEARNING, Outline, Part, outline
from frostline.plan.picture_style import STYLE
from frostline.plan.plan import Plan

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MEMORY = {
    "weights": "weights 权重",
    "gradients": "gradients 梯度",
    "optimizer": "optimiser state 优化器状态",
    "average": "moving average of weights 权重滑动平均",
    "activations": "activations kept for the backward pass 为反向传播保留的激活",
    "passing": "batches and temporaries 批次与临时量",
    "mapped": "stored rows in memory 内存中的缓存行",
    "program": "the program itself 程序本身",
}
_SECONDS = {
    "step": "forward and backward of what runs in each step 每步的前向与反向",
    "update": "updates of what learns 参数更新",
    "validation": "validation 验证",
    "read and encode": "reading and encoding rows 读取与编码",
    "frozen prefix": "the frozen part before the frost line 冰冻线之前的冻结部分",
    "write store": "writing the stored rows 写入缓存",
    "read store": "reading the stored rows 读取缓存",
}


def plan_html(plan: Plan) -> str:
    """The whole page. A few rows pass through the network to learn the order and the work of its parts."""
    seen = outline(plan.execution)
    title = f"Plan 计划: {plan.model.card.name}"
    recipe, card = plan.recipe, plan.model.card
    about = f"{card.schema.task} · adapt {recipe.adapt.method} · {recipe.train.epochs} epochs 轮 · batch 批次 {recipe.train.batch}"
    sections = [
        _tiles(plan),
        _section("What is frozen and what learns 冻结与学习", _network(plan, seen)),
        _section("Memory at the peak of a step 一步的内存峰值", _memory(plan)),
        _section("Predicted time 预计用时", _seconds(plan.predicted.parts)),
        _section("Decisions 决策", _decisions(plan.decisions)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><header><h1>{text(title)}</h1>"
        f"<p>{text(about)}</p></header><main>{''.join(sections)}</main></body></html>\n"
    )


def _tiles(plan: Plan) -> str:
    counts, cost = plan.parameters, plan.predicted
    tiles = [("numbers that learn 学习的参数", share_of(counts["learning"], counts["all"]), f"{counts['learning']:,} / {counts['all']:,}")]
    if cost.parts:
        tiles += [
            ("time 用时", _duration(cost.seconds), "predicted 预计"),
            ("memory 内存", short(cost.peak_bytes, "B"), f"peak 峰值 · {short(_room(plan), 'B')} free 可用"),
            ("disk 磁盘", short(cost.disk_bytes, "B"), "written 写入"),
        ]
    shown = "".join(
        f'<div class="tile"><div class="name">{text(name)}</div><div class="value">{text(value)}</div>'
        f'<div class="note">{text(note)}</div></div>'
        for name, value, note in tiles
    )
    warnings = "".join(f"<li>{text(warning)}</li>" for warning in plan.warnings)
    return f'<div class="tiles">{shown}</div>' + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")


def _network(plan: Plan, seen: Outline) -> str:
    legend = "".join(f'<li><i class="{state}"></i>{text(STATE_NAMES[state])}</li>' for state in states(seen.parts))
    measure = (
        "Width: multiply-adds of the forward pass; height of a colour: share of the part's numbers. "
        "宽度：前向的乘加次数；颜色高度：参数占比。"
        if seen.counted
        else "Width: numbers of weights, since not every product of this network can be counted; height of a colour: share of them. "
        "宽度：参数数量（此网络的运算无法全部统计）；颜色高度：参数占比。"
    )
    return (
        f'<p class="sentence">{text(_sentence(plan, seen))}</p><ul class="legend">{legend}</ul>'
        f'<div class="scroll">{network_svg(seen)}</div><p class="small">{text(measure)}</p>'
        f'<div class="scroll">{_parts(seen)}</div>'
    )


def _sentence(plan: Plan, seen: Outline) -> str:
    """The picture in words."""
    if all(set(part.shares) <= {LEARNING} for part in seen.parts):
        return "Everything learns, so there is no frost line. 全部参数都在学习，没有冰冻线。"
    if seen.line is None:
        return "Something learns at the input, so nothing can be computed beforehand. 输入端就有参数在学习，没有可以提前计算的部分。"
    before, total = (sum(weight_of(part, seen.counted) for part in parts) for parts in (seen.parts[: seen.line], seen.parts))
    share, (what, of_what) = share_of(before, total), ("multiply-adds", "乘加运算") if seen.counted else ("numbers", "参数")
    cached = next((made for made in plan.decisions if made.what == "cache_prefix" and made.on), None)
    how = f": {cached.why}, stored {cached.costs}." if cached else ", and run in each step."
    how_said = "只算一次并缓存" if cached else "每步都要计算"
    sentence = (
        f"{share} of the {what} stand before the frost line{how} 冰冻线之前占{of_what}的 {share}，{how_said}。"
        if before
        else "What stands before the frost line multiplies nothing. 冰冻线之前没有乘加运算。"
    )
    later = " The picture is the run's beginning; blocks thaw later. 图为训练开始时的状态，之后逐块解冻。"
    return sentence + _behind(seen) + (later if plan.recipe.adapt.method == "gradual" else "")


def _behind(seen: Outline) -> str:
    """What is frozen although it must run in each step, since something learns before it."""
    counts = Counter[str]()
    for part in seen.parts[seen.line :]:
        counts.update(part.shares)
    frozen = counts.total() - counts[LEARNING]
    share = share_of(frozen, counts.total())
    return f" Behind it {share} of the numbers are frozen too. 冰冻线之后仍有 {share} 的参数是冻结的。" if frozen else ""


def _parts(seen: Outline) -> str:
    total = sum(weight_of(part, seen.counted) for part in seen.parts)
    rows = []
    for number, group in enumerate(groups(seen), 1):
        weight = sum(weight_of(part, seen.counted) for part in group.parts)
        marks = "".join(f'<i class="{state}"></i>' for state in states(group.parts))
        rows.append(
            [
                f"{number}",
                f"{text(group.label)}",
                f"<code>{text(group.names)}</code>",
                marks,
                short(sum(part.numbers for part in group.parts)),
                _learning(group.parts),
                *([short(sum(part.work for part in group.parts))] if seen.counted else []),
                share_of(weight, total),
            ]
        )
    work = ["multiply-adds a row 每行乘加"] if seen.counted else []
    headers = ["", "part 部分", "name 名称", "", "numbers 参数", "learning 学习", *work, "share 占比"]
    return _table(headers, rows, "parts")


def _learning(parts: Sequence[Part]) -> str:
    count = sum(part.shares.get(LEARNING, 0) for part in parts)
    return short(count) if count else "–"


def _memory(plan: Plan) -> str:
    sizes = _memory_parts(plan)
    if not sizes:
        return ""
    total, room, program = sum(sizes.values()), _room(plan), sizes.get("program", 0)
    colours = {name: f"m{index}" for index, name in enumerate(_MEMORY)}
    rows = [
        [f'<i class="{colours[name]}"></i> {text(_MEMORY[name])}', short(size, "B"), share_of(size, total)] for name, size in sizes.items()
    ]
    run = _stack([(colours[name], _MEMORY[name], size) for name, size in sizes.items() if name != "program"], "stack")
    whole = [(colours["program"], _MEMORY["program"], program), ("run", "the run 训练", total - program), ("free", "", room - total)]
    note = (
        f"{short(total, 'B')} with the program, of the {short(room, 'B')} that are free here ({share_of(total, room)}). "
        f"连同程序本身共 {short(total, 'B')}，本机可用 {short(room, 'B')}。"
    )
    table = _table(["part 部分", "bytes 大小", "share 占比"], rows, "plain")
    return f'{run}<p class="small">{text(note)}</p>{_stack(whole, "stack room")}{table}'


def _stack(parts: Sequence[tuple[str, str, int]], style: str) -> str:
    """Bytes side by side: (class, name, bytes)."""
    spans = (
        f'<span class="{kind}" style="flex-grow:{size}" title="{text(name)}{": " if name else ""}{short(size, "B")}"></span>'
        for kind, name, size in parts
        if size > 0
    )
    return f'<div class="{style}">{"".join(spans)}</div>'


def _memory_parts(plan: Plan) -> dict[str, int]:
    """The terms of the predicted peak, largest meaning first; nothing for a run that goes on, which predicts nothing."""
    counts, peak = plan.parameters, plan.predicted.peak_bytes
    if not peak:
        return {}
    sizes = {name: counts.get(f"{name}_bytes", 0) for name in ("gradients", "optimizer", "activations", "passing", "mapped")}
    sizes["average"] = counts["gradients_bytes"] if plan.recipe.train.ema is not None else 0
    sizes["weights"] = counts["weights_bytes"]
    sizes["program"] = peak - sum(sizes.values())
    if sizes["program"] < 0:  # weights that are mapped from their file and not read yet
        sizes["weights"] += sizes.pop("program")
    return {name: sizes[name] for name in _MEMORY if sizes.get(name, 0) > 0}


def _room(plan: Plan) -> int:
    device = device_of(plan.model.module)
    return max(1, memory_limit(device) + resident_bytes(device))


def _seconds(parts: Mapping[str, float]) -> str:
    if not parts:
        return ""
    longest, total = max(parts.values()), sum(parts.values())
    rows = [
        [
            text(_SECONDS.get(name, name)),
            f'<div class="meter"><i style="width:{_percent(seconds, longest)}"></i></div>',
            _duration(seconds),
            share_of(seconds, total),
        ]
        for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
    ]
    return _table(["part 部分", "", "time 用时", "share 占比"], rows, "bars")


def _decisions(decisions: Sequence[Decision]) -> str:
    rows = [
        [
            f"<code>{text(made.what)}</code>",
            '<b class="yes">on 开</b>' if made.on else '<span class="no">off 关</span>',
            text(made.why),
            _duration(made.saves_seconds) if made.saves_seconds else "",
            text(made.costs),
            "exact 精确" if made.exact else "not exact 近似",
        ]
        for made in sorted(decisions, key=lambda made: not made.on)
    ]
    return f'<div class="scroll">{_table(["pass 优化", "", "why 原因", "saves 节省", "costs 代价", ""], rows, "left")}</div>'


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "< 1 ms" if seconds < 1e-3 else f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _percent(size: float, whole: float) -> str:
    return f"{100 * min(1.0, size / max(whole, 1e-9)):.2f}%"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{text(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
