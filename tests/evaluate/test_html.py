"""The page is well-formed, stands alone, runs nothing, and shows what the report holds."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from frostline.data.dataset import Schema
from frostline.evaluate.html import NAMES, report_html
from frostline.evaluate.report import Report, build_report
from frostline.tasks.metrics import split_metrics

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects them."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("target", ["class", "multi-label", "number"])
def test_well_formed_alone_and_escaped(make_report, target):
    page = report_html(make_report(target), "运行 <b>1</b>")
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert parsed.links == []
    assert re.findall(r"https?://|url\(|@import", page) == []
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert "运行 <b>1</b>" in parsed.texts


def test_every_part_is_there_in_both_languages(make_report):
    page = report_html(make_report(), "x")
    for heading in (
        "Training curves 训练曲线", "Metrics 指标", "Classes 各类别", "Confusion matrix 混淆矩阵", "Calibration 校准",
        "Most confident errors 最有把握的错误", "Data 数据", "Predicted against actual cost 预测与实际开销", "Accuracy 准确率",
    ):  # fmt: skip
        assert heading in page
    assert page.count("<svg") == 4  # loss, accuracy, classes, calibration
    report = make_report()
    assert f"{report.metrics['accuracy']:.4f}" in page and "12.5 s" in page and "1.5 MB" in page


def test_every_metric_has_a_name():
    rng = np.random.default_rng(0)
    seven = Schema(task="text-classification", labels=tuple("abcdefg"))
    several = Schema(task="text-classification", target="multi-label", labels=("a", "b"))
    number = Schema(task="text-classification", target="number")
    names = {
        *split_metrics(seven, rng.dirichlet(np.ones(7), 50), rng.integers(0, 7, 50)),
        *split_metrics(several, rng.random((50, 2)), rng.integers(0, 2, (50, 2))),
        *split_metrics(number, rng.random(50), rng.random(50)),
    }
    assert names < set(NAMES)


def test_many_classes_are_summarised(make_report):
    names = tuple(f"class {index}" for index in range(31))
    page = report_html(make_report(names=names), "x")
    Page(page)
    assert "Most confused pairs 最易混淆的类别" in page and 'class="heat"' not in page
    assert 'class="heat"' in report_html(make_report(names=names[:30]), "x")


def test_an_empty_report_is_a_page():
    Page(report_html(Report(task="image-classification"), "x"))
    schema = Schema(task="text-classification", labels=("a", "b"))
    Page(report_html(build_report(schema, np.zeros((0, 2)), np.zeros(0, dtype=np.int64), [], split="test"), "x"))


def test_thumbnails_of_images_that_are_there(tmp_path, make_report):
    paths = []
    for row in range(60):
        path = tmp_path / f"图 & {row}.png"
        Image.fromarray(np.full((300, 200, 3), row, dtype=np.uint8)).save(path)
        paths.append(str(path))
    report = make_report(task="image-classification", origins=paths)
    (tmp_path / report.mistakes[0]["origin"]).unlink()
    (tmp_path / report.mistakes[1]["origin"]).write_bytes(b"\xff\xd8 broken")
    page = report_html(report, "x")
    parsed = Page(page)
    assert len(parsed.links) == 18 and all(link.startswith("data:image/jpeg;base64,") for link in parsed.links)
    assert len(page) < 200_000
    assert Page(report_html(make_report(origins=paths), "x")).links == []  # a text that names a file shows no picture
