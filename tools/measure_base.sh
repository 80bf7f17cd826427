#!/usr/bin/env bash
# The ablation of the base diffusion model (E10-E12), in stages that can run one at a time and go on when cut:
#   tools/measure_base.sh OUT [data] [study] [train] [sample] [steps] [compare] [gather] [collect] [bench]    (default:
#   all but study and gather; preset small)
# data: TRAIN + VALIDATION people of VIEWS views, and their planes at 64² under DECODER, each CHUNK fitted while others are made;
# study: STUDIES of `aware`, STUDY_STEPS each, 64 people of each, compared in JSONs of their own: settings joined by `_`, such
# as lr-1e-3_shift-2, `alike` (channels count alike), `rollout` (of equal weights), `narrow` (rolled out, of equal widths), `apart`
# (no attention); train: VARIANTS, same data, steps and seeds; sample: COUNT people of each variant and their sheets; steps: the same
# by other samplers and numbers of steps, of the last variant; compare: all these with validation people; gather: one JSON; collect:
# one with training, and a picture; bench: what convolution and training cost, on a machine that does nothing else.
# PRESET, FIRST (seed of the first to learn from), DETAIL (of people's skin), CHECKED (whose planes are measured), FIT_FLAGS, TRAIN_FLAGS and PYTHON change the rest. The GPUs
# (GPUS: which) share the chunks, then the variants; people are drawn by the GPUs of SPREAD (default: the first).
set -uo pipefail
out=$1; shift
stages=${*:-data train sample steps compare collect bench}
preset=${PRESET:-small} first=${FIRST:-0} train=${TRAIN:-1536} validation=${VALIDATION:-128} views=${VIEWS:-24} size=${SIZE:-128} chunk=${CHUNK:-128} count=${COUNT:-128} detail=${DETAIL:-2} checked=${CHECKED:-32}
decoder=${DECODER:-data_samples/pretrained/small/decoder.safetensors}
fit_flags=${FIT_FLAGS:---triplane.resolution 64 --fit.resolutions 64 --fit.resolution-weights 1.0 --fit.group $chunk --fit.rays 1024 --fit.steps 1000}
train_flags=${TRAIN_FLAGS:---base.train.steps 9000 --base.train.preview-every 3000 --base.train.checkpoint-every 250}
variants=(${VARIANTS:-baseline rollout aware})
studies=(${STUDIES:-alike_lr-1e-3_shift-0 lr-6e-4_shift-0 lr-1e-3_shift-0 lr-1e-3_shift-2 lr-1e-3_batch-32_steps-2000_shift-0
  lr-2e-3_shift-0 lr-2e-3_shift-2 lr-2e-3_batch-32_steps-2000_shift-0})
drawers=(${SPREAD:-0})
shares=${#drawers[@]}
python=${PYTHON:-python3} study_steps=${STUDY_STEPS:-1200} runs=$(realpath -m "${RUNS:-runs/base}")
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
  local start i chunks=() maker failed
  for ((start = 1000000; start < 1000000 + validation; start += chunk)); do add validation $start $((1000000 + validation)); done
  for ((start = 0; start < train; start += chunk)); do  # of every share some, as they are made
    for ((i = 0; i < shares; i++)); do add train $((first + train * i / shares + start)) $((first + train * (i + 1) / shares)); done
  done
  make_all & maker=$!
  export maker
  each fit_one "${chunks[@]}"; failed=$?
  wait $maker && [ $failed = 0 ] || return
  minirodin evaluate "$runs/fitted/validation" "$runs/people/${chunks[0]}" --limit "$checked" --out "$out/base_planes.json" >/dev/null
}
add() { (($2 >= $3)) || chunks+=("$1/$2-$(($3 - $2 < chunk ? $3 - $2 : chunk))"); }  # KIND FIRST END
make_all() {  # the validation people, then a share of the others on each of the GPUs of SPREAD
  local i jobs=() job
  make_some 1000000 "$validation" "${drawers[0]}" "$(nproc)" || return
  for ((i = 0; i < shares; i++)); do
    make_some $((first + train * i / shares)) $((train * (i + 1) / shares - train * i / shares)) "${drawers[i]}" $((($(nproc) + shares - 1) / shares)) &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || return; done
}
make_some() {  # FIRST COUNT GPU WORKERS
  [ -z "${SPREAD:-}" ] || export GLCONTEXT_DEVICE_INDEX=$3
  minirodin avatars --count "$2" --seed "$1" --views "$views" --size "$size" --detail "$detail" --workers "$4" --out "$runs/people/made"
}
fit_one() {  # KIND/FIRST-COUNT, as soon as its people are made
  local name=${1#*/} seed people=$runs/people/$1
  mkdir -p "$people"
  for seed in $(seq -f %06.f "${name%-*}" $((${name%-*} + ${name#*-} - 1))); do
    while [ ! -d "$runs/people/made/$seed" ] && kill -0 "$maker" 2>/dev/null; do sleep 1; done
    [ -d "$runs/people/made/$seed" ] && ln -sfn "$runs/people/made/$seed" "$people/$seed" || return
  done
  minirodin fit "$people" --preset "$preset" --decoder "$decoder" $fit_flags --out "$runs/fitted/${1%/*}" >/dev/null && say "fitted $1"
}
train_one() {
  minirodin train base --data "$runs/fitted/train" --validation "$runs/fitted/validation" --variant "$1" --preset "$preset" \
    --out "$runs/$1" $train_flags && cp "$runs/$1/log.csv" "$out/log-$1.csv" && say "trained $1"
}
train() { each train_one "${variants[@]}"; }
study_one() {
  local flags part
  for part in ${1//_/ }; do
    case $part in
      alike) flags+=" --base.no-visible" ;;
      lr-*) flags+=" --base.train.lr ${part#lr-}" ;;
      batch-*) flags+=" --base.train.batch ${part#batch-}" ;;
      steps-*) flags+=" --base.train.steps ${part#steps-} --base.train.preview-every ${part#steps-}" ;;
      shift-*) flags+=" --base.diffusion.schedule cosine --base.diffusion.shift ${part#shift-}" ;;
      rollout) flags+=" --variant rollout" ;;
      narrow) flags+=" --variant rollout --base.unet.variant rollout" ;;
      apart) flags+=" --base.unet.attention 0" ;;
      *) echo "unknown study $1" >&2; return 1 ;;
    esac
  done
  minirodin train base --data "$runs/fitted/train" --validation "$runs/fitted/validation" --preset "$preset" \
    --out "$runs/study/$1" $train_flags --base.train.steps "$study_steps" --base.train.preview-every "$study_steps" ${flags-} &&
    cp "$runs/study/$1/log.csv" "$out/study-$1.csv" && say "studied $1" &&
    minirodin sample "$runs/study/$1" --count 64 --sampler dpm++ --steps 50 --out "$runs/studied/$1" &&
    jpeg "$runs/studied/$1/sheet.png" "$out/study-$1.jpg" &&
    minirodin compare "$runs/studied/$1" --real "$runs/fitted/validation" --train "$runs/fitted/some" --out "$out/study-$1.json" >/dev/null
}
study() {
  local some=("$runs"/fitted/train/planes-*)
  mkdir -p "$runs/fitted/some"  # of the people that all studies learn from: enough to compare with
  ln -sf "$runs/fitted/train/decoder.safetensors" "${some[0]}" "$runs/fitted/some/"
  each study_one "${studies[@]}" && merge study study base_study
}
merge() {  # COMPARISONS LOGS NAME: what $out/COMPARISONS-*.json and the ends of $out/LOGS-*.csv say, in $out/NAME.json
  "$python" - "$out" "$@" <<'P'
import csv, json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out, (comparisons, logs, name) = Path(sys.argv[1]), sys.argv[2:]
merged, training = {}, {}
for path in sorted(out.glob(f"{comparisons}-*.json")):
    one = json.loads(path.read_text())
    merged = {**one, "samples": {**merged.get("samples", {}), **one["samples"]}}
for path in sorted(out.glob(f"{logs}-*.csv")):
    last = list(csv.DictReader(open(path)))[-1]
    if not last.get("validation"):
        sys.exit(f"error: {path} ends at step {last['step']}: train it to the end first")
    numbers = {key: float(value) for key, value in last.items() if key.startswith(("seconds", "validation", "trained"))}
    training[path.stem.split("-", 1)[1]] = {"steps": int(last["step"]), **numbers}
write_json({**merged, "training": training}, out / f"{name}.json")
P
}
sample_one() {  # VARIANT-SAMPLER-STEPS
  local sampler=${1#*-}
  minirodin sample "$runs/${1%%-*}" --count "$count" --sampler "${sampler%-*}" --steps "${sampler##*-}" --out "$runs/samples/$1" &&
    jpeg "$runs/samples/$1/sheet.png" "$out/base-${1//+/p}.jpg" && say "sampled $1"
}
sample() { each sample_one "${variants[@]/%/-dpm++-50}"; }
steps() { each sample_one "${variants[-1]}"-{ancestral-250,ancestral-50,ddim-50,ddim-20,dpm++-20,dpm++-10}; }
compare() {  # a share of the sets on each GPU
  local sets=("$runs"/samples/*) shares=() i
  for i in "${!sets[@]}"; do shares[i % ${#gpus[@]}]+=",${sets[i]##*/}"; done
  rm -f "$out"/compare-*.json
  each compare_some "${shares[@]}"
}
compare_some() {  # ,SET,SET…
  local sets
  IFS=, read -ra sets <<<"${1#,}"
  minirodin compare "${sets[@]/#/$runs/samples/}" --real "$runs/fitted/validation" --train "$runs/fitted/train" \
    --out "$out/compare-${sets[0]//+/p}.json" >/dev/null
}
gather() { merge compare log compared; }
collect() {
  merge compare log base_ablation &&
    "$python" - "$out" "$runs/fitted/validation" <<'P'
import sys
from pathlib import Path
import imageio.v3 as image
import numpy as np
from minirodin.avatar import Avatar, to_rgb
from minirodin.plots import contact_sheet
from minirodin.shards import FittedPlanes
out, real = Path(sys.argv[1]), Path(sys.argv[2])
people = [Avatar.load(real / name) for name in FittedPlanes(real).names[4:8]]
contact_sheet([to_rgb(person.render(azimuth, 5)).cpu() for person in people for azimuth in (0.0, 60.0)], 8, out / "real.png")
sheets = [image.imread(out / f"base-{variant}-dpmpp-50.jpg") for variant in ("baseline", "rollout", "aware")]
rows = [sheet[len(sheet) // 4 : len(sheet) // 2 + 4] for sheet in sheets]
rows.append(image.imread(out / "real.png")[: len(rows[0]), :, :3])
image.imwrite(out / "base_variants.jpg", np.concatenate(rows), quality=88)
P
}
bench() {
  minirodin bench conv --out "$out/bench_conv.json" >/dev/null &&
    for p in small full; do minirodin bench unet --preset $p --out "$out/bench_unet_$p.json" >/dev/null || return; done
}
export -f minirodin say jpeg fit_one train_one study_one sample_one compare_some
export out runs python preset count views size decoder fit_flags train_flags study_steps
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
