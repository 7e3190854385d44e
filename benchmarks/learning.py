"""Turn finished runs of ``unteach learn`` into the committed results and the table in docs/refresh.md.

    unteach learn --config benchmarks/configs/learn-emoji.yaml --out runs/learn-emoji --workers 2
    unteach learn --config benchmarks/configs/learn-digits.yaml --out runs/learn-digits --workers 2
    unteach learn --config benchmarks/configs/learn-emoji-hosts.yaml --out runs/learn-emoji-hosts --workers 2
    python benchmarks/learning.py runs/learn-emoji runs/learn-digits runs/learn-emoji-hosts

Writes benchmarks/results/learning.json: for every arm the final average Class-IL accuracy of each seed, means of this
and other metrics with 95 % t-intervals, paired differences to the host and to each control, warnings, costs; nothing
is left out.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from unteach.continual import grid
from unteach.core import reading, state
from unteach.errors import ConfigError
from unteach.records.learning import ALONE, Arm, LearningResults

HERE = Path(__file__).parent
OUT = HERE / "results" / "learning.json"
PAGE = HERE.parent / "docs" / "refresh.md"
COMMAND = "python benchmarks/learning.py runs/learn-emoji runs/learn-digits runs/learn-emoji-hosts"
METRIC = "class_il/final_average_accuracy"
ALSO = (
    "task_il/final_average_accuracy",
    "class_il/forgetting",
    "class_il/learning_accuracy",
    "final_calibration_error",
)
CONTROLS = ("reweight", "sam")


def summarise(folder: Path, config: str) -> dict[str, Any]:
    jobs = grid.plan(reading.read_yaml(HERE.parent / config, error=ConfigError)).jobs
    if left := [f"{job.label}, seed {job.seed}" for job in jobs if not grid.finished(job, folder)]:
        raise SystemExit(f"{folder} is not the whole of {config}: {len(left)} runs are left, such as {left[0]}")
    everything = LearningResults.load(folder / "runs")
    (group,) = everything.groups
    results = everything.of(group)
    seeds = sorted({run.key.seed for run in results.runs})
    arms = {}
    for arm in results.arms():
        runs = results.by_seed(arm)
        values = results.values(arm, METRIC)
        row: dict[str, Any] = {
            "seeds": {str(seed): values.get(seed) for seed in runs},
            "diverged": [seed for seed, run in runs.items() if any(w.startswith("diverged") for w in run.warnings)],
            "passes": max(run.passes for run in runs.values()),
            "seconds": [run.value("seconds") for run in runs.values()],
            "warnings": dict(Counter(re.sub(r"[\d.]+(e-?\d+)?", "#", w) for r in runs.values() for w in r.warnings)),
        }
        for metric in (METRIC, *ALSO):
            mean = results.of(group).table(metric)[arm]
            row[metric] = None if mean is None else vars(mean)
        for control in (ALONE, *CONTROLS):
            other = Arm(arm.method, control)
            if arm.plugin not in (ALONE, control) and other in results.arms():
                gap = results.paired(arm, other, METRIC)
                row[f"minus {control}"] = None if gap is None else {**vars(gap), "outcome": gap.outcome}
        arms[str(arm)] = {"method": arm.method, "plug-in": arm.plugin, **row}
    first = results.runs[0]
    return {
        "stream": str(group),
        "seeds": seeds,
        "config": config,
        "environment": first.environment,
        "test_sizes": list(first.test_sizes),
        "arms": arms,
        "command": f"unteach learn --config {config} --out {{folder}} --workers 2",
    }


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(result: dict[str, Any]) -> str:
    """Hosts down, plug-ins across: mean accuracy of the host, and paired differences in points."""
    arms = result["arms"].values()
    plugins = list(dict.fromkeys(a["plug-in"] for a in arms if a["plug-in"] != ALONE))
    plugins.sort(key=lambda p: (p in CONTROLS, p))
    lines = [_row(["host", "alone, %", *plugins]), "|" + "---|" * (2 + len(plugins))]
    for host in (a for a in arms if a["plug-in"] == ALONE):
        own = host[METRIC]
        cells = []
        for plugin in plugins:
            arm = next((a for a in arms if a["method"] == host["method"] and a["plug-in"] == plugin), None)
            if arm is None:
                cells.append("–")
                continue
            gap, lost = arm.get(f"minus {ALONE}"), len(arm["diverged"])
            if gap is None:
                cells.append("diverged")
                continue
            mark = {"better": " ▲", "worse": " ▼"}.get(gap["outcome"], "")
            cells.append(f"{100 * gap['mean']:+.1f}{mark}" + (f" ({lost} diverged)" if lost else ""))
        alone = "diverged" if own is None else f"{100 * own['mean']:.1f} ± {100 * (own['sd'] or 0):.1f}"
        lines.append(_row([host["method"], alone, *cells]))
    return "\n".join(lines)


def main() -> None:
    found = []
    for folder in sys.argv[1:]:
        name = Path(folder).name
        found.append(summarise(Path(folder), f"benchmarks/configs/{name}.yaml"))
    state.write_json(
        OUT, {"streams": found, "command": "python benchmarks/learning.py runs/learn-emoji runs/learn-digits"}
    )
    text = PAGE.read_text(encoding="utf-8")
    parts = [f"**{r['stream']}**, {len(r['seeds'])} seeds\n\n{table(r)}" for r in found]
    block = "<!-- results -->\n" + "\n\n".join(parts) + "\n<!-- end of results -->"
    text = re.sub(r"<!-- results -->(.*<!-- end of results -->)?", lambda _: block, text, count=1, flags=re.S)
    PAGE.write_text(text, encoding="utf-8")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
