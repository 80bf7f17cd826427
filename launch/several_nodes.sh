#!/usr/bin/env bash
# One training on several machines that see the same folders. On each of them, with its own number for NODE:
#   NODES=2 NODE=0 HEAD=name-of-machine-0 bash launch/several_nodes.sh WHAT DATA OUT [FLAGS of minirodin train]
# The batch of the preset is shared by all GPUs. If a machine dies, end the others and start the same command again:
# training goes on from its last checkpoint, also on another number of GPUs that divides the batch.
set -euo pipefail
what=$1 data=$2 out=$3
shift 3
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$gpus" --master-addr "$HEAD" --master-port 29500 \
  -m minirodin train "$what" --data "$data" --out "$out" --preset full "$@"
