"""Fetch the chat page's borrowed files again and check them against vendor.toml (`make vendor`).

Needs npm and the internet; nothing else in this project does. Files are written only when every hash is right.
`--adopt` prints the hashes that were found instead of refusing: for the day a version is raised.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parent.parent / "src" / "shoal" / "serve" / "static" / "vendor"


def fetch(package: str, version: str, folder: Path) -> dict[str, bytes]:
    """The published package's files by their path inside it."""
    packed = subprocess.run(
        ["npm", "pack", f"{package}@{version}", "--silent", "--pack-destination", str(folder)],
        check=True, capture_output=True, text=True,
    ).stdout.strip().splitlines()[-1]  # fmt: skip
    with tarfile.open(folder / packed) as archive:
        members = {m.name.partition("/")[2]: archive.extractfile(m) for m in archive if m.isfile()}
        return {name: stream.read() for name, stream in members.items() if stream is not None}


def sprite(published: dict[str, bytes], icons: list[str]) -> bytes:
    """One SVG with a `<symbol>` per icon, so that the page asks for one small file."""
    symbols = []
    for icon in icons:
        svg = published[f"icons/{icon}.svg"].decode()
        inner = re.search(r"<svg[^>]*>(.*)</svg>", svg, re.DOTALL)
        assert inner, icon
        shapes = "".join(line.strip() for line in inner[1].splitlines())
        symbols.append(f'<symbol id="{icon}" viewBox="0 0 24 24">{shapes}</symbol>\n')
    return f'<svg xmlns="http://www.w3.org/2000/svg">\n{"".join(symbols)}</svg>\n'.encode()


def produce(published: dict[str, bytes], file: dict[str, Any]) -> bytes:
    """The bytes that belong into the vendor folder for one `file` entry."""
    if "icons" in file:
        return sprite(published, file["icons"])
    data = published[file["source"]]
    if "replace" in file:
        old, new = (part.encode() for part in file["replace"])
        if data.count(old) != 1:
            raise SystemExit(f"{file['source']}: expected {old!r} once, found {data.count(old)} times")
        data = data.replace(old, new)
    return data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adopt", action="store_true", help="write the files and print the hashes found")
    adopt = parser.parse_args().adopt
    ready: dict[Path, bytes] = {}
    wrong = 0
    for library in tomllib.loads((VENDOR / "vendor.toml").read_text(encoding="utf-8"))["library"]:
        with tempfile.TemporaryDirectory() as folder:
            published = fetch(library["package"], library["version"], Path(folder))
        for file in library["file"]:
            data = produce(published, file)
            found = hashlib.sha256(data).hexdigest()
            ready[VENDOR / f"{library['name']}-{library['version']}" / file["name"]] = data
            if found != file["sha256"]:
                wrong += 1
                print(
                    f"{library['name']} {file['name']}: sha256 {found}, vendor.toml says {file['sha256'] or 'nothing'}"
                )
    if wrong and not adopt:
        print(
            "Nothing was written. If you raised a version on purpose: run with --adopt and copy the hashes."
        )
        return 1
    for path, data in ready.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    print(f"{len(ready)} files in {VENDOR}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
