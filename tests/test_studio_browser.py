"""The studio as a hand finds it: JupyterLab in a real browser, a slider moved, another picture.

Runs where there is a Chromium and playwright (`pip install -e ".[browser]"`; Debian: `apt install chromium`).
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jupytext
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[browser]"')
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--disable-dev-shm-usage"]
CELL = """from minirodin import Avatar
from minirodin.widgets import fitted_explorer

fitted_explorer({name: Avatar.load(f"%s/{name}.safetensors") for name in ("1000003", "1000005")})"""
PICTURE = ".jp-OutputArea img[width='400']"


@pytest.fixture
def lab(tmp_path):
    """The address of a notebook with the studio in a JupyterLab of its own."""
    notebook = jupytext.reads(f"# %%\n{CELL % (ROOT / 'data_samples/avatars')}\n", "py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    jupytext.write(notebook, tmp_path / "studio.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path}"]
    command += [f"--LabApp.{kind}_dir={tmp_path / kind}" for kind in ("user_settings", "workspaces")]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths})
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=1)
            break
        except OSError:
            time.sleep(0.25)
    yield f"{address}/lab/tree/studio.ipynb?reset"
    server.terminate()
    server.wait(20)


def test_a_slider_moves_and_the_picture_follows(lab, tmp_path):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(lab)
        page.locator(".jp-Notebook .jp-CodeCell").first.click(timeout=40_000)
        page.keyboard.press("Shift+Enter")
        picture = page.locator(PICTURE)
        picture.wait_for(timeout=40_000)
        size = "img => img.decode().then(() => img.naturalWidth)"
        assert picture.evaluate(size) == 256
        before, seen = picture.get_attribute("src"), set()
        handle = page.locator(".jp-OutputArea .noUi-handle").first
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        for i in range(1, 9):
            page.mouse.move(x - 8 * i, y)
            page.wait_for_timeout(60)
            seen.add(picture.evaluate(size))
        during = picture.get_attribute("src")
        assert during != before and 128 in seen, "while the hand moves, small pictures"
        page.mouse.up()
        page.get_by_text("full picture").wait_for(timeout=20_000)
        page.wait_for_function(f'document.querySelector("{PICTURE}").naturalWidth === 256', timeout=20_000)
        assert picture.get_attribute("src") not in (before, during), "and the full one when it rests"
        assert not page.locator(".jp-OutputArea [data-mime-type='application/vnd.jupyter.stderr']").count()
        page.screenshot(path=tmp_path / "studio.png")
        browser.close()
