#!/usr/bin/env bash
# Writes one small artefact of every kind with the code of this checkout: tests/regression/make.sh FOLDER
# Run it before a release and commit the folder under the release's number; tests/regression/ then asks that
# every later version reads it, or refuses it with a clear word. Needs: an environment in which `unteach` runs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "$1"
cd "$1"
export PYTHONPATH="$here/src:$here" OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0 HF_HUB_OFFLINE=1
python=${PYTHON:-python}
unteach() { "$python" -m unteach.cli "$@"; }

"$python" - <<'PY'
import json
from pathlib import Path
from tests.toys import build
from tests.test_guard_cli import pictures
from unteach.diffusion import load

build("sd", Path("toy"))
pictures(Path("bad"), range(0, 8))
pictures(Path("good"), range(8, 16))
Path("digests.json").write_text(json.dumps({"toy": load("toy").digest()}) + "\n", encoding="utf-8")
PY

concept=(--target twemoji --anchor openmoji --kind style --prompts "a {} dog" "{} cat")
quick=(steps=4 warm_up=1 batch=2 lr=0.01 d_width=8 images=4 retain_images=4 num_inference_steps=2)
unteach erase --model toy "${concept[@]}" --method doco --set "${quick[@]}" --out doco
unteach erase --model toy "${concept[@]}" --retain "a noto cat" --method uce --out uce
"$python" - <<'PY'
from unteach.diffusion import WeightDelta

WeightDelta.load("uce/delta.safetensors").to_lora(4, "lora")
PY
unteach evaluate --run uce --out evaluation --num-inference-steps 2 --seeds 1 2

mask=(steps=2 relearn_steps=2 batch_size=2 scale=raw rho=0.2)
unteach guard learn --model toy --illegal bad --innocent good --erased uce --set "${mask[@]}" --policy no-guitars --seed 1 --out guard
unteach guard keygen --out keys
unteach guard apply guard --out published --key keys/guard-private.pem
rm keys/guard-private.pem
unteach attack relearn --guard guard --illegal bad --innocent good --steps 1 2 --batch-size 2 --draws 1 --ignore --out attack

cat > grid.yaml <<'YAML'
title: A small grid
stream: digits
network: mlp
network_options: {hidden: [8]}
training: {epochs: 1, batch_size: 64, lr: 0.05}
methods: [fine-tune, {method: er, buffer: 20, label: er 20}]
plugins: [none, {plug-in: reweight, ratio: 0.5}]
seeds: [0]
YAML
unteach learn --config grid.yaml --out learn
rm -f learn/report.html
