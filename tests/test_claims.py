"""The committed claims are what the committed results say."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_claims_follow_from_results() -> None:
    spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.all_claims()
    committed = json.loads((ROOT / "benchmarks" / "claims.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(made)) == committed
    assert {"id", "text", "value", "interval", "n", "controls", "holds", "command"} == set(committed[0])
    assert all(claim["interval"][0] <= claim["value"] <= claim["interval"][1] for claim in committed)
