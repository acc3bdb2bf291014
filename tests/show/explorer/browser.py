"""A headless Chromium, driven through its DevTools protocol over a pipe."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or sys.platform != "linux", reason="Chromium is not installed: apt install chromium"
)

_FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--remote-debugging-pipe", "--disable-background-networking", "--disable-extensions",
]  # fmt: skip


_PATIENCE = 60  # seconds
_DRAWN = """
new Promise((done, fail) => {
  let frames = 0;
  const isDrawn = () => document.querySelector(".failed") || document.querySelector(".explorer")?.dataset.state === "done";
  const look = () => {
    if (isDrawn()) requestAnimationFrame(() => done(null));
    else if (++frames > 1000) fail(new Error("the page is never drawn"));
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})
"""


class Tab:
    """One tab: pages are opened in it, and what they say in the console is kept."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = os.fdopen(to, "wb", 0), os.fdopen(back, "rb")
        self._number, self._buffer = 0, b""
        self._session: str | None = None
        self.said: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]
            self._hear(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], _PATIENCE)
            read = os.read(self._back.fileno(), 1 << 16) if ready else b""
            assert read, "Chromium has ended, or says nothing any more"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _hear(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.said += [str(argument.get("value", argument.get("description"))) for argument in params["args"]]
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(
        self, address: str | Path, *, size: tuple[int, int] = (1280, 800), dark: bool = False, waits: bool = True
    ) -> None:
        """Open a page, and wait until all of it is drawn, if it ``waits``."""
        self.said.clear()
        self.requests.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        self.ask("Page.navigate", url="about:blank")
        self._until_loaded()
        self.loaded = False
        self.ask("Page.navigate", url=address if isinstance(address, str) else address.absolute().as_uri())
        self._until_loaded()
        if waits:
            self.settle()

    def _until_loaded(self) -> None:
        while not self.loaded:
            self._hear(self._next())

    def settle(self) -> None:
        """Wait until the page has drawn all that it has to draw."""
        self.run(_DRAWN)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event: mouseMoved, mousePressed, mouseReleased, mouseWheel."""
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.settle()

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def key(self, name: str, *, shift: bool = False) -> None:
        """Press a key and let it go."""
        text = {"text": name} if len(name) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                modifiers=8 * shift,
                **(text if kind == "keyDown" else {}),
            )
        self.settle()

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))
        return path


@contextlib.contextmanager
def opened() -> Iterator[Tab]:
    """A browser with one tab, which ends with the block."""
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()

    def as_three_and_four() -> None:
        os.dup2(os.dup(to_read), 13)
        os.dup2(os.dup(back_write), 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"], preexec_fn=as_three_and_four, pass_fds=(3, 4),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(back_write)
        try:
            yield Tab(to_write, back_read)
        finally:
            process.terminate()
            process.wait(10)
