#!/usr/bin/env bash
# The whole reproduction on one machine with several GPUs; the same command goes on where it ended:
#   bash launch/one_node.sh OUT [PRESET] [GPUS]
# Instead of torchrun, accelerate does: accelerate launch --multi_gpu --num_processes GPUS -m minirodin reproduce …
set -euo pipefail
out=$1 preset=${2:-full} gpus=${3:-$(nvidia-smi --list-gpus | wc -l)}

minirodin plan --preset "$preset" --gpus "$gpus" # what it will take, and what would not fit
torchrun --standalone --nproc-per-node "$gpus" -m minirodin reproduce --out "$out" --preset "$preset"
