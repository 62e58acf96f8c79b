"""The page is whole: well-formed, self-contained, and it fits screens."""

import html
import html.parser
import re
import shutil
import subprocess

import pytest

from configs.lra import published
from experiments import report, report_figures, report_page
from experiments.report_runs import find_runs, group_runs
from tests.experiments.made_runs import make_run

VOID = {"meta", "br", "hr", "img", "link", "input"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


class Reader(html.parser.HTMLParser):
    """Collects tables and ids; raises if a tag is left open or closed twice."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of all six tasks, a stand-in, and a run that failed."""
    folder = tmp_path_factory.mktemp("page")
    for seed in range(2):
        for task in published.TASKS:
            path = folder / f"{task}-{seed}"
            official = {"provenance": "official archive", "variant": "lru"}
            make_run(path, 0.5 + 0.1 * seed, task=task, seed=seed, **official)
    stand_in = {"provenance": "stand-in", "task": "polarity"}
    make_run(folder / "polarity", 0.9, variant="a<b>&c", **stand_in)
    make_run(folder / "failed", None, variant="s5", reason="loss < 0 & more")
    groups = group_runs(find_runs([folder]))
    tables = report.tables(groups, [])
    return report_page.page("Report of runs", tables, groups[:2])  # curves take time


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_every_tag_is_closed(read):
    assert read.open == []


def test_nothing_is_loaded_from_elsewhere(page, read):
    for tag, name, value in read.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data"):
            assert value.startswith("#"), (tag, name, value)
        assert "http" not in value, (tag, name, value)
    assert "<script" not in page and "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page))


def test_ids_are_unique_and_what_is_referred_to_is_there(page, read):
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(set(ids)) == len(ids) > 0
    used = re.findall(r"url\(#(.*?)\)", page) + re.findall(r'href="#(.*?)"', page)
    assert used and set(used) <= set(ids)


def test_the_tables_have_the_right_cells(read):
    tables = dict(zip(read.headings, read.tables, strict=False))
    assert list(tables)[:2] == [
        "Long Range Arena",
        "Stand-ins, which are not Long Range Arena",
    ]
    for rows in tables.values():
        assert len({len(row) for row in rows}) == 1
    header, ours, *others = tables["Long Range Arena"]
    row = dict(zip(header, ours, strict=True))
    assert row["model"] == "lru (ours)"
    assert row["Path-X"] == "55.00 ± 7.07" and row["average"] == "55.00"
    assert [other[0] for other in others] == [row.model for row in published.ROWS]
    assert tables["Stand-ins, which are not Long Range Arena"][1][0] == "a<b>&c"
    failed = tables["Failed and unfinished runs"]
    assert failed[1][4] == "loss < 0 & more"


def test_curves_take_the_colour_of_the_text(page):
    assert page.count("<svg") == 2 * 2
    assert "currentColor" in page and report_figures.INK not in page
    assert "color-scheme: light dark" in page
    assert "width=device-width" in page


def test_a_curve_is_the_same_every_time(tmp_path):
    make_run(tmp_path / "run", 0.5)
    groups = group_runs(find_runs([tmp_path]))
    draw = report_figures.draw_loss
    first, second = (report_figures.svg(draw, groups, "a") for _ in range(2))
    assert first == second


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_whole(page, read, width, tmp_path):
    """Measured by a script around it; a browser's own window is not so narrow."""
    frame = html.escape(page)
    outer = tmp_path / "outer.html"
    outer.write_text(f"""<!DOCTYPE html><html><body>
    <iframe srcdoc="{frame}" style="width: {width}px; border: 0"></iframe>
    <script>onload = () => {{
      const page = frames[0].document, root = page.documentElement;
      document.body.dataset.found = [frames[0].innerWidth, root.scrollWidth,
        page.title, page.querySelectorAll("table").length].join("|");
    }}</script></body></html>""")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        + ["--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}"]
        + ["--enable-logging=stderr", outer.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'data-found="(.*?)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    inner, scroll, title, tables = found[1].split("|")
    assert int(inner) == width
    assert int(scroll) <= width
    assert title == "Report of runs"
    assert int(tables) == len(read.tables) == 7
    assert "CONSOLE" not in done.stderr
