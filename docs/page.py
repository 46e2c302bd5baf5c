"""Makes the README's picture of the page: `make demo && .venv/bin/python docs/page.py`, where Chromium is installed.

Serves the demo's index, segments scikit-image's chelsea (CC0) in headless Chromium and takes a picture of that.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests
from playwright.sync_api import Browser, ViewportSize, sync_playwright

# Only photographs that may be passed on: CC0, and NASA's astronaut in the public domain.
EXAMPLES = ("skimage-chelsea.png", "skimage-coffee.png", "skimage-rocket.jpg", "skimage-astronaut.png")
CONCEPTS = ("cat", "dog", "cup")
VOCABULARY = (
    "dog",
    "cat",
    "bird",
    "insect",
    "jeep",
    "motorcycle",
    "cup",
    "strawberry",
    "drum",
    "shoe",
    "flower",
)
VIEWPORT: ViewportSize = {"width": 1280, "height": 900}
SCALE = 1.5
START = 600  # seconds, until anything must be there


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("reco-demo"), help="output of `reco-ray demo`")
    parser.add_argument("--out", type=Path, default=Path("docs/page.jpg"))
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder) / "examples"
        examples.mkdir()
        for name in EXAMPLES:
            shutil.copy(options.demo / "photographs" / name, examples)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        command = [
            sys.executable,
            "-c",
            "from reco_ray.cli import main; main()",
            "serve",
            "--port",
            port,
            "--state",
            f"{folder}/state",
        ]
        command += ["--index", str(options.demo / "index"), "--examples", str(examples)]
        command += ["--set", "references.exemplars=2"]  # as the demo: about as many as show each concept
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        server = subprocess.Popen(command, env=environment)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_until_ready(url, server)
            with sync_playwright() as playwright:
                arguments = ["--no-sandbox", "--disable-gpu"]
                browser = playwright.chromium.launch(executable_path=options.chromium, args=arguments)
                take_picture(browser, url, options.demo / "photographs" / EXAMPLES[0], options.out)
                browser.close()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until the service answers; its own messages say why it does not."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit("the server ended before it was ready")
        try:
            if requests.get(url + "readyz", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    sys.exit(f"the server is not ready after {START} s")


def take_picture(browser: Browser, url: str, photograph: Path, out: Path) -> None:
    """What a visitor does: a photograph, words, and a look at what was found. The suite does it, too (tests/web)."""
    vocabulary = {"concepts": VOCABULARY}  # its concepts are suggested
    requests.put(f"{url}v1/vocabularies/demo", json=vocabulary, timeout=START).raise_for_status()
    page = browser.new_page(viewport=VIEWPORT, device_scale_factor=SCALE)
    page.set_default_timeout(START * 1000)
    page.goto(url)
    page.wait_for_selector("html[data-ready=true]")
    page.wait_for_selector("#suggestions li")
    page.set_input_files("#file", photograph)
    for concept in CONCEPTS:
        page.fill("#concept", concept)
        page.press("#concept", "Enter")
    page.click("#go")
    page.wait_for_selector("#legend li")
    page.wait_for_selector("#go:enabled")
    box = page.locator("#layers").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.8 * box["height"])
    page.screenshot(path=out, type="jpeg", quality=80)
    page.close()


if __name__ == "__main__":
    main()
