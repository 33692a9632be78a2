"""The command `q4`: `q4 info` lists devices; `q4 bench|verify|autotune|cache|convert ...` runs that tool of the wheel or of PATH."""

import os
import shutil
import signal
import sys

import q4

_TOOLS = ("bench", "verify", "autotune", "cache", "convert")
_USAGE = f"""usage: q4 [info]             lists devices, backends and what is missing
       q4 {"|".join(_TOOLS)} ...  runs that tool of the wheel or of PATH
       q4 --help | --version"""


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
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `q4 info | head` ends quietly
    arguments = sys.argv[1:] or ["info"]
    try:
        if arguments[0] in ("-h", "--help", "help"):
            print(_USAGE, flush=True)
            return 0
        if arguments[0] == "--version":
            print(f"q4 {q4.__version__}", flush=True)
            return 0
        if arguments == ["info"]:
            status = info()
            sys.stdout.flush()
            return status
    except OSError as error:  # a full disk
        print(f"q4: standard output: {error.strerror or error}", file=sys.stderr)
        os._exit(1)  # the interpreter would try again to write it
    if arguments[0] not in _TOOLS:
        print(f"q4: {' '.join(arguments)}: no such command\n{_USAGE}", file=sys.stderr)
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
