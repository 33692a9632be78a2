#!/usr/bin/env python3
"""docs/reference/files.md against files: a program that knows nothing but that page reads a kernel, a pack and a tuning record that the tools
of FOLDER wrote. Exit 77, "not run", without an NVRTC: then there is no kernel to write.

    files.py FOLDER PAGE
"""
import hashlib
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

TOOLS, PAGE = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).read_text()
KERNEL, PACK = (int(number) for number in re.findall(r"u32 schema: (\d+)", PAGE))


def kernel(data: bytes) -> dict[str, bytes]:
    """The fields of an entry, named as the page names them."""
    assert data[:8] == b"q4kernel" and struct.unpack_from("<I", data, 8) == (KERNEL,)
    names, at, found = re.findall(r"^4 \+ \w +(\w+)", PAGE, re.MULTILINE), 12, {}
    for name in names:
        (length,) = struct.unpack_from("<I", data, at)
        found[name] = data[at + 4 : at + 4 + length]
        at += 4 + length
    assert names == ["name", "source", "headers", "target", "options", "compiler", "created", "code"]
    assert hashlib.sha256(data[:at]).digest() == data[at:], "what follows the fields is not their digest"
    assert len(found["created"]) == 8 and found["target"] == b"sm_90a" and found["options"].endswith(b"\n")
    assert found["code"][:4] == b"\x7fELF"
    return found


def pack(data: bytes, entries: dict[bytes, bytes]) -> None:
    assert data[:8] == b"q4pack\r\n"
    schema, count, manifest, records, size = struct.unpack_from("<IIQQQ", data, 8)
    assert schema == PACK and count == len(entries) and size == len(data)
    index = 168 + manifest + records
    payload = index + 80 * count
    assert hashlib.sha256(data[:40] + data[168:payload]).digest() == data[40:72]
    assert data[72:168] == bytes(96), "it was not signed"
    assert json.loads(data[168 : 168 + manifest])["kernels"] == count
    record(data[168 + manifest : index].decode())
    keys = []
    for row in range(index, payload, 80):
        offset, length = struct.unpack_from("<QQ", data, row + 64)
        entry = data[offset : offset + length]
        keys.append(data[row : row + 32])
        assert entry == entries[keys[-1]] and entry[-32:] == data[row + 32 : row + 64]
    assert keys == sorted(keys)


def record(line: str) -> None:
    section = PAGE[PAGE.index("## Tuning records") : PAGE.index("## Others")]
    listed = set(re.findall(r"`(\w+)`", section))
    fields = json.loads(line)
    used = set(fields) | {name for bucket in fields["buckets"] for name in bucket}
    assert used <= listed, used - listed
    assert fields["q4_tuning"] == 1 and fields["k"] == 64


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "Q4_CACHE_DIR": f"{folder}/cache"}

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([str(TOOLS / command[0]), *command[1:]], cwd=folder, env=environment, capture_output=True, text=True)

        shape = ["--shape", "64x64", "--group", "64"]
        ended = run("q4-autotune", *shape, "--m", "1", "--budget", "20", "--device", "cpu", "--out", "tuning.jsonl")
        assert ended.returncode == 0, ended.stderr
        record((pathlib.Path(folder) / "tuning.jsonl").read_text())
        ended = run("q4-cache", "build", "--target", "sm_90a", *shape, "--max-m", "1")
        if ended.returncode and "nvrtc" in ended.stderr.lower():
            print(f"skipped: no NVRTC: {ended.stderr.strip().splitlines()[-1]}")
            sys.exit(77)
        assert ended.returncode == 0, ended.stderr
        entries = {}
        for path in (pathlib.Path(folder) / "cache").glob("*.q4k"):
            key, _, compiler = path.stem.partition("-")
            fields = kernel(path.read_bytes())
            digest = hashlib.sha256(struct.pack("<Q", len(fields["compiler"])) + fields["compiler"]).hexdigest()
            assert compiler == digest[:16]
            entries[bytes.fromhex(key)] = path.read_bytes()
        assert entries
        ended = run("q4-cache", "pack", "--out", "kernels.q4pack", "--tuning", "tuning.jsonl")
        assert ended.returncode == 0, ended.stderr
        pack((pathlib.Path(folder) / "kernels.q4pack").read_bytes(), entries)
    print(f"{len(entries)} kernels, a pack and a tuning record are as the page says")


if __name__ == "__main__":
    main()
