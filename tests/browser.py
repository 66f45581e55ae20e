"""A browser that tests steer: Debian's Chromium, spoken to in the DevTools protocol through two pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--mute-audio",
)  # fmt: skip
PATIENCE = 60.0
"""Seconds that an answer may take on a busy machine."""
Message = dict[str, Any]


class Browser:
    """A running browser. Commands and answers are JSON texts, each with a zero byte at its end."""

    def __init__(self, pid: int, to: int, back: int) -> None:
        self.pid, self._to, self._back = pid, to, back
        self._number, self._rest = 0, b""
        self._events: list[Message] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> Message:
        """Send a command and return its result; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        result: Message = answer["result"]
        return result

    def page(self, width: int, height: int = 900, *, mobile: bool = False) -> Page:
        """Open an empty page of so many pixels, as of a telephone where `mobile`."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, [])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        return page

    def events(self, session: str, patience: float = 0.0) -> list[Message]:
        """Return the page's events that have come, and take them away; wait for the first for so long."""
        if patience or select.select([self._back], [], [], 0)[0]:
            with contextlib.suppress(TimeoutError):
                self._events.append(self._next(patience or 1.0))
        found = [event for event in self._events if event.get("sessionId") == session]
        self._events = [event for event in self._events if event.get("sessionId") != session]
        return found

    def _next(self, patience: float = PATIENCE) -> Message:
        end = time.monotonic() + patience
        while b"\0" not in self._rest:
            if not select.select([self._back], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._back, 2**20)
            assert chunk, "the browser has ended"
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        message: Message = json.loads(text)
        return message


class Page:
    """One page, and all events since it was opened."""

    def __init__(self, browser: Browser, session: str, events: list[Message]) -> None:
        self.browser, self.session, self._seen = browser, session, events

    def call(self, method: str, **parameters: object) -> Message:
        """Send a command to the page."""
        return self.browser.call(method, self.session, **parameters)

    def open(self, url: str) -> None:
        """Go to an address and wait until everything on it is loaded."""
        self.call("Page.navigate", url=url)
        end = time.monotonic() + PATIENCE
        while not any(event["method"] == "Page.loadEventFired" for event in self.seen(0.2)):
            assert time.monotonic() < end, f"{url} is not loaded"

    def seen(self, patience: float = 0.0) -> list[Message]:
        """Return every event so far."""
        self._seen += self.browser.events(self.session, patience)
        return self._seen

    def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression gives, as JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = PATIENCE) -> Any:
        """Wait until an expression gives something true, and return that."""
        end = time.monotonic() + seconds
        while not (found := self.evaluate(expression)):
            assert time.monotonic() < end, f"{expression} is still {found}"
            time.sleep(0.1)
        return found

    def point(self, x: float, y: float) -> None:
        """Move the pointer to a place in the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button there."""
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def complaints(self) -> list[str]:
        """Return what stands in the console as an error or a warning, and every exception."""
        found = []
        for event in self.seen():
            values, method = event["params"], event["method"]
            if method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
                found.append(values["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
                found.append(str(values["args"]))
            elif method == "Runtime.exceptionThrown":
                found.append(str(values["exceptionDetails"]))
        return found

    def requests(self) -> list[str]:
        """Return the address of everything that was asked for, data in the page itself left out."""
        urls = [e["params"]["request"]["url"] for e in self.seen() if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as a PNG file."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Browser]:
    """Start a browser whose profile lies in `folder`; skip the test where there is none, or fail if one is required."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        missing = f"needs a browser: one of {', '.join(NAMES)}"
        assert os.environ.get("SUMNAS_TEST_BROWSER") != "require", missing
        pytest.skip(missing)
    (reads, to), (back, writes) = os.pipe(), os.pipe()
    # The browser reads from descriptor 3 and writes to 4: its ends must not lie there before they are copied.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reads, writes)]
    nothing = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, nothing, fd) for fd in (0, 1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, end, fd) for end, fd in zip(ends, (3, 4), strict=True)]
    command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    pid = os.posix_spawn(program, command, os.environ, file_actions=actions, setpgroup=0)
    for handle in (reads, writes, nothing, *ends):
        os.close(handle)
    try:
        yield Browser(pid, to, back)
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(to)
        os.close(back)
