"""Drives headless Chromium over a pipe (the Chrome DevTools Protocol), and what people do on the page of `cofferdam ui`.

    browser.py shows LINK            the page shows flows and denials, and words that are HTML as text
    browser.py allows LINK WHAT      allows what was denied, with keys alone
    browser.py enters LINK OTHER     a wrong token, the link twice, another browser, another tab, another site
    browser.py removed LINK          says `up`, reads a line, and waits for the page to say that the record was removed
    browser.py ends LINK             says `up`, and waits for the page to say that the run has ended
    browser.py frames LINK COUNT     how long frames take while the flows of a run are scrolled through
    browser.py pictures LINK FOLDER  what it looks like, light and dark

Each says what it has seen. The browser has no sandbox of its own: it runs as a plain user, in a namespace without any network but
the world's, and it sees no page but ours.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

PATIENCE = 60


class Browser:
    def __init__(self):
        self.folder = tempfile.mkdtemp()
        ours, theirs = os.pipe(), os.pipe()
        # Above 3 and 4, where Chromium looks for them.
        read, write = fcntl.fcntl(ours[0], fcntl.F_DUPFD, 10), fcntl.fcntl(theirs[1], fcntl.F_DUPFD, 10)

        def place():
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            ["chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
             "--disable-lcd-text", "--hide-scrollbars",
             "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={self.folder}", "about:blank"],
            pass_fds=(3, 4, read, write), preexec_fn=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.folder, "XDG_CONFIG_HOME": self.folder, "XDG_CACHE_HOME": self.folder})
        for fd in (ours[0], theirs[1], read, write):
            os.close(fd)
        self.write, self.read = ours[1], theirs[0]
        self.number, self.buffer, self.complaints = 0, b"", []

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]

    def next(self):
        while b"\0" not in self.buffer:
            data = os.read(self.read, 1 << 20)
            if not data:
                raise SystemExit("the browser has ended")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(line)
        # What a page may not do, and what it does wrong.
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(message["params"]["exceptionDetails"])
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.complaints.append(message["params"]["entry"]["text"])
        return message

    def tab(self, other=False, size=(1280, 1000)):
        place = {"browserContextId": self.ask("Target.createBrowserContext")["browserContextId"]} if other else {}
        target = self.ask("Target.createTarget", url="about:blank", width=size[0], height=size[1], **place)["targetId"]
        return Tab(self, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])


class Tab:
    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        return self.browser.ask(method, self.session, **params)

    def open(self, link):
        self.ask("Page.navigate", url=link)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def eval(self, script):
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, condition, patience=PATIENCE):
        # There is no event to wait for where a page asks its server.
        end = time.monotonic() + patience
        while not self.eval(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise SystemExit(f"never: {condition}; the page says:\n{self.eval('document.body.innerText')}")
            time.sleep(0.05)

    def key(self, name):
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "PageDown": 34, "ArrowDown": 40}[name]
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **text)

    def tab_to(self, condition):
        for _ in range(200):
            if self.eval(f"(node => Boolean({condition}))(document.activeElement)"):
                return
            self.key("Tab")
        raise SystemExit(f"no key leads to {condition}")

    def picture(self, path):
        data = self.ask("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))


def text(node):
    return f"document.getElementById({json.dumps(node)}).textContent"


def shown(words):
    return f"document.body.innerText.includes({json.dumps(words)})"


def shows(browser, link):
    tab = browser.tab()
    tab.open(link)
    print("address", tab.eval("location.pathname + location.search"))
    tab.until(f"{text('state')} === 'running'")
    tab.until("document.querySelectorAll('#space .row').length >= 2")
    tab.until("document.querySelectorAll('#denied-rows tr').length >= 3")
    tab.until("[...document.querySelectorAll('#space .row')].some(row => /KiB|MiB/.test(row.children[6].textContent))")
    for row in tab.eval("[...document.querySelectorAll('#space .row')].map(row => row.children[0].textContent)"):
        print("flow", row)
    for row in tab.eval("[...document.querySelectorAll('#denied-rows tr')].map(row => [...row.children].map(cell => cell.textContent).join(' | '))"):
        print("denied", row)
    print("title", tab.eval(text("title")))
    print("html", tab.eval("document.querySelectorAll('#all b > *, #all i, #all img, #all script').length"))
    print("drawn", tab.eval("[...document.querySelectorAll('#drawing title')].map(title => title.textContent).sort().join('; ')"))
    print("moves", tab.eval("/^[^N]*L/.test(document.querySelector('#chart .in').getAttribute('d'))"))
    # Each thing that takes keys has a name.
    print("nameless", tab.eval("""[...document.querySelectorAll('button, input, [tabindex], svg[role=img]')].filter(node =>
        !(node.getAttribute('aria-label') || node.getAttribute('aria-labelledby') || node.textContent.trim() || node.labels?.length)).length"""))


def allows(browser, link, what):
    tab = browser.tab()
    tab.open(link)
    label = json.dumps(f"Allow {what}")
    tab.until(f"[...document.querySelectorAll('#denied button')].some(node => !node.hidden && node.getAttribute('aria-label') === {label})")
    # A look at the rule, and no.
    tab.tab_to(f"node.getAttribute('aria-label') === {label}")
    tab.key("Enter")
    tab.until("document.getElementById('ask').open")
    tab.key("Escape")
    tab.until("!document.getElementById('ask').open")
    print("back", tab.eval(f"document.activeElement.getAttribute('aria-label') === {label}"))
    tab.key("Enter")
    tab.until("document.getElementById('ask').open && !document.getElementById('ask-yes').disabled")
    print("remark", tab.eval(text("ask-remark")))
    print("rule", tab.eval(text("ask-rule")))
    tab.tab_to("node.id === 'ask-yes'")
    tab.key("Enter")
    tab.until(f"!document.getElementById('ask').open || {text('ask-error')} !== ''")
    print("error", tab.eval(text("ask-error")))
    print("status", tab.eval(text("status")))


def enters(browser, link, other):
    wrong = link[:-1] + ("0" if link[-1] != "0" else "1")
    first = browser.tab()
    first.open(wrong)
    print("wrong", first.eval("document.querySelector('h1').textContent"))
    first.open(link)
    first.until("!document.getElementById('all').hidden")
    print("open", first.eval("location.search === ''"))
    again = browser.tab()
    again.open(link)
    print("twice", again.eval("document.querySelector('h1').textContent"))
    again.open(link.split("?")[0])
    again.until("!document.getElementById('notice').hidden")
    print("tab", again.eval(text("notice")))
    print("asks", again.eval("fetch('/api/overview').then(answer => answer.status)"))
    away = browser.tab(other=True)
    away.open(link)
    print("elsewhere", away.eval("document.querySelector('h1').textContent"))
    away.open(link.split("?")[0])
    print("without", away.eval("document.querySelector('h1').textContent"))
    # A page at another port of this host, as a published port is: the browser takes it for the same site.
    near = browser.tab()
    near.open(other)
    page = json.dumps(link.split("?")[0])
    ask = "fetch(%s + 'api/overview', {credentials: 'include'%s}).then(answer => answer.status + answer.type, () => 'refused')"
    print("near", near.eval(ask % (page, "")))
    print("blind", near.eval(ask % (page, ", mode: 'no-cors'")))
    browser.complaints.clear()
    first.ask("Page.reload")
    first.until("document.readyState === 'complete' && !document.getElementById('all').hidden")
    print("reload", first.eval(f"{text('notice')} === ''"))


def removed(browser, link):
    tab = browser.tab()
    tab.open(link)
    tab.until(f"{text('state')}.startsWith('exit')")
    print("up", flush=True)
    sys.stdin.readline()
    tab.until(f"{text('state')} === 'record removed'")
    print("notice", tab.eval(text("notice")))


def ends(browser, link):
    tab = browser.tab()
    tab.open(link)
    tab.until(f"{text('state')} === 'running'")
    print("up", flush=True)
    tab.until(f"{text('state')} === 'exit 3'")
    print("status", tab.eval(text("status")))


def frames(browser, link, count):
    tab = browser.tab()
    tab.open(link)
    tab.until(f"Number(document.getElementById('flows').getAttribute('aria-rowcount')) > {count}")
    print("rows", tab.eval("document.querySelectorAll('#space .row').length"))
    times = tab.eval("""new Promise(done => {
        const view = document.getElementById('view'), times = [];
        let last = null;
        function frame(now) {
            if (last !== null) times.push(now - last);
            last = now;
            view.scrollTop = (view.scrollTop + 97) % (view.scrollHeight - view.clientHeight);
            if (times.length < 300) requestAnimationFrame(frame); else done(times);
        }
        requestAnimationFrame(frame);
    })""")
    times.sort()
    print("frames", *(round(times[len(times) * part // 100]) for part in (50, 95, 99)))
    print("news", tab.eval("[...document.querySelectorAll('#space .row')].length > 0"))


def pictures(browser, link, folder):
    tab = browser.tab(size=(1180, 960))
    tab.open(link)
    tab.until("document.querySelectorAll('#denied-rows tr').length >= 2")
    # Some seconds of the chart, of which each is a question.
    tab.until("(document.querySelector('#chart .in').getAttribute('d').match(/,(?!86\\.0)/g) ?? []).length > 20")
    # Nothing sticks out of it on a small screen.
    print("fits", tab.eval("document.documentElement.scrollWidth <= innerWidth"))
    for scheme in ("light", "dark"):
        tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        print(scheme, tab.eval("getComputedStyle(document.body).backgroundColor"))
        tab.picture(f"{folder}/ui-{scheme}.png")


def main():
    browser = Browser()
    try:
        {"shows": shows, "allows": allows, "enters": enters, "removed": removed, "ends": ends, "frames": frames,
         "pictures": pictures}[sys.argv[1]](browser, *sys.argv[2:])
        print("complaints", browser.complaints)
    finally:
        browser.close()


main()
