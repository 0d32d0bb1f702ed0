"""Drives `cofferdam top` on a terminal, as a person does, and says what was seen.

    top.py COFFERDAM allow WORD    waits for WORD among what is blocked, allows it, and leaves; says whether the terminal is as before
    top.py COFFERDAM hangup        the terminal goes away
    top.py COFFERDAM signal NAME   somebody sends it a signal
    top.py COFFERDAM resize        in a window that changes its size
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time


class Top:
    def __init__(self, cofferdam, lines=24, columns=80):
        self.controller, terminal = pty.openpty()
        self.terminal = terminal
        self.size(lines, columns)
        self.before = termios.tcgetattr(terminal)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            for number in range(3):
                os.dup2(terminal, number)
            os.closerange(3, 100)
            os.environ["TERM"] = "xterm"
            os.execv(cofferdam, [cofferdam, "top"])
        self.seen = b""
        self.end = None

    def size(self, lines, columns):
        fcntl.ioctl(self.controller, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def text(self):
        """What was written, without where and how."""
        return re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b" ", self.seen).decode(errors="replace")

    def look(self, seconds):
        if select.select([self.controller], [], [], seconds)[0]:
            try:
                self.seen += os.read(self.controller, 1 << 16)
            except OSError:
                return False
        return True

    def until(self, is_so, what):
        end = time.monotonic() + 20
        while not is_so():
            if time.monotonic() > end:
                print("never:", what, repr(self.text()[-2000:]))
                sys.exit(97)
            self.look(0.1)

    def sees(self, word):
        # Letters that stay where they are are not written again: a word may come in pieces.
        self.until(lambda: word in self.text().replace(" ", ""), word)

    def press(self, keys):
        self.seen = b""
        os.write(self.controller, keys)

    def ended(self):
        def is_over():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.end = os.waitstatus_to_exitcode(status)
            return self.end is not None

        self.until(is_over, "its end")
        while select.select([self.controller], [], [], 0)[0] and self.look(0):
            pass
        print("ended", self.end)

    def is_as_before(self):
        print("terminal as before", termios.tcgetattr(self.terminal) == self.before)
        left = self.seen.rsplit(b"\x1b[?1049l", 1)
        print("screen left", len(left) == 2 and b"\x1b[?25h" in self.seen)
        print(left[-1].decode().replace("\r\n", "\n"), end="")


def main():
    top = Top(sys.argv[1])
    what = sys.argv[2]
    if what == "allow":
        top.sees(sys.argv[3])
        top.press(b"a")
        top.sees("beforeitsownrules")
        top.press(b"y")
        top.sees("inforce:")
        top.press(b"p")
        top.sees("rulesthatweremade")
        top.press(b" ")
        top.press(b"q")
        top.ended()
        top.is_as_before()
    elif what == "signal":
        top.sees("BLOCKED")
        os.kill(top.pid, getattr(signal, "SIG" + sys.argv[3]))
        top.ended()
        top.is_as_before()
    elif what == "resize":
        top.sees("BLOCKED")
        for lines, columns in ((10, 40), (3, 10), (60, 200), (24, 80)):
            top.seen = b""
            top.size(lines, columns)
            top.sees("small" if lines == 3 else "cofferdamtop")
        top.press(b"q")
        top.ended()
        top.is_as_before()
    elif what == "hangup":
        top.sees("BLOCKED")
        os.close(top.terminal)
        os.close(top.controller)
        end = time.monotonic() + 20
        while not os.waitpid(top.pid, os.WNOHANG)[0]:
            assert time.monotonic() < end, "it stays"
            time.sleep(0.05)
        print("gone with its terminal")


main()
