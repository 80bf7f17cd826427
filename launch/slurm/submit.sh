#!/usr/bin/env bash
# Everything at full size on a SLURM cluster, each job after those it needs, in a folder that all nodes see:
#   bash launch/slurm/submit.sh /shared/rodin
# Jobs can be killed, requeued and submitted again: what is done is kept. Time limits, accounts and partitions are yours
# to set (sbatch reads SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT); `minirodin plan --preset full` says how much.
set -euo pipefail
export ROOT=$1
here=$(dirname "$(realpath "$0")")
submit() { # AFTER FILE [NAME=VALUE …]: a job after others (ids joined by `:`), with these variables; prints its id
  local after=$1 file=$2
  shift 2
  env "$@" sbatch --parsable --export=ALL ${after:+--dependency=afterok:$after} "$here/$file"
}

people=$(submit "" people.sbatch KIND=people/train FIRST=0 EACH=1000)
unseen=$(submit "" people.sbatch KIND=people/unseen FIRST=1000000 EACH=10)
portraits=$(submit "" people.sbatch KIND=portraits/train FIRST=100000 EACH=1000)
decoder=$(submit "$people:$unseen" decoder.sbatch)
small=$(submit "$decoder" fit.sbatch KIND=base PART=train):$(submit "$decoder" fit.sbatch KIND=base PART=unseen)
large=$(submit "$decoder" fit.sbatch KIND=upsampler PART=train):$(submit "$decoder" fit.sbatch KIND=upsampler PART=unseen)
encoder=$(submit "$portraits" train.sbatch WHAT=encoder)
latents=$(submit "$encoder:$small" encode.sbatch)
submit "$latents" train.sbatch WHAT=latent
submit "$latents" train.sbatch WHAT=base
submit "$large" train.sbatch WHAT=upsampler
