#!/usr/bin/env bash
# E20 at the scale of a preset, in stages that can run one at a time and go on when cut:
#   tools/measure_refiner.sh OUT [people] [train] [measure] [pictures] [bench]   (default: all; preset small)
# people: TRAIN + VALIDATION people of VIEWS views of SIZE pixels, and their planes of full size under DECODER, each CHUNK fitted
# while others are made; train: VARIANTS: `refiner` as configured, `apart` (views need not agree), `l1` (no perceptual loss);
# measure: each on held-out views of validation people, and on GENERATED people (a folder of planes of the same decoder; none:
# fitted people alone); pictures: cuts and turns of the first; bench: what it costs, on a machine that does nothing else.
# PRESET, FIT_FLAGS, TRAIN_FLAGS, LIMIT, GPUS and PYTHON change the rest; people are drawn by the GPUs of SPREAD (default: the first).
set -uo pipefail
out=$1; shift
stages=${*:-people train measure pictures bench}
preset=${PRESET:-small} limit=${LIMIT:-64} generated=${GENERATED:-}
export TRAIN=${TRAIN:-128} VALIDATION=${VALIDATION:-32} VIEWS=${VIEWS:-24} SIZE=${SIZE:-1024} CHUNK=${CHUNK:-16}
export FIT_FLAGS="${FIT_FLAGS:- }"
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0} RUNS=${RUNS:-runs/refiner}
train_flags=${TRAIN_FLAGS:-} variants=(${VARIANTS:-refiner apart l1})
python=${PYTHON:-python3} runs=$(realpath -m "$RUNS") tools=$(dirname "$0")
gpus=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || echo 0)})
fitted=$runs/fitted captures=$runs/people/made
mkdir -p "$out" "$runs"
minirodin() { "$python" -m minirodin "$@"; }
each() {  # COMMAND WORD…: COMMAND WORD for every word, the next on whichever GPU is free
  printf '%s\n' "${@:2}" | xargs -P ${#gpus[@]} -I{} --process-slot-var=SLOT \
    bash -c 'gpus=('"${gpus[*]}"'); CUDA_VISIBLE_DEVICES=${gpus[SLOT]} '"$1 {}"
}
say() { echo "[$SECONDS s] $*"; }

people() { "$tools/measure_base.sh" "$out" data && mv "$out/base_planes.json" "$out/refiner_planes.json"; }
train_one() {
  local flags
  case $1 in
    refiner) flags= ;;
    apart) flags="--refiner.consistency-weight 0" ;;
    l1) flags="--refiner.perceptual-weight 0" ;;
    *) echo "unknown variant $1" >&2; return 1 ;;
  esac
  minirodin train refiner --data "$fitted/train" --captures "$captures" --validation "$fitted/validation" --preset "$preset" \
    --out "$runs/$1" $flags $train_flags && cp "$runs/$1/log.csv" "$out/log-$1.csv" && say "trained $1"
}
train() { each train_one "${variants[@]}"; }
measure_one() {
  "$python" - "$runs/$1" "$fitted/validation" "$captures" "$generated" "$limit" "$out/refiner-$1.json" <<'P' && say "measured $1"
import sys
from minirodin.evaluation import write_json
from minirodin.refiner import Refiner
from minirodin.refiner_evaluation import evaluate_refiner
model, people, captures, generated, limit, out = sys.argv[1:]
write_json(evaluate_refiner(Refiner.load(model), people, captures, generated or None, int(limit)), out)
P
}
measure() { each measure_one "${variants[@]}"; }
pictures() {
  "$python" "$tools/refiner_pictures.py" --model "$runs/${variants[0]}" --people "$fitted/validation" --captures "$captures" \
    --out "$out" ${generated:+--generated "$generated"}
}
bench() { minirodin bench refiner --preset "$preset" --out "$out/bench_refiner.json" >/dev/null; }
export -f minirodin say train_one measure_one
export out runs python preset fitted captures train_flags generated limit
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
