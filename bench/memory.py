#!/usr/bin/env python3
"""Memory of the host that a virtual machine takes beyond the guest's own.

    bench/memory.py BINARY KERNEL.deb [SHELL]     as root

A machine that stays is started, with a directory of the host and without KVM where that does not work, and SHELL executed in it. For
each of its processes: the proportional set size, without the guest's memory (the mapping of QEMU's that is as large as `--memory`)
and without what QEMU has translated, which is shown by itself.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

from processes import tree

USER = ["setpriv", "--reuid", "1500", "--regid", "1500", "--clear-groups", "--"]
MEMORY = 1 << 30
LOAD = "for n in 1 2 3 4 5 6 7 8; do ls -lR /etc; sha256sum /bin/busybox; seq 20000 | sort -r; done >/dev/null"


def sizes(pid):
    """KiB: all else, the guest's, and translated code, which is the only one that is written and executed."""
    found = {"beyond": 0, "guest": 0, "translated": 0}
    kind = None
    with open(f"/proc/{pid}/smaps") as maps:
        for line in maps:
            if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ", line):
                is_guests = int(head[2], 16) - int(head[1], 16) == MEMORY
                kind = "guest" if is_guests else "translated" if "wx" in head[3] else "beyond"
            elif line.startswith("Pss:"):
                found[kind] += int(line.split()[1])
    return found


def main(binary, kernel, load=LOAD):
    folder = tempfile.mkdtemp()
    os.chown(folder, 1500, 1500)
    os.environ["XDG_STATE_HOME"] = folder
    cofferdam = lambda *words: subprocess.run([*USER, binary, *words], check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
    try:
        cofferdam("vm", "setup", "--from-deb", kernel)
        os.mkdir(f"{folder}/shown")
        network = ["--no-cwd", "--net", "mounts-only", "--mount", f"{folder}/shown:/shown:ro"]
        cofferdam("create", "m", "--backend", "vm", "--memory", str(MEMORY), *network)
        try:
            cofferdam("exec", "--quiet", "m", "--", "sh", "-c", load)
            table = [(open(f"/proc/{pid}/comm").read().strip(), sizes(pid)) for pid in tree(json.loads(cofferdam("inspect", "--json", "m"))["keeper"])]
        finally:
            cofferdam("rm", "--force", "m")
    finally:
        shutil.rmtree(folder)
    for name, found in [*table, ("together", {kind: sum(found[kind] for _, found in table) for kind in table[0][1]})]:
        print(f"{name:16}", ", ".join(f"{kind} {size / 1024:.1f} MiB" for kind, size in found.items()))


main(*sys.argv[1:])
