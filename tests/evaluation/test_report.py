"""The report's folder: self-contained, whole or absent, and readable by programs."""

import html.parser
import json
import re

import pytest

from placerec_jax.evaluation import report
from placerec_jax.evaluation.report import Paragraph, Picture, Row, Section, Table, Verdict

PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(20)
TABLE = Table(
    caption="Recall",
    header=["", "1 m", "2 m"],
    rows=[
        Row(["ours", "40.0", "80.0"], "ours"),
        Row(["Published"], "divider"),
        Row(["theirs", "1.0", "2.0"]),
    ],
    groups=[("", 1), ("position", 2)],
    note="Three queries.",
)
SECTIONS = [
    Section("Result", [Paragraph("5 < 6 & 7"), Verdict(False, ["FAIL: too far", "3 queries"]), TABLE]),
    Section("Pictures", [Picture(PIXEL, "image/png", 'a "caption"', "alternative")]),
]
PROVENANCE = {"dataset": {"fingerprint": "abc", "counts": [1, 2]}, "seed": 1}


def write(folder, scores=None, sections=SECTIONS, **options):
    scores = scores if scores is not None else {"median": 1.5}
    return report.write_report(
        folder, "A <title>", "the subtitle", PROVENANCE, scores, sections, ["a notice"], **options
    )


class Outline(html.parser.HTMLParser):
    """Checks that tags are balanced; collects attributes that load something."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [(tag, value) for name, value in attrs if name in {"src", "href", "srcset", "data"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_balanced_and_refers_to_nothing_outside(tmp_path):
    text = write(tmp_path / "report").read_text()
    outline = Outline(text)
    assert outline.open == []
    assert outline.loads
    assert all(value.startswith(("data:", "#")) for _, value in outline.loads), outline.loads
    assert not re.search(r"@import|url\(|<script|https?:", text)


def test_anchors_lead_somewhere(tmp_path):
    text = write(tmp_path / "report").read_text()
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert anchors
    assert set(anchors) == set(re.findall(r'id="([^"]+)"', text))


def test_text_is_escaped_and_complete(tmp_path):
    text = write(tmp_path / "report").read_text()
    shown = "".join(Outline(text).text)
    for expected in ("A <title>", "the subtitle", "5 < 6 & 7", "FAIL: too far", "a notice", "theirs", "abc"):
        assert expected in shown


def test_json_holds_scores_and_provenance(tmp_path):
    write(tmp_path / "report")
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["scores"] == {"median": 1.5}
    assert record["dataset"]["fingerprint"] == "abc"
    assert record["notices"] == ["a notice"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_scores_are_refused_by_name_and_leave_the_older_report(tmp_path, bad):
    write(tmp_path / "report", scores={"median": 1.0})
    with pytest.raises(ValueError, match=r"report\.scores\.list\.1 is not finite"):
        write(tmp_path / "report", scores={"list": [0.0, bad]})
    assert json.loads((tmp_path / "report" / "report.json").read_text())["scores"] == {"median": 1.0}


def test_older_report_is_replaced_whole(tmp_path):
    write(tmp_path / "report", files={"old.csv": b"old"})
    write(tmp_path / "report", scores={"median": 2.0}, files={"new.csv": b"new"})
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "index.html", "new.csv"}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_failure_while_writing_leaves_the_older_report_and_no_rest(tmp_path, monkeypatch):
    write(tmp_path / "report", scores={"median": 1.0})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "report", scores={"median": 2.0})
    assert json.loads((tmp_path / "report" / "report.json").read_text())["scores"] == {"median": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_folder_that_is_no_report_is_not_replaced(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="no report"):
        write(tmp_path / "report")
    assert (tmp_path / "report" / "thesis.tex").read_text() == "years of work"


def test_table_for_the_terminal():
    lines = report.text_table(TABLE).splitlines()
    assert lines[0] == "Recall"
    assert lines[2].split() == ["1", "m", "2", "m"]
    assert lines[4].split() == ["ours", "40.0", "80.0"]
    assert lines[5] == "Published"
    # Columns line up on the right.
    assert len(lines[2]) == len(lines[4]) == len(lines[6])
