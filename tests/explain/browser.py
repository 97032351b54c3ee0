"""Chromium without a window, driven over a pipe with the DevTools protocol. Needs no library."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

PROGRAM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), "")


class Browser:
    """One page at a time. `errors` and `requests` are what the page said and asked for."""

    def __init__(self, folder):
        there, self._out = os.pipe()
        self._in, back = os.pipe()

        def connect():  # the browser reads from 3 and writes to 4
            ends = os.dup(there), os.dup(back)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        flags += ["--disable-quic", "--disable-background-networking", "--disable-component-update"]
        flags += ["--disable-sync", f"--user-data-dir={folder}", "--hide-scrollbars"]
        # Frames in the page's own process, where `run_in_frame` finds them.
        flags += ["--disable-features=IsolateSandboxedIframes", "about:blank"]
        with open(os.devnull, "w") as nowhere:
            self._process = subprocess.Popen(
                [PROGRAM, *flags], preexec_fn=connect, close_fds=False, stdout=nowhere, stderr=nowhere
            )
        os.close(there)
        os.close(back)
        self._number, self._text, self._session = 0, b"", None
        self.errors, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _read(self):
        while b"\0" not in self._text:
            ready, _, _ = select.select([self._in], [], [], 60)
            assert ready, "the browser does not answer"
            self._text += os.read(self._in, 1 << 20)
        line, _, self._text = self._text.partition(b"\0")
        message = json.loads(line)
        kind, given = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(given["exceptionDetails"]["exception"].get("description"))
        elif kind == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(given["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"][:200])
        return message

    def open(self, url, width=1400, dark=False, still=False, bypass=False, zoom=1):
        """Load a page; waits until its script has run."""
        self.errors.clear()
        self.requests.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=zoom,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"})
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.setBypassCSP", enabled=bypass)
        self.call("Page.navigate", url=url)
        for _ in range(100):
            if self.run("document.readyState") == "complete" and self.run("location.href") != "about:blank":
                return
            time.sleep(0.05)
        raise AssertionError("the page does not load")

    def run(self, code):
        """The value of an expression; promises are waited for."""
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def run_in_frame(self, code):
        """The value of an expression over the document of the page's only frame, whatever its sandbox."""
        (frame,) = self.call("Page.getFrameTree")["frameTree"]["childFrames"]
        world = self.call("Page.createIsolatedWorld", frameId=frame["frame"]["id"])["executionContextId"]
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True, contextId=world)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key):
        """One key, down and up."""
        texts = {"Enter": "\r", " ": " ", "?": "?"}
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32, "Home": 36, "End": 35, "?": 191}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        own = {"key": key, "windowsVirtualKeyCode": codes[key]}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **own, **({"text": texts[key]} if key in texts else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **own)

    def close(self):
        """End the browser that this object started."""
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)
