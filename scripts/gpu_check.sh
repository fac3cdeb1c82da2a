#!/usr/bin/env bash
# What one CUDA GPU shows, without a network and in at most 8 minutes: parity with both recordings (fp32, bf16), graphs
# against plain calls, seconds a picture and a training step with their shares of the device, peak memory.
# Prints one line of JSON; a part that fails or runs out of time says so in it, and the exit status is 1.
#   scripts/gpu_check.sh [python] [folder of a second recording]
# With REHEARSE=1 the same on a CPU with nano: tests are collected, and the programs run with their options.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
golden=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

# Name, most seconds, command; what it prints last is the part's result.
part() {
  local name=$1 most=$2
  shift 2
  timeout "$most" "$@" >"$work/$name.out" 2>"$work/$name.err"
  echo $? >"$work/$name.status"
}
tests=() pictures=() training=(--model 0.5b --device cuda --precision bf16 --row-length 1024 --rows 8 --repeats 5)
if [ -n "${REHEARSE:-}" ]; then
  tests=(--collect-only) pictures=(--device cpu --models nano --seconds 1)
  training=(--model nano --device cpu --precision fp32 --row-length 256 --rows 2 --repeats 1)
fi
part tests 150 "$python" -m pytest -q -m gpu tests/parity tests/engine/backends ${golden:+--golden="$golden"} "${tests[@]}"
part pictures 220 "$python" benchmarks/gpu.py --seconds 20 "${pictures[@]}"
part training 90 "$python" benchmarks/train_step.py "${training[@]}" --no-unpacked --json

"$python" - "$work" <<'END'
import json
import os
import sys
from pathlib import Path

work, told, failed = Path(sys.argv[1]), {}, False
for name in ("tests", "pictures", "training"):
    status = int((work / f"{name}.status").read_text())
    lines = (work / f"{name}.out").read_text().strip().splitlines() or [""]
    errors = (work / f"{name}.err").read_text().strip().splitlines() or [""]
    if status == 0:
        told[name] = lines[-1] if name == "tests" else json.loads(lines[-1])
        # A machine without a device collects the tests and skips them all.
        done = "passed" in lines[-1] or ("REHEARSE" in os.environ and "collected" in lines[-1])
        failed |= name == "tests" and not done
    else:
        why = "out of time" if status == 124 else lines[-1] if name == "tests" else errors[-1]
        told[name], failed = {"failed": why}, True
print(json.dumps(told))
sys.exit(failed)
END
