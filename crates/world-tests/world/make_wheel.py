"""Writes a package index page and one wheel, which nobody had to download.

    make_wheel.py NAME FOLDER [URL]    URL: where the page says that the wheel is; beside the page without it

WHEEL_REQUIRES names the packages that it depends on.
"""

import base64
import hashlib
import os
import sys
import zipfile

NAME, FOLDER, VERSION = sys.argv[1], sys.argv[2], "1.0"
URL = "".join(sys.argv[3:])
requires = "".join(f"Requires-Dist: {name}\n" for name in os.environ.get("WHEEL_REQUIRES", "").split())
INFO = f"{NAME}-{VERSION}.dist-info"
files = {
    f"{NAME}.py": "GREETING = 'hello from a wheel'\n",
    f"{INFO}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n" + requires,
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: world\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def digest(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


record = "".join(f"{path},sha256={digest(text.encode())},{len(text)}\n" for path, text in files.items())
files[f"{INFO}/RECORD"] = record + f"{INFO}/RECORD,,\n"
wheel = f"{NAME}-{VERSION}-py3-none-any.whl"
with zipfile.ZipFile(f"{FOLDER}/{wheel}", "w") as archive:
    for path, text in files.items():
        archive.writestr(path, text)
with open(f"{FOLDER}/index.html", "w") as page:
    page.write(f'<!DOCTYPE html><html><body><a href="{URL}{wheel}">{wheel}</a></body></html>\n')
