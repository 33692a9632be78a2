"""The wheel says what was compiled into it (PEP 770)."""

import importlib.metadata
import json

import pytest
import q4


def test_bill_of_materials() -> None:
    try:
        files = importlib.metadata.files("q4") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("q4 is not installed as a wheel")
    found = [file for file in files if file.match("*.dist-info/sboms/*.cdx.json")]
    assert len(found) == 1
    bill = json.loads(found[0].read_text())
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["version"] == q4.__version__
    versions = {part["name"]: part["version"] for part in bill["components"]}
    assert {"fmt", "nlohmann-json", "nanobind"} <= set(versions)
    assert all(version[:1].isdigit() or version == "of the system" for version in versions.values())
