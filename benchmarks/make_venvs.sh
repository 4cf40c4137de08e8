#!/usr/bin/env bash
# Make the virtual environments of bench_train.py's other contenders: bash benchmarks/make_venvs.sh FOLDER
# TORCH picks another torch, PYTHON another interpreter (3.11 or newer). LLaMA-Factory is installed without torchvision
# and torchaudio, which text does not need and which have no build beside a CPU torch.
set -euo pipefail
folder="${1:?用法：bash benchmarks/make_venvs.sh 文件夹}"
torch="${TORCH:-torch==2.13.0}"
for name in plain trl llamafactory; do
    [ -x "$folder/$name/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder/$name"
    "$folder/$name/bin/python" -m pip install -q "$torch"
done
"$folder/plain/bin/python" -m pip install -q "transformers==5.20.2" accelerate peft bitsandbytes
"$folder/trl/bin/python" -m pip install -q "trl==1.16.0"
lf="$folder/llamafactory/bin/python"
"$lf" -m pip install -q --no-deps "llamafactory==0.9.5"
# Its own needs, read from its metadata, less the two.
"$lf" - <<'PY' > "$folder/llamafactory-needs.txt"
from importlib.metadata import requires
for need in requires("llamafactory"):
    if ";" not in need and not need.startswith(("torchvision", "torchaudio")):
        print(need)
PY
"$lf" -m pip install -q -r "$folder/llamafactory-needs.txt"
for name in plain trl llamafactory; do
    echo "$name: $("$folder/$name/bin/python" -m pip freeze | grep -iE '^(torch|transformers|trl|accelerate|peft|llamafactory)==' | tr '\n' ' ')"
done
