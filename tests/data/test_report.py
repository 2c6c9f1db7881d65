"""The report: JSON round trip, columns that line up with Chinese, a short terminal text, and safe HTML."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from frostline.data.raw import SetAside
from frostline.data.report import DataReport, display_width, group_set_aside, histogram, pad, printable


def report_of(classes=2, name="类{}", **changes):
    counts = {name.format(number): {"train": 80 + number, "validation": 10} for number in range(classes)}
    fields = {
        "source": "数据/评论.csv",
        "task": "text-classification",
        "rows": {"train": 161, "validation": 20},
        "classes": counts,
        "sizes": histogram(np.arange(1, 400), "characters"),
        "duplicates": {"count": 3, "examples": [["a.csv:2", "a.csv:9"]]},
        "leakage": {"count": 1, "examples": ["a.csv:5"]},
        "set_aside": group_set_aside([SetAside(origin="a.csv:7", reason="no label"), SetAside(origin="a.csv:8", reason="no label")]),
        "warnings": ["careful"],
        "notes": ["text column: '评论' (guessed)"],
    }
    return DataReport(**{**fields, **changes})


def test_round_trip_through_json():
    report = report_of().with_lengths([3, 50, 128], 0.25)
    assert report.sizes["name"] == "tokens" and report.truncated == 0.25
    again = DataReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report and str(again) == str(report)
    with pytest.raises(TypeError, match="unknown"):
        DataReport.from_dict({"unknown": 1})


def test_terminal_text():
    lines = str(report_of(name="类别{}").with_lengths([3, 50, 128], 0.25)).split("\n")
    assert lines[0] == "数据/评论.csv · text-classification · 2 classes · 181 rows"
    assert lines[1:5] == [
        "class  train  validation  total",
        "类别0     80          10     90",
        "类别1     81          10     91",
        "rows     161          20    181",
    ]
    assert lines[5] == "tokens: 3 to 128, median 50  2 █   ██ 200"
    assert lines[6:] == [
        "duplicates: 3 rows repeat another (kept, in the same split), e.g. a.csv:2 = a.csv:9",
        "leakage: 1 rows set aside because they also stand in a held-out split, e.g. a.csv:5",
        "set aside: 2 rows",
        "  2 × no label: a.csv:7, a.csv:8",
        "cut to the model's longest length: 25.0% of the texts",
        "warning: careful",
        "note: text column: '评论' (guessed)",
    ]


def test_columns_line_up_with_chinese_names():
    lines = str(report_of(classes=5, name="{}好猫")).split("\n")[1:7]
    assert len({display_width(line) for line in lines}) == 1


def test_many_classes_stay_short():
    text = str(
        report_of(classes=500, warnings=["w"] * 30, notes=["n" * 500] * 30, set_aside=[{"reason": "r", "count": 1, "examples": []}] * 30)
    )
    assert len(text.split("\n")) <= 40 and "(481 more)" in text
    assert max(map(display_width, text.split("\n"))) <= 140


def test_an_empty_report_and_numbers():
    assert "0 rows" in str(DataReport()) and DataReport().to_html()
    text = str(report_of(target="number", classes=0))
    assert "numbers" in text and "161" in text


def test_hostile_names_cannot_reach_terminal_or_page():
    report = report_of(name="<script>{}\x1b[31m\n", source="<b>", warnings=["<i>\x07"])
    assert "\x1b" not in str(report) and "\x07" not in str(report)
    page = report.to_html()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>" not in page and "\x1b" not in page


def test_html_is_well_formed_with_bars():
    page = ElementTree.fromstring(f"<div>{report_of().to_html()}</div>")
    assert len(page.findall(".//rect")) == len(report_of().sizes["counts"])
    assert [cell.text for cell in page.findall(".//tbody/tr/td")][:4] == ["类0", "80", "10", "90"]


@pytest.mark.parametrize("values", [[0], [7], [1, 1000, 99_999], list(range(300))])
def test_histogram_counts_everything(values):
    found = histogram(values, "tokens")
    assert sum(found["counts"]) == len(values) and len(found["edges"]) == len(found["counts"]) + 1
    assert found["edges"][0] <= min(values) and found["edges"][-1] > max(values)
    assert histogram([], "tokens") == {}


def test_widths():
    assert display_width("é") == 1 and display_width("e\u0301") == 1 and display_width("ＡＢ好") == 6
    assert pad("好", 4) == "好  " and pad("好", 4, right=True) == "  好" and printable("a\tb") == "a�b"
