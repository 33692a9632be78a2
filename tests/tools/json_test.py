#!/usr/bin/env python3
"""docs/reference/json.md against what the tools in a folder print on the CPU: every field is in the page, and every run is one object.

    json_test.py FOLDER PAGES    (PAGES: docs/)
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

TOOLS, PAGES = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
OPEN = {"components", "packings", "numerics_ids", "tactics", "provenance"}  # their keys are names
RUNS = {
    "q4-info": ["q4-info"],
    "q4-info CHECKPOINT": ["q4-info", "model"],
    "q4-info --config FILE": ["q4-info", "--config", "config.json"],
    "q4-verify": ["q4-verify", "model", "--m", "1", "--device", "cpu"],
    "q4-convert": ["q4-convert", "model", "converted", "--to", "gptq_v2"],
    "q4-autotune": ["q4-autotune", "--shape", "64x64", "--group", "64", "--m", "1", "--budget", "20", "--device", "cpu", "--out", "tuning.jsonl"],
    "q4-bench": ["q4-bench", "--shape", "64x64", "--group", "64", "--m", "1", "--seconds", "0.05", "--device", "cpu"],
    "q4-bench --moe": ["q4-bench", "--moe", "4,2,64,64", "--m", "1", "--seconds", "0.05", "--device", "cpu"],
    "q4-bench --chain": ["q4-bench", "--shape", "64x64", "--group", "64", "--m", "1", "--chain", "1", "--device", "cpu"],
    "q4-cache doctor": ["q4-cache", "doctor"],
    "q4-cache prune": ["q4-cache", "prune", "--max-bytes", "0"],
    "q4-cache stat": ["q4-cache", "stat"],
    "q4-cache verify": ["q4-cache", "verify"],
    "q4-cache warmup": ["q4-cache", "warmup", "--device", "cpu", "--shape", "64x64"],
    "q4-cache merge": ["q4-cache", "merge", "tuning.jsonl", "--out", "merged.jsonl"],
    "q4-cache diff": ["q4-cache", "diff", "tuning.jsonl", "merged.jsonl"],
    "q4-cache export": ["q4-cache", "export", "--out", "exported"],
}
NOT_RUN = {"q4-cache " + name for name in ("ls", "build", "pack", "keygen", "sign", "explain")}  # need kernels, NVRTC or libsodium


def fields(value: object) -> set[str]:
    if isinstance(value, list):
        return set().union(*(fields(item) for item in value))
    if not isinstance(value, dict):
        return set()
    return set(value).union(*(fields(item) for name, item in value.items() if name not in OPEN))


def main() -> None:
    page = (PAGES / "reference/json.md").read_text()
    sections = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert sections.keys() == RUNS.keys() | NOT_RUN, sections.keys() ^ (RUNS.keys() | NOT_RUN)
    [maker] = re.findall(r'^```python title="make_model.py"\n(.*?)^```$', (PAGES / "getting-started/operators.md").read_text(), re.MULTILINE | re.DOTALL)
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 64}
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", maker], cwd=folder, check=True)
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        (pathlib.Path(folder) / "cache").mkdir(mode=0o700)
        for title, (tool, *arguments) in RUNS.items():
            environment = {**os.environ, "Q4_CACHE_DIR": f"{folder}/cache"}
            command = [str(TOOLS / tool), *arguments, "--json"]
            ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert ended.returncode in (0, 1), (command, ended.stderr)
            listed = set(re.findall(r"\w+", sections[title]))
            wrong += [f"{title}: the page does not name {name}" for name in sorted(fields(json.loads(ended.stdout)) - listed)]
    print("\n".join(wrong) or "every field is documented")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
