#!/usr/bin/env bash
# The ablation of the base diffusion model (E10-E12), in stages that can run one at a time and go on when cut:
#   tools/measure_base.sh OUT [data] [study] [train] [sample] [steps] [compare] [collect] [bench]    (default: all but
#   study; preset small)
# data: TRAIN + VALIDATION people of VIEWS views, and their planes at 64² under DECODER, each CHUNK fitted while the next is made;
# study: STUDIES, settings of `aware` that change what is learned from each step (also lr-X, batch-N), STUDY_STEPS each,
# compared in a JSON of their own; train: VARIANTS, same data, steps and seeds; sample: COUNT people of each variant and their
# sheets; steps: the same by other samplers and numbers of steps, of the last variant; compare: all these with validation
# people; collect: one JSON; bench: what convolution and training cost, on a machine that does nothing else.
# PRESET, FIT_FLAGS, TRAIN_FLAGS and PYTHON change the rest. The GPUs (GPUS: which) share the chunks, then the variants.
set -uo pipefail
out=$1; shift
stages=${*:-data train sample steps compare collect bench}
preset=${PRESET:-small} train=${TRAIN:-1024} validation=${VALIDATION:-128} views=${VIEWS:-24} size=${SIZE:-128} chunk=${CHUNK:-256} count=${COUNT:-128}
decoder=${DECODER:-data_samples/pretrained/small/decoder.safetensors}
fit_flags=${FIT_FLAGS:---triplane.resolution 64 --fit.resolutions 64 --fit.resolution-weights 1.0 --fit.group $chunk --fit.rays 1024 --fit.steps 1000}
train_flags=${TRAIN_FLAGS:---base.train.steps 10000 --base.train.warmup 200 --base.train.lr 3e-4 --base.train.preview-every 5000 --base.train.checkpoint-every 250}
variants=(${VARIANTS:-baseline rollout aware}) studies=(${STUDIES:-alike visible visible-linear visible-shifted})
python=${PYTHON:-python3} study_steps=${STUDY_STEPS:-2000} runs=$(realpath -m "${RUNS:-runs/base}")
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0}
mkdir -p "$out" "$runs"
gpus=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || echo 0)})
minirodin() { "$python" -m minirodin "$@"; }
each() {  # COMMAND WORD…: COMMAND WORD for every word, the next on whichever GPU is free
  printf '%s\n' "${@:2}" | xargs -P ${#gpus[@]} -I{} --process-slot-var=SLOT \
    bash -c 'gpus=('"${gpus[*]}"'); CUDA_VISIBLE_DEVICES=${gpus[SLOT]} '"$1 {}"
}
jpeg() { "$python" -c 'import sys, imageio.v3 as i; i.imwrite(sys.argv[2], i.imread(sys.argv[1])[..., :3], quality=88)' "$1" "$2"; }
say() { echo "[$SECONDS s] $*"; }

data() {
  local kind first last start chunks=() maker failed
  for kind in validation train; do
    first=0; [ $kind = train ] || first=1000000
    last=$((first + ${!kind}))
    for ((start = first; start < last; start += chunk)); do
      chunks+=("$kind/$start-$((last - start < chunk ? last - start : chunk))")
    done
  done
  mkdir -p "$runs/people"/{train,validation}
  printf '%s\n' "${chunks[@]}" | xargs -P 2 -I{} bash -c 'make_one {}' & maker=$!  # two: one starts while one ends
  export maker
  each fit_one "${chunks[@]}"; failed=$?
  wait $maker && [ $failed = 0 ] || return
  minirodin evaluate "$runs/fitted/validation" "$runs/people/${chunks[0]}" --limit 32 --out "$out/base_planes.json" >/dev/null
}
make_one() {  # KIND/SEED-COUNT
  local name=${1#*/}
  minirodin avatars --count "${name#*-}" --seed "${name%-*}" --views "$views" --size "$size" --out "$runs/people/$1" &&
    touch "$runs/people/$1.made"
}
fit_one() {
  while [ ! -f "$runs/people/$1.made" ] && kill -0 "$maker" 2>/dev/null; do sleep 1; done
  [ -f "$runs/people/$1.made" ] || return
  minirodin fit "$runs/people/$1" --preset "$preset" --decoder "$decoder" $fit_flags --out "$runs/fitted/${1%/*}" >/dev/null && say "fitted $1"
}
train_one() {
  minirodin train base --data "$runs/fitted/train" --validation "$runs/fitted/validation" --variant "$1" --preset "$preset" \
    --out "$runs/$1" $train_flags && cp "$runs/$1/log.csv" "$out/log-$1.csv" && say "trained $1"
}
train() { each train_one "${variants[@]}"; }
study_one() {
  local flags
  case $1 in
    alike) flags="--base.no-visible --base.diffusion.schedule cosine --base.diffusion.shift -1" ;;
    visible) flags="--base.diffusion.schedule cosine --base.diffusion.shift -1" ;;
    visible-linear) flags="--base.diffusion.schedule linear --base.diffusion.shift 0" ;;
    visible-shifted) flags="--base.diffusion.schedule cosine --base.diffusion.shift 0" ;;
    lr-*) flags="--base.train.lr ${1#lr-}" ;;
    batch-*) flags="--base.train.batch ${1#batch-}" ;;
    *) echo "unknown study $1" >&2; return 1 ;;
  esac
  minirodin train base --data "$runs/fitted/train" --validation "$runs/fitted/validation" --preset "$preset" \
    --out "$runs/study/$1" $train_flags --base.train.steps "$study_steps" --base.train.preview-every "$study_steps" $flags &&
    cp "$runs/study/$1/log.csv" "$out/study-$1.csv" &&
    minirodin sample "$runs/study/$1" --count 64 --sampler dpm++ --steps 50 --out "$runs/studied/$1" &&
    jpeg "$runs/studied/$1/sheet.png" "$out/study-$1.jpg" && say "studied $1"
}
study() {
  each study_one "${studies[@]}" &&
    minirodin compare "$runs"/studied/* --real "$runs/fitted/validation" --train "$runs/fitted/train" --out "$out/base_study.json" >/dev/null
}
sample_one() {  # VARIANT-SAMPLER-STEPS
  local sampler=${1#*-}
  minirodin sample "$runs/${1%%-*}" --count "$count" --sampler "${sampler%-*}" --steps "${sampler##*-}" --out "$runs/samples/$1" &&
    jpeg "$runs/samples/$1/sheet.png" "$out/base-${1//+/p}.jpg" && say "sampled $1"
}
sample() { each sample_one "${variants[@]/%/-dpm++-50}"; }
steps() { each sample_one "${variants[-1]}"-{ancestral-250,ancestral-50,ddim-50,ddim-20,dpm++-20,dpm++-10}; }
compare() { minirodin compare "$runs"/samples/* --real "$runs/fitted/validation" --train "$runs/fitted/train" --out "$out/compare.json" >/dev/null; }
collect() {
  "$python" - "$out" <<'P'
import csv, json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out = Path(sys.argv[1])
result = {**json.loads((out / "compare.json").read_text()), "training": {}}
for path in sorted(out.glob("log-*.csv")):
    last = list(csv.DictReader(open(path)))[-1]
    if not last.get("validation"):
        sys.exit(f"error: {path} ends at step {last['step']}: train it to the end first")
    result["training"][path.stem[4:]] = {"steps": int(last["step"]), "seconds": float(last["seconds"]), "validation_loss": float(last["validation"])}
write_json(result, out / "base_ablation.json")
P
}
bench() {
  minirodin bench conv --out "$out/bench_conv.json" >/dev/null &&
    for p in small full; do minirodin bench unet --preset $p --out "$out/bench_unet_$p.json" >/dev/null || return; done
}
export -f minirodin say jpeg make_one fit_one train_one study_one sample_one
export out runs python preset count views size decoder fit_flags train_flags study_steps
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
