"""The command `q4`: `q4 info` lists devices; `q4 bench|verify|autotune ...` runs that tool of the wheel or of PATH."""

import os
import shutil
import sys

import q4

_TOOLS = ("bench", "verify", "autotune")


def info() -> int:
    """Prints backends and devices."""
    print(f"q4 {q4.__version__}, kernels in {q4.cache_dir() or 'memory'}, {len(q4.tuning())} tuning records")
    for backend in q4.backends():
        print(f"{backend.kind}: {'available' if backend.available else backend.reason}")
        for name, version in backend.components:
            print(f"  {name}: {version}")
    for device in q4.devices():
        print(f"{device.device}: {device.name}, {device.arch}, {device.memory_bytes / 2**30:.1f} GiB")
    return 0


def main() -> int:
    """Entry of the console script."""
    arguments = sys.argv[1:]
    if arguments in ([], ["info"]):
        return info()
    if arguments[0] not in _TOOLS:
        print(f"usage: q4 [info | {' | '.join(_TOOLS)}] ...", file=sys.stderr)
        return 2
    tool = f"q4-{arguments[0]}"
    here = os.path.join(os.path.dirname(__file__), "bin", tool)
    path = here if os.path.exists(here) else shutil.which(tool)
    if path is None:
        print(
            f"{tool} is neither in this wheel nor on PATH; build the wheel with -C cmake.define.Q4_WHEEL_TOOLS=ON,"
            " or build q4 itself",
            file=sys.stderr,
        )
        return 1
    os.execv(path, [path, *arguments[1:]])


if __name__ == "__main__":
    sys.exit(main())
