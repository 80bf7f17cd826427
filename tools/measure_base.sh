#!/usr/bin/env bash
# The ablation of the base diffusion model (E10-E12), in stages that can run one at a time and go on when cut:
#   tools/measure_base.sh OUT [people] [fit] [train] [sample] [steps] [collect]        (default: all; preset small)
# people: TRAIN + VALIDATION people of VIEWS views; fit: their planes at 64² under DECODER; train: VARIANTS for STEPS steps each,
# same data and seeds; sample: COUNT people of each variant, their sheets, and how they compare with validation people;
# steps: samplers and numbers of steps of the last variant; collect: one JSON. PRESET, FIT_FLAGS, TRAIN_FLAGS, PYTHON change the rest.
set -uo pipefail
out=$1; shift
stages=${*:-people fit train sample steps collect}
preset=${PRESET:-small} train=${TRAIN:-1024} validation=${VALIDATION:-128} views=${VIEWS:-24} size=${SIZE:-128} count=${COUNT:-128}
decoder=${DECODER:-data_samples/pretrained/small/decoder.safetensors}
fit_flags=${FIT_FLAGS:---triplane.resolution 64 --fit.resolutions 64 --fit.resolution-weights 1.0 --fit.group 256 --fit.rays 1024 --fit.steps 700}
variants=(${VARIANTS:-baseline rollout aware})
python=${PYTHON:-python3} runs=$(realpath -m "${RUNS:-runs/base}")
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0}
mkdir -p "$out" "$runs"
minirodin() { "$python" -m minirodin "$@"; }
say() { echo "[$SECONDS s] $*"; }

people() {
  minirodin avatars --count "$train" --views "$views" --size "$size" --seed 0 --out "$runs/people/train" &&
    minirodin avatars --count "$validation" --views "$views" --size "$size" --seed 1000000 --out "$runs/people/validation"
}
fit() {
  for kind in train validation; do
    minirodin fit "$runs/people/$kind" --preset "$preset" --decoder "$decoder" $fit_flags --out "$runs/fitted/$kind" || return
    say "fitted $kind"
  done
  minirodin evaluate "$runs/fitted/validation" "$runs/people/validation" --limit 32 --out "$out/base_planes.json"
}
train() {
  for variant in "${variants[@]}"; do
    minirodin train base --data "$runs/fitted/train" --validation "$runs/fitted/validation" --variant "$variant" --preset "$preset" \
      --out "$runs/$variant" ${TRAIN_FLAGS:-} || return
    cp "$runs/$variant/log.csv" "$out/log-$variant.csv"; say "trained $variant"
  done
}
sample() {
  for variant in "${variants[@]}"; do
    minirodin sample "$runs/$variant" --count "$count" --steps 50 --seed 0 --out "$runs/samples/$variant" &&
      minirodin compare "$runs/samples/$variant" "$runs/fitted/validation" --train "$runs/fitted/train" --out "$out/compare-$variant.json" || return
    cp "$runs/samples/$variant/sheet.png" "$out/sheet-$variant.png"; say "sampled $variant"
  done
}
steps() {
  local variant=${variants[-1]} way
  for way in ancestral-250 ancestral-50 ddim-50 ddim-20 dpm++-20 dpm++-10; do
    minirodin sample "$runs/$variant" --count "$count" --sampler "${way%-*}" --steps "${way#*-}" --out "$runs/samples/$way" &&
      minirodin compare "$runs/samples/$way" "$runs/fitted/validation" --train "$runs/fitted/train" --out "$out/steps-$way.json" || return
    say "sampled $way"
  done
}
collect() {
  "$python" - "$out" <<'P'
import csv, json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out = Path(sys.argv[1])
def gather(kind):
    found = {p.stem.removeprefix(kind): json.loads(p.read_text()) for p in sorted(out.glob(f"{kind}*.json"))}
    return {name: {k: v for k, v in r.items() if k not in ("date", "commit", "device")} for name, r in found.items()}, found
(variants, files), (ways, _) = gather("compare-"), gather("steps-")
for name, row in variants.items():
    log = list(csv.DictReader(open(out / f"log-{name}.csv")))
    row |= {"steps": int(log[-1]["step"]), "seconds": float(log[-1]["seconds"]), "validation_loss": float(log[-1]["validation"])}
first = next(iter(files.values()))
write_json({**{k: first[k] for k in ("date", "commit", "device")}, "variants": variants, "samplers": ways}, out / "base_ablation.json")
P
}
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
