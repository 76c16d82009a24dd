"""A learner's first task in JupyterLab, in a real browser: not written, wrong, right, and a plot of what was made."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from milestones.tasks import cell_source, read_notebook

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
NOTEBOOK = "nbs/02_lora/01_adapter.ipynb"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PATIENCE = 300_000  # milliseconds for one thing to happen: seconds on a machine that has nothing else to do
ATTEMPTS = 10  # in that time: a click that comes before the page is ready for it is lost, and made again
GREEN, RED = "rgb(26, 127, 55)", "rgb(198, 40, 40)"
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, also below the window
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # nothing asks the network
}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A learner's folder, as `course start` makes it."""
    folder = tmp_path_factory.mktemp("learner") / "my-course"
    subprocess.run([sys.executable, "-m", "milestones", "start", folder, "--milestone", "2"], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def lab(work, tmp_path_factory):
    """JupyterLab on the learner's folder, as `make lab DIR=…` starts it; gives its address."""
    home, port, token = tmp_path_factory.mktemp("home"), free_port(), "only-for-this-test"
    for name, values in SETTINGS.items():
        path = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
              "IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    environment = {**os.environ, **{name: str(home / place) for name, place in places.items()}, "JUPYTER_TOKEN": token}
    environment.pop("MPLBACKEND", None)  # where it is set, a notebook shows no plots
    process = subprocess.Popen(
        ["make", "--old-file=.venv/installed", "lab", f"DIR={work}", f"LAB=--no-browser --port={port}"], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if f":{port}/lab" in line:
                break
        else:
            pytest.fail("JupyterLab ended before it gave its address:\n" + "".join(said))
        threading.Thread(target=process.stdout.read, daemon=True).start()  # else it stops when the pipe is full
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def browser_of(started) -> str:
    """The path of a Chromium: the system's, or one that playwright brought."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    own = started.chromium.executable_path
    found.append(own if Path(own).exists() else None)
    return next((path for path in found if path), "")


@pytest.fixture
def page(tmp_path):
    with playwright.sync_playwright() as started:
        path = browser_of(started)
        if not path:
            pytest.skip("there is no Chromium: apt-get install chromium, or python -m playwright install chromium")
        context = started.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=path, headless=True, args=FLAGS,
            viewport={"width": 960, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
        context.set_default_timeout(PATIENCE)
        playwright.expect.set_options(timeout=PATIENCE)
        page = context.pages[0]
        page.add_locator_handler(page.locator("dialog.jp-Dialog"), put_away)
        yield page
        context.close()


def put_away(dialog) -> None:
    """Say what a dialog of JupyterLab's asks, and go on without an answer: a slow start brings one up."""
    sys.stderr.write(f"a dialog stood before the page: {dialog.inner_text()}\n")
    dialog.press("Escape")


class Notebook:
    """The open notebook, as hands and eyes have it."""

    def __init__(self, page, path: Path):
        self.page, self.sources = page, [cell_source(cell) for cell in read_notebook(path)["cells"]]

    def cell(self, begin: str):
        """The cell whose text begins so."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(
            next(index for index, source in enumerate(self.sources) if source.startswith(begin)))

    def run(self, begin: str) -> None:
        """Click into a cell and run it; comes back when it has run."""
        prompt = self.cell(begin).locator(".jp-InputPrompt")

        def click_and_run() -> None:
            self.cell(begin).locator(".cm-content").click()
            self.page.keyboard.press("Control+Enter")

        until_changed(prompt, click_and_run)
        playwright.expect(prompt).to_have_text(re.compile(r"\[\d+\]:"))

    def run_above(self, begin: str) -> None:
        """Run all cells above this one; comes back when they have begun."""
        def choose_in_menu() -> None:
            self.cell(begin).locator(".cm-content").click()
            self.page.get_by_role("menuitem", name="Run", exact=True).click()
            self.page.get_by_text("Run All Above Selected Cell").click()

        until_changed(self.page.locator(".jp-CodeCell .jp-InputPrompt").first, choose_in_menu)

    def paste(self, begin: str, text: str) -> None:
        """Replace a cell's text by the clipboard's."""
        self.cell(begin).locator(".cm-content").click()
        self.page.evaluate("text => navigator.clipboard.writeText(text)", text)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.press("Control+V")

    def output(self, begin: str):
        return self.cell(begin).locator(".jp-OutputArea-output")


def until_changed(prompt, act) -> None:
    """Act until a cell's prompt is another than before."""
    before = prompt.inner_text()
    for attempt in range(ATTEMPTS):
        act()
        try:
            playwright.expect(prompt).not_to_have_text(before, timeout=PATIENCE / ATTEMPTS)
            return
        except AssertionError:
            if attempt == ATTEMPTS - 1:
                raise


def keep_picture(page, notebook: Notebook, first: str, folded: str, path: Path) -> None:
    """What the learner sees from the cell `first` on, with the code of `folded` folded in."""
    page.keyboard.press("Control+B")  # the list of files goes away
    page.set_viewport_size({"width": 800, "height": 1090})
    notebook.cell(folded).locator(".jp-InputPrompt").click()
    page.get_by_role("menuitem", name="View", exact=True).click()
    page.get_by_text("Collapse Selected Code", exact=True).click()
    playwright.expect(notebook.cell(folded).locator(".jp-Placeholder")).to_be_visible()
    notebook.cell(first).evaluate("cell => cell.scrollIntoView()")
    page.screenshot(path=path)


def test_a_learner_writes_a_task_and_sees_it_proven(work, lab, page, tmp_path):
    page.goto(lab)
    notebook = Notebook(page, work / NOTEBOOK)
    task, check, plot = "#| export\n#| task: 2.1", 'check("2.1")', "starts = {"
    solution = next(source for source in map(cell_source, read_notebook(ROOT / NOTEBOOK)["cells"])
                    if source.startswith(task))
    verdict = notebook.output(check).locator("div[style*=border-left]")

    playwright.expect(page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")).to_be_visible()
    notebook.run_above(check)
    playwright.expect(notebook.output("seed_everything(0)\nx = torch.randn(3, 6)")).to_contain_text(
        "NotImplementedError: task 2.1")
    notebook.run(check)
    playwright.expect(verdict).to_contain_text("Task 2.1: not written yet, 0 of")

    notebook.paste(task, solution.replace("result + update * self.scaling", "result + update"))
    notebook.run(task)
    notebook.run(check)
    playwright.expect(verdict).to_contain_text("expected")
    playwright.expect(verdict).to_have_css("border-left-color", RED)

    notebook.paste(task, solution)
    notebook.run(task)
    notebook.run(check)
    playwright.expect(verdict).to_contain_text("Task 2.1: right")
    playwright.expect(verdict).to_have_css("border-left-color", GREEN)
    for cell in ("def toy_losses", plot):
        notebook.run(cell)
    picture = notebook.output(plot).locator("img")
    playwright.expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300
    path = Path(os.environ.get("COURSE_PICTURE", tmp_path / "lab.png"))  # where to keep what is seen now
    keep_picture(page, notebook, check, "def toy_losses", path)
