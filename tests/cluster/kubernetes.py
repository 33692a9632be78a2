"""Checks the Kubernetes manifests of the documents and of share/ against Kubernetes' schemas: kubernetes.py SOURCE_DIR.

Needs the packages kubernetes-validate and PyYAML; exit 77, "not run", without them."""

import re
import sys
from pathlib import Path

root = Path(sys.argv[1])
sys.path.append(str(root / "build/pip/kubernetes"))  # where .ci/run puts it
try:
    import kubernetes_validate
    import yaml
except ImportError as error:
    print(f"not run: {error} (PyPI: kubernetes-validate)")
    sys.exit(77)

texts = {path: [path.read_text()] for path in sorted(root.glob("share/container/*.yaml"))}
for path in sorted(root.glob("docs/*.md")):
    texts[path] = re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
version = kubernetes_validate.latest_version()
checked, failed = 0, 0
for path, blocks in texts.items():
    for manifest in (m for block in blocks for m in yaml.safe_load_all(block)):
        checked += 1
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            failed += 1
            print(f"{path.relative_to(root)}: {manifest.get('kind')}: {error.message} at {list(error.path)}")

# The check itself: a field that no Pod has.
broken = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"contaners": []}}
try:
    kubernetes_validate.validate(broken, version, strict=True)
    sys.exit("a broken manifest was found valid")
except kubernetes_validate.ValidationError:
    pass
print(f"{checked} manifests against Kubernetes {version}, {failed} of them invalid")
sys.exit(failed > 0 or checked < 4)
