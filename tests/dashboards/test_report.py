"""The report as a user has it: the command, the file it writes, the server, and the page in a real Chromium."""

from __future__ import annotations

import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.report import content, embedded, main, page
from dashboards.report_server import ReportServer
from sweeps.store.store import ResultsStore
from tests.dashboards.sections.test_arc_efe import efe_run
from tests.dashboards.sections.test_sad_student import student_run
from tests.dashboards.stores import (
    HOSTILE,
    agents_run,
    new_store,
    plain_run,
    pool_run,
    reasoner,
    reasoner_run,
    scaled,
    scores,
    search_run,
    trial,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_one_file_into_the_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = pool_run(tmp_path)
    assert main([store.folder.root]) == 0
    file = Path(store.folder.root, "report.html")
    assert re.match(rf"{re.escape(str(file))} \(\d\.\d MB\)", capsys.readouterr().out)
    # Parquet readers take whole folders: the page must not lie in one of the tables
    assert ResultsStore.open(store.folder.root).trials().num_rows == 23


def test_the_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    text = page(content([pool_run(tmp_path)]))
    own = text.replace(text[text.index("/**\n* plotly.js") : text.index('<script type="application/json"')], "")
    assert "default-src 'none'" in own
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)|@import|url\(""", own)


@pytest.mark.slow
def test_four_hundred_tasks_stay_under_ten_megabytes(tmp_path: Path) -> None:
    store = pool_run(tmp_path, 400)
    grid = [[n % 10 for n in range(30)]] * 30
    key = [{"trial_id": f"t{n}", "attempt": 1, "pair": pair} for n in range(400) for pair in (1, 2)]
    store.append([], [], [{**k, "input": grid, "expected": grid, "base": grid, "adapted": grid} for k in key])
    assert len(page(content([store])).encode()) < 10e6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "'nowhere' has no run.json"),
        (["nosuch://bucket/sweep/run"], "No file system can open"),
        (["RUN", "--output", "/nowhere/report.html"], "cannot be written"),
        (["RUN", "--watch", "--output", "report.html"], "leave out --output 'report.html'"),
        (["RUN", "--port", "1234"], "--port 1234 has no meaning without --watch"),
        (["RUN", "--watch", "--port", "99999"], "--port 99999 cannot be used"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    run = new_store(tmp_path).folder.root
    assert main([run if word == "RUN" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_data_cannot_end_the_script_it_stands_in() -> None:
    text = embedded({"id": HOSTILE, "other": "<!-- & -->"})
    assert "<" not in text and json.loads(text) == {"id": HOSTILE, "other": "<!-- & -->"}


def test_a_name_cannot_become_part_of_the_pages_head(tmp_path: Path) -> None:
    text = page(content([new_store(tmp_path, "<script>alert(1)<@@DATA@@")]))
    assert "<title>atomic_lora / &lt;script&gt;alert(1)&lt;@@DATA@@</title>" in text


# ---------------------------------------------------------------------------------------------------------- the server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[ResultsStore, ReportServer]]:
    store = new_store(tmp_path)
    store.append([trial("first", **scores(0.5, 0.7))])
    with ReportServer([store], lambda: content([store]), lambda data: page(data, watched=True), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield store, server
        server.shutdown()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.headers["ETag"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, "", error.read().decode()


def test_the_server_answers_with_new_rows_and_with_nothing_where_there_are_none(
    served: tuple[ResultsStore, ReportServer],
) -> None:
    store, server = served
    status, tag, body = get(f"{server.url}data.json")
    assert status == 200 and json.loads(body)["runs"][0]["trials"]["task_id"] == ["first"]
    assert get(f"{server.url}data.json", **{"If-None-Match": tag})[0] == 304
    store.append([trial("second", **scores(0.5, 0.7))])
    status, _, body = get(f"{server.url}data.json", **{"If-None-Match": tag})
    assert status == 200 and json.loads(body)["runs"][0]["trials"]["task_id"] == ["first", "second"]


def test_the_server_gives_the_page_and_nothing_else(served: tuple[ResultsStore, ReportServer]) -> None:
    _, server = served
    assert '"watched":true' in get(server.url)[2] and server.server_address[0] == "127.0.0.1"
    assert get(f"{server.url}run.json")[0] == get(f"{server.url}../../etc/passwd")[0] == 404
    assert get(server.url, Host="elsewhere.example")[0] == 403


def test_a_store_that_cannot_be_read_does_not_end_the_server(served: tuple[ResultsStore, ReportServer]) -> None:
    store, server = served
    store.folder.write("trials/part-9.parquet", b"garbage")
    assert get(f"{server.url}data.json")[0] == 503
    store.folder.delete("trials/part-9.parquet")
    assert get(f"{server.url}data.json")[0] == 200


# -------------------------------------------------------------------------------------------------------- in a browser


class Tab:
    """A page in Chromium that collects what goes wrong."""

    def __init__(self, page: Any) -> None:
        self.page, self.errors, self.requests = page, list[str](), list[str]()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: self.requests.append(r.url))

    def open(self, file: Path | str) -> Tab:
        self.page.goto(file if isinstance(file, str) else file.as_uri())
        return self

    def read_through(self) -> None:
        """Scroll down slowly enough for everything to be drawn."""
        for id_ in self.page.eval_on_selector_all("main section", "nodes => nodes.map(node => node.id)"):
            self.page.evaluate("id => document.getElementById(id).scrollIntoView()", id_)
            self.page.wait_for_timeout(150)
        self.page.wait_for_function("!document.querySelector('.chart:not([data-drawn])')")

    def texts(self, selector: str) -> list[str]:
        return [text.replace("\xa0", " ") for text in self.page.locator(selector).all_inner_texts()]

    def column(self, table: str, key: str) -> list[str]:
        return self.texts(f"[data-table={table}] td[data-key='{key}']")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # without a GPU, WebGL is drawn by software
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield Tab(context.new_page())
    context.close()


def written(folder: Path, *stores: ResultsStore) -> Path:
    file = folder / "page.html"
    assert main([*(store.folder.root for store in stores), "--output", str(file)]) == 0
    return file


CHARTS = ("summary", "tasks", "gains", "categories", "timeline", "pace")


@pytest.mark.slow
def test_every_section_and_chart_of_a_pool_run_is_drawn(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, pool_run(tmp_path))).read_through()
    assert tab.texts("nav a") == [
        "Summary", "Base and adapter", "Tasks", "Loss curves", "Task pictures", "Timeline", "Failures",
        "How to reproduce",
    ]  # fmt: skip
    for name in CHARTS:
        assert tab.page.locator(f"#chart-{name} .plot-container path").count() > 0, name
    assert tab.page.locator(".curve svg path.eval").count() == 21
    assert "python sweeps/atomic_lora.py --preset demo" in tab.texts("#command")[0]
    assert tab.errors == [] and [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.slow
def test_every_chart_of_a_search_is_drawn(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, search_run(tmp_path))).read_through()
    assert tab.page.locator("#chart-parallel .parcoords .y-axis").count() == 4
    # the axes say what they say of the values that lie there
    rates = tab.page.locator("#chart-parallel .y-axis").first.locator(".tick text").all_text_contents()
    assert rates == ["0.1", "1", "10"]
    assert tab.page.locator("#chart-rungs .bartext").all_text_contents() == ["8", "8", "4"]
    assert tab.column("configurations", "config/lr") == ["0.1", "1", "10"]
    assert tab.column("stopped", "asha_cutoff") == ["0.7"] * 4
    assert tab.errors == []


@pytest.mark.slow
def test_another_family_and_an_empty_run_have_a_page(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, plain_run(tmp_path))).read_through()
    assert tab.texts("nav a") == ["Summary", "Trials", "Loss curves", "Timeline", "How to reproduce"]
    assert tab.texts("#summary dd") == ["12.5 % over 2 of 2 trials", "0.25 over 2 of 2 trials"]
    assert sorted(tab.column("trials", "teacher_forced_cell_accuracy")) == ["0.0 %", "25.0 %"]
    assert tab.column("trials", "metric/depth") == ["0.25", "0.25"]
    tab.open(written(tmp_path, new_store(tmp_path, "empty"))).read_through()
    assert tab.texts("h1") == ["No trial has ended yet."]
    assert tab.errors == []


@pytest.mark.slow
def test_reasoners_have_their_front_their_ablation_and_puzzles_step_by_step(tab: Tab, tmp_path: Path) -> None:
    store = reasoner_run(tmp_path)
    scaled(store, "fixed-0")
    tab.open(written(tmp_path, store)).read_through()
    assert tab.texts("nav a")[:5] == ["Summary", "Accuracy and steps", "Thinking time", "Step by step", "Trials"]
    assert tab.page.locator("#chart-scaling-0 path.point").count() == 4
    assert tab.column("scaling-0", "way") == ["more steps", "more steps, harder", "best halting score, 4, noise 0.2"]
    assert tab.column("scaling-0", "exact")[0] == "75.0 %" and "3.5 core-minutes" in tab.texts("#scaling .note")[1]
    assert tab.page.locator("#chart-pareto-0 path.point").count() == 6
    legend = tab.page.locator("#chart-pareto-0 .legendtext").all_text_contents()
    assert legend == ["Pareto front", "fixed", "bce", "direct prediction", "majority"]
    assert tab.page.locator("#chart-pareto-0 .scatterlayer .js-line").count() == 3
    assert tab.column("variants-0", "variant") == ["reference", "halting = fixed", "ema = 0"]
    assert tab.column("variants-0", "exact")[0] == "95.0 ± 12.7"
    assert tab.column("variants-0", "change") == ["–", "+1.0", "−6.0"]
    assert tab.column("variants-0", "steps")[2] == "2.75 ± 0.00" and tab.column("variants-0", "seeds") == ["2"] * 3
    assert "Reference: ema = 0.99, halting = bce." in tab.texts("#reasoner .note")[1]
    assert tab.texts("#steps figcaption b") == ["puzzle", "step 1", "step 2, halts", "step 3", "solution"]
    assert tab.texts("#steps figcaption")[1].endswith("1 wrong") and "solved" in tab.texts("#steps figcaption")[2]
    first = tab.page.locator("#steps svg").nth(1)
    assert first.locator("text.wrong").all_text_contents() == ["2"] and first.locator("text.right").count() == 1
    assert first.locator("text.given").count() == 14 and tab.page.locator("#steps figure.late").count() == 1
    tab.page.select_option("#steps select >> nth=0", label="ema = 0")
    assert tab.page.locator("#steps svg").count() == 5
    tab.page.locator("#chart-pareto-0 path.point").first.click(force=True)
    tab.page.wait_for_selector("#detail[open]")
    assert tab.errors == [] and [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.slow
def test_reasoners_of_several_runs_and_puzzles_of_other_kinds_fit_a_phone(browser: Any, tmp_path: Path) -> None:
    mazes = new_store(tmp_path, "mazes", sweep="recursive_reasoner")
    mazes.append([reasoner("maze", 0.5, 3.0, dataset="maze"), reasoner("arc", 0.5, 3.0, dataset="arc")])
    walls = [0] * 5 + [0, 2, 1, 3, 0] + [0] * 15
    path, wrong = [4 if token == 1 else token for token in walls], [*walls[:-1], 4]
    grids = {"inputs": [walls], "targets": [path], "answers": [[wrong, path]], "steps": [2], "answered": [2]}
    mazes.folder.write("models/maze/solved.json", json.dumps({"side": 5, **grids}).encode())
    arc = {"inputs": [[1, 10, 10, 10]], "targets": [[2, 2, 10, 10]], "answers": [[[2, 1, 10, 10]]], "steps": [1]}
    mazes.folder.write("models/arc/solved.json", json.dumps({"side": 2, **arc}).encode())
    context = browser.new_context(viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True)
    tab = Tab(context.new_page()).open(written(tmp_path, mazes, reasoner_run(tmp_path)))
    tab.read_through()
    assert tab.texts("#reasoner .chart-title") == ["maze", "arc", "sudoku4"]
    # one cell of the path is missing; the corner is a wall, which nobody asks for
    assert tab.page.locator("[data-dataset=maze] .puzzle").nth(1).locator("circle").count() == 1
    cells = tab.page.locator("[data-dataset=arc] .puzzle").nth(1).locator("rect")
    colours = cells.evaluate_all("nodes => nodes.map(node => node.style.fill)")
    assert colours == ["rgb(255, 65, 54)", "rgb(0, 116, 217)", "", ""]
    fill = "node => getComputedStyle(node).fill"
    wall = tab.page.locator("[data-dataset=maze] rect.maze-0").first
    light = wall.evaluate(fill)
    tab.page.emulate_media(color_scheme="dark")
    tab.page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert wall.evaluate(fill) != light
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 375 and tab.errors == []
    tab.page.locator("#chart-pareto-2 path.point").first.click(force=True)
    tab.page.wait_for_selector("#detail[open]")
    assert "ablation" in tab.texts("#run-name")[0], "the trial's run is shown with it"
    context.close()


@pytest.mark.slow
def test_agents_have_criteria_a_tagged_problem_a_refinement_and_curves(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, agents_run(tmp_path))).read_through()
    assert tab.column("criteria", "met") == ["met by 1 of 2 seeds", "met", "met", "missed", "met"]
    assert tab.column("criteria", "bound")[:2] == ["≥ 70.0 %", "≤ 2.5"]
    assert (
        tab.column("criteria", "value")[0].startswith("70.0 % ± 127.1")
        and tab.column("criteria", "baseline")[0] == "20.0 %"
    )
    assert tab.page.locator("#tagged-problem p").count() == 4 and tab.page.locator("#refinement p").count() == 4
    assert "1 words wrong" in tab.texts("#refinement .note")[0] and "7, right" in tab.texts("#refinement .note")[1]
    for name, points in (("precision", 15), ("selfplay", 8), ("routing", 2)):
        assert tab.page.locator(f"#chart-{name} path.point").count() == points, name
    assert tab.errors == []


@pytest.mark.slow
def test_grid_agents_and_students_have_their_curves_pictures_and_an_episode(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, efe_run(tmp_path / "efe"), student_run(tmp_path / "sad"))).read_through()
    assert tab.page.locator("#chart-efe .scatterlayer .js-line").count() == 1
    assert tab.texts("#efe figcaption b") == ["input", "target", "before", "after"]
    assert "2 of 4 cells" in tab.texts("#efe figcaption")[2] and "exact" in tab.texts("#efe figcaption")[3]
    tab.page.locator("#efe summary").click()
    assert tab.texts("#efe pre") == [HOSTILE]
    assert tab.column("sad-variants", "variant") == ["sad", "ce"]
    assert tab.column("sad-variants", "exact")[1] == "40.0" and tab.column("sad-variants", "seeds") == ["2", "1"]
    assert tab.page.locator("#chart-sad-action path.point").count() == 2
    spans = tab.page.locator("#sad-episode [data-span]")
    assert [span.get_attribute("data-span") for span in spans.all()] == ["other", "action"]
    assert "not solved" not in tab.texts("#sad-episode .note")[0]
    assert tab.errors == []


@pytest.mark.slow
def test_searching_narrows_table_curves_and_pictures(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, pool_run(tmp_path))).read_through()
    tab.page.fill("#search", "growing worse")
    tab.page.wait_for_function("document.querySelectorAll('.curve').length < 21")
    wanted = {"t3", "t9", "t15"}
    assert set(tab.column("trials", "task")) == set(tab.texts(".curve .mono")) == wanted
    tab.page.click("[data-value=worst]")
    assert set(tab.texts(".picture .linklike")) == wanted
    tab.page.fill("#search", "no such task")
    tab.page.wait_for_function("!document.querySelector('.curve')")
    assert tab.texts("#trials .empty") == ["Nothing matches the search."]
    tab.page.fill("#search", "")
    tab.page.wait_for_function("document.querySelectorAll('.curve').length === 21")
    assert tab.errors == []


@pytest.mark.slow
def test_headings_sort_numbers_as_numbers_and_keep_what_is_missing_last(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, pool_run(tmp_path)))

    def cells() -> list[float | None]:
        found = tab.column("trials", "final_cell_accuracy")
        return [None if text == "–" else float(text.removesuffix(" %")) for text in found]

    for down in (True, False):
        tab.page.click("[data-table=trials] th[data-key=final_cell_accuracy] button")
        known = [value for value in cells() if value is not None]
        assert known == sorted(known, reverse=down) and len(known) == 21
        assert cells()[21:] == [None, None]
    tab.page.click("[data-table=trials] th[data-key=task] button")
    assert tab.column("trials", "task")[:4] == ["broken", "mended", "t0", "t1"]
    assert tab.column("trials", "task")[-1] == "under-way" and tab.column("trials", "task")[4] == "t2"


@pytest.mark.slow
def test_a_trial_opens_with_its_pictures_curve_and_failure(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, pool_run(tmp_path)))
    tab.page.fill("#search", "t1")
    tab.page.wait_for_function("document.querySelectorAll('[data-table=trials] tbody tr').length === 11")
    tab.page.click("[data-table=trials] td[data-key=task] button >> text=/^t1$/")
    tab.page.wait_for_selector("#detail-loss .plot-container path.js-line")
    captions = tab.texts("#detail figcaption")
    assert captions == ["input\n2 × 2", "expected\n1 × 2", "base", "adapter\nexact"]
    assert tab.texts("#detail .none") == ["no grid came out"]
    pixel = "canvas => [...canvas.getContext('2d').getImageData(5, 5, 1, 1).data]"
    assert tab.page.locator("#detail canvas").first.evaluate(pixel) == [0, 0x74, 0xD9, 255]  # ARC's colour 1
    tab.page.keyboard.press("Escape")
    tab.page.fill("#search", "broken")
    tab.page.wait_for_function("document.querySelectorAll('[data-table=trials] tbody tr').length === 1")
    tab.page.click("[data-table=trials] tbody tr")
    assert tab.texts("#detail pre")[0].startswith("Traceback") and tab.errors == []


@pytest.mark.slow
def test_text_from_a_run_stays_text(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, pool_run(tmp_path, hostile=True))).read_through()
    for details in tab.page.locator("#failures summary").all():
        details.click()
    assert HOSTILE in tab.texts("#failures pre")[0] and HOSTILE in tab.column("trials", "task")
    tab.page.hover("#chart-timeline .bars .point >> nth=0", force=True)
    tab.page.wait_for_selector("#chart-timeline .hoverlayer .hovertext")
    tab.page.locator("#trials tr", has_text="onerror").first.click()
    assert HOSTILE in tab.texts("#detail h3")[0]
    assert tab.page.evaluate("window.hacked") is None and tab.page.locator("main img, dialog img").count() == 0
    assert tab.errors == []


@pytest.mark.slow
def test_dark_and_light_follow_the_system_until_someone_chooses(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, pool_run(tmp_path))).read_through()

    def colours() -> tuple[str, str]:
        ink = tab.page.evaluate("getComputedStyle(document.body).color")
        # Plotly writes colours into the drawing, so it has to draw again
        return ink, tab.page.locator("#chart-gains .xtick text").first.evaluate("node => getComputedStyle(node).fill")

    light = colours()
    assert light[0] == light[1]
    tab.page.emulate_media(color_scheme="dark")
    tab.page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    dark = colours()
    assert dark[0] == dark[1] != light[0]
    tab.page.click("#theme")
    assert colours() == light
    tab.page.reload()
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "light" and tab.errors == []


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(browser: Any, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True)
    tab = Tab(context.new_page()).open(written(tmp_path, pool_run(tmp_path, hostile=True), search_run(tmp_path)))
    tab.read_through()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 375 and tab.errors == []
    context.close()


@pytest.mark.slow
def test_several_runs_are_compared_and_each_can_be_looked_at(tab: Tab, tmp_path: Path) -> None:
    stores = [pool_run(tmp_path, run_id="a"), search_run(tmp_path, "b"), plain_run(tmp_path)]
    tab.open(written(tmp_path, *stores)).read_through()
    assert [head.strip() for head in tab.texts("#comparison-table th")][1:] == [
        "atomic_lora / a", "atomic_lora / b", "champion / plain",
    ]  # fmt: skip
    assert tab.page.locator("#chart-runs path.point, #chart-run-tasks path.point").count() > 0
    tab.page.click(".runs button >> text='atomic_lora / b'")
    tab.read_through()
    assert "Search" in tab.texts("nav a") and tab.column("configurations", "config/rank") == ["4", "8", "8"]
    tab.page.click(".runs button >> text='champion / plain'")
    tab.read_through()
    assert "Base and adapter" not in tab.texts("nav a") and tab.errors == []


@pytest.mark.slow
def test_four_hundred_tasks_draw_only_what_is_looked_at(tab: Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, pool_run(tmp_path, 400)))
    assert tab.page.locator(".curve").count() == 401
    tab.page.wait_for_timeout(300)
    assert tab.page.locator(".curve svg").count() == 0
    tab.page.evaluate("document.getElementById('losses').scrollIntoView()")
    tab.page.wait_for_selector(".curve svg")
    tab.page.wait_for_timeout(300)
    assert 0 < tab.page.locator(".curve svg").count() < 150 and tab.errors == []


@pytest.mark.slow
def test_a_watched_page_shows_new_rows_by_itself(tab: Tab, served: tuple[ResultsStore, ReportServer]) -> None:
    store, server = served
    tab.open(server.url)
    assert tab.column("trials", "task") == ["first"]
    tab.page.fill("#search", "sec")
    store.append([trial("second", **scores(0.5, 0.7))])
    tab.page.wait_for_selector("[data-table=trials] td[data-key=task] >> text=second", timeout=15_000)
    assert tab.column("trials", "task") == ["second"], "the search was lost"
    assert tab.errors == []
