#!/usr/bin/env bash
# Fitting and training on 1, 2, 4 … GPUs of one machine, in stages that can run one at a time:
#   tools/measure_scaling.sh OUT [people] [fit] [base] [upsampler] [gather]   (default: all; preset small)
# people: PEOPLE of VIEWS views; fit: their planes of full size, a group of GROUP on a GPU at a time; base, upsampler: the first steps
# of training, of one global batch (BASE_BATCH, UPSAMPLER_BATCH) whatever the number of GPUs; gather: scaling.json and scaling.png.
# COUNTS (numbers of GPUs, the first of which the others are compared with), PRESET, FIT_FLAGS, BASE_FLAGS, UPSAMPLER_FLAGS, LOG_EVERY
# and PYTHON change the rest.
set -uo pipefail
out=$1; shift
stages=${*:-people fit base upsampler gather}
counts=(${COUNTS:-1 2 4})
preset=${PRESET:-small} decoder=${DECODER:-data_samples/pretrained/small/decoder.safetensors} group=${GROUP:-32}
fit_flags=${FIT_FLAGS:---fit.steps 500}
base_flags=${BASE_FLAGS:---base.train.steps 400}
upsampler_flags=${UPSAMPLER_FLAGS:---upsampler.train.steps 200}
python=${PYTHON:-python3} runs=$(realpath -m "${RUNS:-runs/scaling}") tools=$(dirname "$0")
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0}
mkdir -p "$out" "$runs"
on() {  # GPUS COMMAND…: as many processes
  local launch=(-m torch.distributed.run --standalone --nproc-per-node "$1" -m minirodin)
  [ "$1" != 1 ] || launch=(-m minirodin)
  CUDA_VISIBLE_DEVICES=$(seq -s, 0 $(($1 - 1))) "$python" "${launch[@]}" "${@:2}"
}
people() {
  on 1 avatars --count "${PEOPLE:-128}" --seed 0 --views "${VIEWS:-24}" --size "${SIZE:-256}" --workers "$(nproc)" --out "$runs/people"
}
fit() {
  local n start
  for n in "${counts[@]}"; do
    rm -rf "$runs/fitted-$n"
    start=$(date +%s%3N)
    on "$n" fit "$runs/people" --preset "$preset" --decoder "$decoder" --fit.group "$group" $fit_flags --out "$runs/fitted-$n" >/dev/null || return
    echo "$(($(date +%s%3N) - start))" >"$runs/fitted-$n/milliseconds"
  done
}
train() {  # WHAT BATCH FLAG…
  local n
  for n in "${counts[@]}"; do
    rm -rf "$runs/$1-$n"
    on "$n" train "$1" --data "$runs/fitted-${counts[0]}" --preset "$preset" --out "$runs/$1-$n" --$1.train.batch "$2" --$1.train.log-every "${LOG_EVERY:-20}" \
      --$1.train.preview-every 99999 --$1.train.checkpoint-every 99999 "${@:3}" >/dev/null || return
  done
}
base() { train base "${BASE_BATCH:-256}" $base_flags; }
upsampler() { train upsampler "${UPSAMPLER_BATCH:-64}" $upsampler_flags; }
gather() { "$python" "$tools/scaling_picture.py" --runs "$runs" --counts "${counts[@]}" --out "$out"; }
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  echo "[$SECONDS s] $stage done"
done
