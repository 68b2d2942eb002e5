#!/usr/bin/env python3
"""Builds the installers, from manifest.toml and the lock of each platform.

    python installer/build.py linux            edgespec-VERSION-linux-x86_64.tar.gz, with install.sh
    python installer/build.py deb              edgespec_VERSION_amd64.deb
    python installer/build.py windows          edgespec-VERSION-windows-x86_64.exe (needs makensis), winget manifest
    python installer/build.py lock PLATFORM    writes locks/PLATFORM.txt: versions and SHA-256 of all wheels

It needs Python 3.11 or newer with pip, and the package index. The files are in --output (default: dist).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import debian
import payload
import windows
from parts import PLATFORMS, BuildError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("linux", "deb", "windows", "lock"))
    parser.add_argument("platform", nargs="?", choices=PLATFORMS, help="of lock")
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"))
    parser.add_argument("--python-archive", type=Path, help="CPython for that platform, in place of the manifest's")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, in place of the package index")
    options = parser.parse_args()
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    try:
        if options.what == "lock":
            if options.platform is None:
                raise BuildError(f"of which platform? {', '.join(PLATFORMS)}")
            print(payload.write_lock(options.platform, options.wheels))
            return 0
        platform = "windows-x86_64" if options.what == "windows" else "linux-x86_64"
        make = {"linux": payload.tarball, "deb": debian.package, "windows": windows.installer}[options.what]
        with payload.staged(platform, options.python_archive, options.wheels) as staged:
            made = make(staged, output)
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 2
    for path in made:
        print(f"{path} {path.stat().st_size / 1e6:.1f} MB")
    print(f"Python: {staged.python}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
