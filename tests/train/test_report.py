"""The report stands alone, and its plots are drawn from what is there."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from shoal.train.events import Log, duration, live_line, read_log
from shoal.train.recipe import load_recipe
from shoal.train.report import line_plot, short
from shoal.train.run import train

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-test.toml"


def test_a_run_ends_with_a_report_that_needs_nothing_else(tmp_path: Path):
    words = ["--mtp.tokens", "0", "--sft.tokens", "0", "--run.name", "<b>&name", "--run.tensorboard", "true"]
    outcome = train(load_recipe(RECIPE, words), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and not re.search(r"(src|href)=", page) and "http" not in page
    assert "<b>&name" not in page and "&lt;b&gt;&amp;name" in page
    assert page.count("<svg") >= 5 and "pre-training" in page
    assert outcome.receipt and f"${outcome.receipt.total_usd:.4g}" in page
    assert f"{outcome.measures['train']['bits_per_byte']:.4g}" in page
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_plot_puts_points_where_they_belong_and_drops_what_is_not_finite():
    plot = line_plot([("a & b", [0, 1, 2, 3], [0.0, 10.0, math.nan, 5.0])], width=460, height=220)
    tree = ElementTree.fromstring(plot)
    points = next(e for e in tree.iter() if e.tag == "polyline").attrib["points"].split()
    assert points == ["52.0,196.0", "185.3,18.0", "452.0,107.0"]
    assert "no data" in line_plot([("x", [], [])])
    ElementTree.fromstring(line_plot([("one", [1], [2]), ("two", [1], [2])]))
    assert [short(v) for v in (1234567, 45000, 0.0312)] == ["1.23M", "45K", "0.0312"]


def test_a_log_drops_what_lies_after_its_state_and_a_line_cut_by_a_kill(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    for number in range(4):
        log.write({"step": number, "loss": math.nan})
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_log(path)] == [0, 1, 2, 3]
    again = Log(path, keep_lines=2)
    again.write({"step": 2})
    again.close()
    assert [line["step"] for line in read_log(path)] == [0, 1, 2]
    assert read_log(path)[0]["loss"] is None


def test_the_live_line_says_what_people_ask():
    line = {"stage": "train", "step": 12, "loss": 2.5, "bits_per_byte": 1.0, "tokens_per_second": 1830.4}
    assert live_line(line) == "step 12  loss 2.500  1.000 bits/byte  1830 tokens/s"
    full = live_line(line | {"max_violation": 0.42, "usd": 0.0003})
    assert full.endswith("MaxVio 0.42  $0.0003")
    assert [duration(s) for s in (65, 3723)] == ["1:05", "1:02:03"]
