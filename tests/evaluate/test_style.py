"""The style sheet: both colour schemes set the same variables, those are the ones used, and every class of the page is styled."""

import re

from frostline.evaluate.html import report_html
from frostline.evaluate.style import STYLE


def variables(text):
    return set(re.findall(r"(--[a-z0-9]+):", text))


def test_both_schemes_set_every_variable_that_is_used(make_report):
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", report_html(make_report(), "x")))
    assert variables(light) == variables(dark)
    assert used - {"--share"} <= variables(light)


def test_every_class_of_the_page_is_styled(make_report):
    pages = "".join(report_html(make_report(target), "x").partition("</style>")[2] for target in ("class", "multi-label", "number"))
    used = {name for names in re.findall(r'class="([^"]*)"', pages) for name in names.split()}
    styled = set(re.findall(r"\.([a-z][a-z0-9-]*)", STYLE))
    assert used - styled <= {"data-notes", "data-findings"}


def test_nothing_is_fetched():
    assert not re.search(r"url\(|@import|https?:", STYLE)
    assert STYLE.count("{") == STYLE.count("}")
