"""Chromium, driven over its own debugging pipe (Chrome DevTools Protocol): no package but Debian's `chromium` is needed."""

import json
import os
import shutil
import subprocess
import time


def find_chromium():
    """The browser's path; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of a headless browser.

    Args:
        profile: An empty folder for what it writes.
    """

    def __init__(self, profile, width=1000, height=900):
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()

        def wire():  # the browser reads 3 and writes 4; first out of the way of the pipes' own numbers
            given, taken = os.dup(commands), os.dup(answers)
            os.dup2(given, 3)
            os.dup2(taken, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe"]
        command = [find_chromium(), *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        self._number, self._rest, self._session = 0, b"", None
        page = next(target for target in self._ask("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self.resize(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)

    def _ask(self, method, **parameters):
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._from, 1 << 16)
                if not piece:
                    raise RuntimeError("the browser ended")
                self._rest += piece
            message, self._rest = self._rest.split(b"\0", 1)
            found = json.loads(message)
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def resize(self, width, height=900):
        """The window, in CSS pixels."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, address):
        """Loads a page, and waits until it is whole."""
        self._ask("Page.navigate", url=address)
        self.wait(f"document.readyState == 'complete' && location.href.startsWith({json.dumps(address)})")

    def run(self, script):
        """A JavaScript expression's value."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", found["exceptionDetails"]["text"]))
        return found["result"].get("value")

    def wait(self, script, seconds=30):
        """Until an expression holds."""
        for _ in range(seconds * 20):
            if self.run(script):
                return
            time.sleep(0.05)
        raise AssertionError(f"it did not come to pass: {script}; the page says: {self.run('document.body.innerText')}")

    def press(self, key):
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, **({"text": key} if kind == "keyDown" and len(key) == 1 else {}))

    def click(self, selector):
        """The middle of an element, with the mouse."""
        box = self.run(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
