#!/usr/bin/env bash
# The final stages of the core world's training in one command of at most 9 minutes, on one CUDA GPU
# with some processor cores and no network: core-144, then the full edition, both beside core-48.
#   scripts/train_on_gpu.sh [folder for what comes back; default $OUT, else runs/gpu]
# PYTHON names the interpreter (python3), MINUTES the time for everything (9).
# REHEARSE=1 runs the same on a CPU with smaller steps, REHEARSE=tiny its smallest form.
# Nothing is installed: what is missing is told before anything starts, and exit status 2.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} minutes=${MINUTES:-9}
out=${1:-${OUT:-runs/gpu}}
mkdir -p "$out"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
"$python" -c "import pydantic" 2>/dev/null || PYTHONPATH="$PWD/scripts/without_pydantic:$PYTHONPATH"
seconds=$("$python" -c "import sys; print(int(60 * float(sys.argv[1])) - 4)" "$minutes") || exit 2
timeout --kill-after=3 "$seconds" "$python" scripts/train_on_gpu.py "$out" --minutes "$minutes" \
  ${REHEARSE:+--rehearse "$REHEARSE"} 2>&1 | tee "$out/console.log"
exit "${PIPESTATUS[0]}"
