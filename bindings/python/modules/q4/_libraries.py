"""Finds NVRTC and cuBLASLt where pip puts them (nvidia/*/lib), for a machine with a driver and no CUDA toolkit."""

import glob
import os
import sys

_WANTED = {"Q4_NVRTC": "libnvrtc.so.*", "Q4_CUBLASLT": "libcublasLt.so.*"}


def find() -> None:
    """Sets each environment variable that is unset to the newest library in site-packages, if there is one."""
    for variable, pattern in _WANTED.items():
        if os.environ.get(variable):
            continue
        found = [
            path
            for folder in sys.path
            for path in glob.glob(os.path.join(glob.escape(folder or "."), "nvidia", "*", "lib", pattern))
            if path.rsplit(".", 1)[1] in ("12", "13")
        ]
        if found:
            os.environ[variable] = max(found, key=lambda path: path.rsplit(".", 1)[1])
