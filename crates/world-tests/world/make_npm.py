"""Makes registries of npm, each with `wall-app`, which depends on `wall-tools`.

  make_npm.py WWW HOST...     for each HOST a registry at WWW/npm/HOST, whose files are at HOST
"""
import base64
import hashlib
import io
import json
import os
import sys
import tarfile

PACKAGES = {
    "wall-tools": ({}, "module.exports = () => 'hello from the registry';\n"),
    "wall-app": ({"wall-tools": "^1.0.0"}, "console.log(require('wall-tools')());\n"),
}


def tarball(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def main():
    www, *hosts = sys.argv[1:]
    for host in hosts:
        root = os.path.join(www, "npm", host)
        os.makedirs(os.path.join(root, "files"))
        for name, (dependencies, text) in PACKAGES.items():
            manifest = {"name": name, "version": "1.0.0", "main": "index.js", "dependencies": dependencies}
            packed = tarball({"package.json": json.dumps(manifest), "index.js": text})
            with open(os.path.join(root, "files", f"{name}-1.0.0.tgz"), "wb") as file:
                file.write(packed)
            dist = {
                "tarball": f"https://{host}/npm/{host}/files/{name}-1.0.0.tgz",
                "integrity": "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode(),
            }
            packument = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**manifest, "dist": dist}}}
            with open(os.path.join(root, name), "w") as file:
                json.dump(packument, file)


main()
