"""A real browser without a window, spoken to over its DevTools protocol."""

import fcntl
import json
import os
import select
import shutil
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 60  # seconds for one answer; it takes well under one on a machine that does nothing else


def find_browser() -> str | None:
    """A Chromium: the environment variable CHROMIUM, or the first on the PATH."""
    names = (os.environ.get("CHROMIUM"), *NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Browser:
    """A browser with one page, to be used in a ``with`` statement.

    Attributes:
        complaints: what its console said, and errors of scripts.
        requests: addresses that the page asked for.
    """

    def __init__(self, executable: str, profile: Path):
        """
        Args:
            executable: of a Chromium.
            profile: a folder of its own.
        """
        self._executable, self._profile = executable, profile
        self._count = 0
        self._unread = b""
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def __enter__(self):
        # It reads commands from its file 3 and writes answers to its file 4.
        (its_input, self._commands), (self._answers, its_output) = os.pipe(), os.pipe()
        # Numbers that its own 3 and 4 can't fall on.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 100) for end in (its_input, its_output)]
        arguments = [
            self._executable,
            "--headless",
            "--no-sandbox",  # which root does not get
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={self._profile}",
            "--remote-debugging-pipe",
        ]
        self._process = os.posix_spawn(
            self._executable,
            arguments,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for end in (its_input, its_output, *high):
            os.close(end)
        self._session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        os.close(self._commands)  # which ends it
        os.waitpid(self._process, 0)
        os.close(self._answers)

    def open(self, file: Path, *, width: int, dark: bool = False) -> None:
        """Show a file in a window of this width, and wait until all of it is there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
        )
        address = file.resolve().as_uri()
        self.complaints, self.requests = [], []
        self.ask("Page.navigate", url=address)
        while self._listen().get("method") != "Page.loadEventFired":
            pass
        self.requests.remove(address)

    def evaluate(self, expression: str):
        """The value of a JavaScript expression on the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"]["value"]

    def ask(self, method: str, **parameters) -> dict:
        """The answer to a command of the protocol."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._listen()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _listen(self) -> dict:
        """The next message; what the page complains about, or asks for, is noted."""
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            assert ready, f"the browser has said nothing for {TIMEOUT} seconds"
            data = os.read(self._answers, 1 << 16)
            assert data, "the browser has ended"
            self._unread += data
        line, self._unread = self._unread.split(b"\0", 1)
        message = json.loads(line)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.complaints.append(str(parameters))
        return message
