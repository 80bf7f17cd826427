#!/usr/bin/env bash
# E13-E16 at the scale of a preset, in stages that can run one at a time and go on when cut:
#   tools/measure_latent.sh OUT [portraits] [see] [people] [encode] [base] [prior] [judge]    (default: all; preset small)
# portraits: TRAIN_PORTRAITS + UNSEEN near-frontal people; see: the image-text encoder and the classifier that judges, one a GPU, and
# what they know of the unseen; people: those of tools/measure_base.sh, with planes; encode: their latents; base: the base model that
# these condition; prior: the model over latents; judge: portraits, prompts and edits of the unseen.
# PRESET, TRAIN, VALIDATION, ENCODER_FLAGS, CLASSIFIER_FLAGS, BASE_FLAGS, PRIOR_FLAGS, GPUS and PYTHON change the rest.
set -uo pipefail
out=$1; shift
stages=${*:-portraits see people encode base prior judge}
preset=${PRESET:-small} people=${TRAIN_PORTRAITS:-6000} unseen=${UNSEEN:-512} views=${PORTRAIT_VIEWS:-4} size=${PORTRAIT_SIZE:-96}
base_flags=${BASE_FLAGS:---base.train.steps 9000 --base.train.preview-every 3000 --base.train.checkpoint-every 250}
python=${PYTHON:-python3} runs=$(realpath -m "${RUNS:-runs/base}")
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0}
gpus=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || echo 0)})
mkdir -p "$out" "$runs/rodin"
minirodin() { "$python" -m minirodin "$@"; }
on() { CUDA_VISIBLE_DEVICES=${gpus[$1 % ${#gpus[@]}]} "$python" -m minirodin "${@:2}"; }  # GPU COMMAND…
say() { echo "[$SECONDS s] $*"; }

portraits() {
  minirodin avatars --portraits --count "$unseen" --seed 1700000 --views "$views" --size "$size" --out "$runs/portraits/unseen" &&
    minirodin avatars --portraits --count "$people" --seed 100000 --views "$views" --size "$size" --out "$runs/portraits/train"
}
see() {
  local data=(--data "$runs/portraits/train" --validation "$runs/portraits/unseen" --preset "$preset") encoder
  (on 0 train encoder "${data[@]}" --out "$runs/rodin/encoder" ${ENCODER_FLAGS:-} &&
    on 0 assess "$runs/rodin/encoder" "$runs/portraits/unseen" --out "$out/encoder.json" >/dev/null) & encoder=$!
  on 1 train classifier "${data[@]}" --out "$runs/classifier" ${CLASSIFIER_FLAGS:-} &&
    on 1 assess "$runs/classifier" "$runs/portraits/unseen" --out "$out/classifier.json" >/dev/null &&
    wait $encoder && cp "$runs/rodin/encoder/log.csv" "$out/log-encoder.csv" && cp "$runs/classifier/log.csv" "$out/log-classifier.csv"
}
people() { "$(dirname "$0")/measure_base.sh" "$out" data; }
encode() {
  local kind
  for kind in train validation; do
    on 0 encode "$runs/rodin/encoder" "$runs/people/$kind"/*/ --out "$runs/fitted/$kind/latents.safetensors" || return
  done
}
base() {
  on 0 train base --data "$runs/fitted/train" --validation "$runs/fitted/validation" --preset "$preset" --base.unet.latent 512 \
    --out "$runs/rodin/base" $base_flags && cp "$runs/rodin/base/log.csv" "$out/log-conditional.csv"
}
prior() {
  on 1 train latent --data "$runs/fitted/train/latents.safetensors" --validation "$runs/fitted/validation/latents.safetensors" \
    --preset "$preset" --out "$runs/rodin/latent" ${PRIOR_FLAGS:-} && cp "$runs/rodin/latent/log.csv" "$out/log-prior.csv"
}
judge() {
  on 0 judge "$runs/rodin" --classifier "$runs/classifier" --portraits "$runs/portraits/unseen" --out "$out/latent.json" ${JUDGE_FLAGS:-}
}
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
