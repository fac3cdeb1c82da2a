#!/usr/bin/env bash
# Train a recipe on all GPUs of this machine, or with PROCESSES=2 DEVICE=cpu on its processor.
#
#   examples/torchrun.sh recipes/pretrain-nano.yaml steps=500
#
# On several machines, start the same on each with the address of the first:
#
#   MACHINES=4 FIRST=node0:29500 examples/torchrun.sh recipes/pretrain-14b.yaml
#
# Run folders must lie where all machines see them. Ctrl-C ends after the step under way and saves;
# the same command goes on from there, on any number of processes.
set -euo pipefail

rendezvous=(--standalone)
if [ "${MACHINES:-1}" -gt 1 ]; then
    rendezvous=(--nnodes "$MACHINES" --rdzv-backend c10d --rdzv-endpoint "$FIRST")
fi
device=()
if [ -n "${DEVICE:-}" ]; then device=(--device "$DEVICE"); fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun "${rendezvous[@]}" --nproc-per-node "${PROCESSES:-gpu}" \
    -m nextstep train "$@" "${device[@]}"
