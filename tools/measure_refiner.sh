#!/usr/bin/env bash
# E20 at the scale of a preset, in stages that can run one at a time and go on when cut:
#   tools/measure_refiner.sh OUT [people] [upsampled] [train] [measure] [pictures] [bench]   (default: all; preset small)
# people: TRAIN + VALIDATION people of VIEWS views of SIZE pixels, and their planes of full size under DECODER, each CHUNK fitted
# while others are made; upsampled: all of them, reduced and made large again, and the validation people as BOX makes them of their
# latents; train: VARIANTS: `refiner` as configured, `alone` (of fitted people alone), `apart` (views need not agree), `l1` (no
# perceptual loss), `adversary` (with one), `box` (that of BOX, which is only fetched); measure: each on held-out views of validation
# people, fitted and upsampled, and on those that BOX made; pictures: cuts and turns of the first; bench: what it costs, on a machine
# that does nothing else.
# PRESET, FIT_FLAGS, TRAIN_FLAGS, LIMIT, GPUS and PYTHON change the rest; people are drawn by the GPUs of SPREAD (default: the first).
set -uo pipefail
out=$1; shift
stages=${*:-people upsampled train measure pictures bench}
preset=${PRESET:-small} limit=${LIMIT:-64} box=${BOX:-data_samples/pretrained/small}
export TRAIN=${TRAIN:-128} VALIDATION=${VALIDATION:-32} VIEWS=${VIEWS:-24} SIZE=${SIZE:-1024} CHUNK=${CHUNK:-16}
export FIT_FLAGS="${FIT_FLAGS:- }"
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0} RUNS=${RUNS:-runs/refiner}
train_flags=${TRAIN_FLAGS:-} variants=(${VARIANTS:-refiner alone apart l1})
python=${PYTHON:-python3} runs=$(realpath -m "$RUNS") tools=$(dirname "$0")
gpus=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || echo 0)})
fitted=$runs/fitted captures=$runs/people/made made=$runs/upsampled
mkdir -p "$out" "$runs"
minirodin() { "$python" -m minirodin "$@"; }
each() {  # COMMAND WORD…: COMMAND WORD for every word, the next on whichever GPU is free
  printf '%s\n' "${@:2}" | xargs -P ${#gpus[@]} -I{} --process-slot-var=SLOT \
    bash -c 'gpus=('"${gpus[*]}"'); CUDA_VISIBLE_DEVICES=${gpus[SLOT]} '"$1 {}"
}
say() { echo "[$SECONDS s] $*"; }

people() { "$tools/measure_base.sh" "$out" data && mv "$out/base_planes.json" "$out/refiner_planes.json"; }
upsample() { minirodin upsample "$1" --model "$box/upsampler" --out "$made/$2" "${@:3}"; }
upsampled() {
  local known=$fitted/validation/latents.safetensors part
  for part in train validation; do upsample "$fitted/$part" $part --reduce || return; done
  minirodin encode "$box/encoder" "$runs/people/validation"/*/ --out "$known" &&
    minirodin sample "$box/base" --latents "$known" --count "$VALIDATION" --out "$runs/samples" && upsample "$runs/samples" generated
}
train_one() {
  local flags="--upsampled $made/train"
  case $1 in
    refiner) ;;
    alone) flags= ;;
    apart) flags+=" --refiner.consistency-weight 0" ;;
    l1) flags+=" --refiner.perceptual-weight 0" ;;
    adversary) flags+=" --refiner.adversarial-weight 0.003" ;;
    box) mkdir -p "$runs/box" && cp "$box/refiner/model.safetensors" "$runs/box/"; return ;;
    *) echo "unknown variant $1" >&2; return 1 ;;
  esac
  minirodin train refiner --data "$fitted/train" --captures "$captures" --validation "$fitted/validation" --preset "$preset" \
    --out "$runs/$1" $flags $train_flags && cp "$runs/$1/log.csv" "$out/log-$1.csv" && say "trained $1"
}
train() { each train_one "${variants[@]}"; }
measure_one() {
  "$python" - "$runs/$1" "$fitted/validation" "$made" "$captures" "$limit" "$out/refiner-$1.json" <<'P' && say "measured $1"
import sys
from pathlib import Path
from minirodin.evaluation import write_json
from minirodin.refiner import Refiner
from minirodin.refiner_evaluation import evaluate_refiner
model, people, made, captures, limit, out = sys.argv[1:]
refiner, made, limit = Refiner.load(model), Path(made), int(limit)
found = evaluate_refiner(refiner, people, captures, made / "generated", limit)
again = evaluate_refiner(refiner, made / "validation", captures, None, limit)
found["upsampled"] = {"mean": again["mean"], "consistency": again["consistency"], "frechet": again["frechet"]["fitted"]}
write_json(found, out)
P
}
measure() { each measure_one "${variants[@]}" && gather; }
gather() {  # what $out/refiner-*.json say, in one
  "$python" - "$out" "${variants[@]}" <<'P'
import json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out, found = Path(sys.argv[1]), {}
for name in sys.argv[2:]:
    one = json.loads((out / f"refiner-{name}.json").read_text())
    kinds = {key: one.pop(key) for key in ("mean", "consistency", "frechet", "upsampled")}
    found = {**one, "variants": {**found.get("variants", {}), name: kinds}}
write_json(found, out / "refiner.json")
P
}
pictures() {
  "$python" "$tools/refiner_pictures.py" --model "$runs/${variants[0]}" --people "$fitted/validation" --captures "$captures" \
    --out "$out" --generated "$made/generated"
}
bench() { minirodin bench refiner --preset "$preset" --out "$out/bench_refiner.json" >/dev/null; }
export -f minirodin say train_one measure_one
export out runs python preset fitted captures made train_flags limit box
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
