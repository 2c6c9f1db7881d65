"""The report as one HTML file that stands alone: style and charts inline, pictures inside, no script, nothing fetched.

Headings are in English and Chinese; light or dark as the reader's system is. Whatever came from the data (labels, paths,
texts) is escaped, and the page's content security policy lets nothing run or load even if something were not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frostline.data.report import DataReport
from frostline.evaluate import charts
from frostline.evaluate.charts import text
from frostline.evaluate.report import Report, cost_rows
from frostline.evaluate.style import STYLE
from frostline.evaluate.terminal import confused_pairs, number
from frostline.evaluate.thumbnails import thumbnail

_LARGEST_MATRIX = 30
_PAIRS_SHOWN = 30
_CLASSES_SHOWN = 200
_BARS_SHOWN = 30
_CURVES = 3
_TILES = 4

NAMES = {
    "loss": "Loss 损失",
    "accuracy": "Accuracy 准确率",
    "top5_accuracy": "Top-5 accuracy 前五准确率",
    "balanced_accuracy": "Balanced accuracy 平衡准确率",
    "subset_accuracy": "Subset accuracy 完全匹配率",
    "label_accuracy": "Label accuracy 标签准确率",
    "hamming_loss": "Hamming loss 汉明损失",
    "precision_macro": "Precision, macro 宏平均精确率",
    "recall_macro": "Recall, macro 宏平均召回率",
    "f1_macro": "F1, macro 宏平均 F1",
    "precision_micro": "Precision, micro 微平均精确率",
    "recall_micro": "Recall, micro 微平均召回率",
    "f1_micro": "F1, micro 微平均 F1",
    "precision_weighted": "Precision, weighted 加权精确率",
    "recall_weighted": "Recall, weighted 加权召回率",
    "f1_weighted": "F1, weighted 加权 F1",
    "roc_auc": "ROC-AUC 曲线下面积",
    "log_loss": "Log loss 对数损失",
    "calibration_error": "Calibration error 校准误差",
    "mse": "Mean squared error 均方误差",
    "rmse": "Root mean squared error 均方根误差",
    "mae": "Mean absolute error 平均绝对误差",
    "r2": "R² 决定系数",
    "perplexity": "Perplexity 困惑度",
    "token_accuracy": "Token accuracy 词元准确率",
    "bits_per_byte": "Bits per byte 每字节比特数",
    "exact_match": "Exact match 完全一致率",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "margin": "Reward margin 奖励差",
    "precision": "Precision 精确率",
    "recall": "Recall 召回率",
    "f1": "F1",
    "spearman": "Spearman 相关系数",
    "mrr": "MRR 平均倒数排名",
    "recall@1": "Recall@1",
    "recall@5": "Recall@5",
    "recall@10": "Recall@10",
}
_SPLITS = {"train": "train 训练集", "validation": "validation 验证集", "test": "test 测试集"}
_TILE_ORDER = ("accuracy", "f1_macro", "roc_auc", "calibration_error", "f1_micro", "subset_accuracy", "r2", "rmse", "mae", "mse")


def report_html(report: Report, title: str, *, max_pixels: int = 100_000_000) -> str:
    """The whole page; an image of more than ``max_pixels`` gets no picture."""
    sections = "".join(section(report, max_pixels) if section is _mistakes else section(report) for section in _SECTIONS)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><header><h1>{text(title)}</h1>"
        f"<p>{text(report.task)} · {text(_SPLITS.get(report.split, report.split))} · {report.rows:,} rows 行</p></header>"
        f"<main>{sections}</main></body></html>\n"
    )


def _tiles(report: Report) -> str:
    names = ([name for name in _TILE_ORDER if name in report.metrics] or [name for name in report.metrics if name in NAMES])[:_TILES]
    tiles = "".join(
        f'<div class="tile"><div class="name">{text(NAMES[name])}</div><div class="value">{number(report.metrics[name])}</div>'
        f'<div class="interval">{_interval(report, name)}</div></div>'
        for name in names
    )
    notes = "".join(f"<li>{text(note)}</li>" for note in report.notes)
    return f'<div class="tiles">{tiles}</div>' + (f'<ul class="notes">{notes}</ul>' if notes else "")


def _curves(report: Report) -> str:
    """Loss first, then what was validated, at most three charts."""
    names = dict.fromkeys(["loss", *(key.removeprefix("val_") for epoch in report.history for key in epoch if key.startswith("val_"))])
    pictures = []
    for name in names:
        series = {
            label: points
            for label, key in (("train 训练", name), ("validation 验证", f"val_{name}"))
            if (points := [(at, epoch[key]) for at, epoch in enumerate(report.history, 1) if _is_number(epoch.get(key))])
        }
        if series:
            pictures.append(_figure(NAMES.get(name, name), charts.lines(series, "epoch 轮次")))
    return _section("Training curves 训练曲线", f'<div class="grid3">{"".join(pictures[:_CURVES])}</div>' if pictures else "")


def _metrics(report: Report) -> str:
    rows = [[text(NAMES.get(name, name)), number(value), _interval(report, name)] for name, value in report.metrics.items()]
    headers = ["metric 指标", "value 数值", "95 % interval 置信区间"]
    return _section("Metrics 指标", _table(headers, rows) if rows else "")


def _classes(report: Report) -> str:
    if not report.per_class:
        return ""
    shown = report.per_class[:_CLASSES_SHOWN]
    rows = [
        [text(one["label"]), f"{one['rows']:,}", *(number(one[key]) for key in ("precision", "recall", "f1", "roc_auc"))] for one in shown
    ]
    table = _table(["class 类别", "rows 行数", "precision 精确率", "recall 召回率", "F1", "ROC-AUC"], rows, "plain tight")
    worst = sorted(shown, key=lambda one: one["f1"] if one["f1"] is not None else 2.0)[:_BARS_SHOWN]
    chart = _figure("F1, lowest first F1（由低到高）", charts.bars({one["label"]: one["f1"] for one in worst}))
    rest = len(report.per_class) - len(shown)
    more = f"<p>{rest} more classes are in report.json. 其余 {rest} 个类别见 report.json。</p>" if rest else ""
    return _section("Classes 各类别", f'<div class="grid2"><div class="scroll">{table}{more}</div>{chart}</div>')


def _confusion(report: Report) -> str:
    if not report.confusion:
        return ""
    if len(report.labels) > _LARGEST_MATRIX:
        pairs = confused_pairs(report.confusion, report.labels, _PAIRS_SHOWN)
        rows = [[text(true), text(predicted), f"{count:,}"] for true, predicted, count in pairs]
        return _section("Most confused pairs 最易混淆的类别", _table(["true 真实", "predicted 预测", "rows 行数"], rows) if rows else "")
    head = "".join(f"<th>{text(label)}</th>" for label in report.labels)
    body = "".join(
        f"<tr><th>{text(label)}</th>{_heat_cells(line, row)}</tr>"
        for row, (label, line) in enumerate(zip(report.labels, report.confusion, strict=True))
    )
    table = f'<table class="heat"><thead><tr><th>true 真实 ╲ predicted 预测</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return _section("Confusion matrix 混淆矩阵", f'<div class="scroll">{table}</div>')


def _heat_cells(line: Sequence[int], row: int) -> str:
    """Shaded by the share of the true class; errors in a colour of their own and, being small, more strongly."""
    total = max(1, sum(line))
    cells = []
    for column, count in enumerate(line):
        share = count / total
        kind = "right" if column == row else "wrong"
        shade = share if column == row else share**0.7
        strong = " strong" if shade > 0.5 else ""
        cells.append(f'<td class="{kind}{strong}" style="--share:{shade:.3f}" title="{share:.1%}">{count or "·"}</td>')
    return "".join(cells)


def _calibration(report: Report) -> str:
    if not report.calibration:
        return ""
    note = (
        "Bars on the dashed line: the probability can be taken at its word. Pale bars stand for few rows. "
        "柱顶落在虚线上，说明概率可信；颜色浅的柱代表的行数少。"
    )
    return _section("Calibration 校准", _figure(note, charts.reliability(report.calibration)))


def _points(report: Report) -> str:
    return _section("Predicted against true 预测值与真实值", _figure("", charts.scatter(report.points))) if report.points else ""


def _mistakes(report: Report, max_pixels: int) -> str:
    if not report.mistakes:
        return ""
    pictures = report.task == "image-classification"
    cards = "".join(_mistake(one, thumbnail(one["origin"], max_pixels) if pictures else None) for one in report.mistakes)
    title = "Largest errors 误差最大的样本" if report.target == "number" else "Most confident errors 最有把握的错误"
    return _section(title, f'<div class="cards{" wide" if not pictures else ""}">{cards}</div>')


def _mistake(one: Mapping[str, Any], picture: str | None) -> str:
    image = f'<img src="{picture}" alt="">' if picture else ""
    sure = f" · {number(one['probability'])}" if one["probability"] is not None else ""
    return (
        f'<div class="card">{image}<div><div>predicted 预测: <b>{text(one["predicted"])}</b>{sure}</div>'
        f'<div class="true">true 真实: <b>{text(one["true"])}</b></div>'
        f'<div class="origin" title="{text(one["origin"])}">{text(one["origin"])}</div></div></div>'
    )


def _examples(report: Report) -> str:
    rows = [[f"<pre>{text(str(one.get(name, '')))}</pre>" for name in ("input", "expected", "given")] for one in report.examples]
    headers = ["input 输入", "expected 参考", "given 生成"]
    return _section("Examples 样例", f'<div class="scroll">{_table(headers, rows, "plain left")}</div>' if rows else "")


def _data(report: Report) -> str:
    return _section("Data 数据", f'<div class="scroll">{DataReport.from_dict(report.data).to_html()}</div>' if report.data else "")


def _cost(report: Report) -> str:
    rows = [[text(cell) for cell in row] for row in cost_rows(report.cost)]
    headers = ["cost 开销", "predicted 预测", "actual 实际", "actual / predicted 比值"]
    return _section("Predicted against actual cost 预测与实际开销", _table(headers, rows) if rows else "")


_SECTIONS: tuple[Callable[..., str], ...] = (
    _tiles,
    _curves,
    _metrics,
    _classes,
    _confusion,
    _calibration,
    _points,
    _mistakes,
    _examples,
    _data,
    _cost,
)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def _figure(caption: str, picture: str) -> str:
    return f"<figure><figcaption>{text(caption)}</figcaption>{picture}</figure>"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], style: str = "plain") -> str:
    """Cells are HTML already; all columns but the first are set to the right."""
    head = "".join(f"<th>{text(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _interval(report: Report, name: str) -> str:
    return text(report.interval_text(name).strip(" ()"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
