#!/usr/bin/env bash
# E17-E19 at the scale of a preset, in stages that can run one at a time and go on when cut:
#   tools/measure_upsampler.sh OUT [people] [samples] [tune] [train] [clean] [generated] [pictures] [bench]   (default: all; preset small)
# people: TRAIN + VALIDATION people of VIEWS views, and their planes of full size under DECODER, each CHUNK fitted while others are
# made, and their latents by ENCODER; samples: the validation people as BASE, the base model, makes them of their latents; tune: how
# strongly planes are spoiled to look like these; train: VARIANTS: `plain` (E17 alone), `perceptual` (with E19), `spoiled` (with E18
# too, as tuned); clean: validation people, reduced and made large again by each and by interpolation, on held-out views; generated:
# those of BASE, before and after, compared with real people; pictures: what comes out; bench: what it costs, on a machine that does
# nothing else.
# PRESET, FIT_FLAGS, TRAIN_FLAGS, GPUS and PYTHON change the rest; people are drawn by the GPUs of SPREAD (default: the first).
set -uo pipefail
out=$1; shift
stages=${*:-people samples tune train clean generated pictures bench}
preset=${PRESET:-small} box=data_samples/pretrained/small
base=${BASE:-$box/base} encoder=${ENCODER:-$box/encoder}
export TRAIN=${TRAIN:-512} VALIDATION=${VALIDATION:-64} VIEWS=${VIEWS:-32} SIZE=${SIZE:-256} CHUNK=${CHUNK:-32}
export FIT_FLAGS="${FIT_FLAGS:- }"
export MINIRODIN_PROGRESS=${MINIRODIN_PROGRESS:-0} RUNS=${RUNS:-runs/upsampler}
train_flags=${TRAIN_FLAGS:-} variants=(${VARIANTS:-plain perceptual spoiled})
python=${PYTHON:-python3} runs=$(realpath -m "$RUNS") tools=$(dirname "$0")
gpus=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || echo 0)})
fitted=$runs/fitted known=$runs/fitted/validation/latents.safetensors captures=$runs/people/made none="--upsampler.augment.smallest 1 --upsampler.augment.blur 0 --upsampler.augment.noise 0"
mkdir -p "$out" "$runs"
minirodin() { "$python" -m minirodin "$@"; }
each() {  # COMMAND WORD…: COMMAND WORD for every word, the next on whichever GPU is free
  printf '%s\n' "${@:2}" | xargs -P ${#gpus[@]} -I{} --process-slot-var=SLOT \
    bash -c 'gpus=('"${gpus[*]}"'); CUDA_VISIBLE_DEVICES=${gpus[SLOT]} '"$1 {}"
}
say() { echo "[$SECONDS s] $*"; }

people() {
  "$tools/measure_base.sh" "$out" data && for part in train validation; do
    minirodin encode "$encoder" "$RUNS/people/$part"/*/ --out "$fitted/$part/latents.safetensors" || return
  done
}
samples() { minirodin sample "$base" --latents "$known" --count "$VALIDATION" --out "$runs/samples"; }
tune() { minirodin tune "$runs/samples" --data "$fitted/validation" --out "$runs/tuned" >/dev/null && cp "$runs/tuned"/augmentation.* "$out/"; }
train_one() {
  local flags
  case $1 in
    plain) flags="$none --upsampler.perceptual-weight 0" ;;
    perceptual) flags=$none ;;
    spoiled) flags="--augmentation $runs/tuned/augmentation.json" ;;
    *) echo "unknown variant $1" >&2; return 1 ;;
  esac
  minirodin train upsampler --data "$fitted/train" --validation "$fitted/validation" --captures "$captures" --preset "$preset" --out "$runs/$1" $flags $train_flags &&
    cp "$runs/$1/log.csv" "$out/log-$1.csv" && say "trained $1"
}
train() { each train_one "${variants[@]}"; }
upsampled() {  # VARIANT PEOPLE OUT FLAG…: what interpolation makes is that of no steps, by whichever model
  local model=$1 more=(--steps 10)
  [ "$1" != interpolated ] || model=$first more=(--steps 0)
  minirodin upsample "$2" --model "$runs/$model" --out "$3" "${more[@]}" "${@:4}"
}
clean_one() {
  upsampled "$1" "$fitted/validation" "$runs/clean/$1" --reduce &&
    minirodin evaluate "$runs/clean/$1" "$captures" --out "$out/clean-$1.json" >/dev/null && say "measured $1"
}
clean() {
  each clean_one interpolated "${variants[@]}" &&
    minirodin evaluate "$fitted/validation" "$captures" --out "$out/clean-fitted.json" >/dev/null && merge clean
}
generated_one() {
  upsampled "$1" "$runs/samples" "$runs/generated/$1" &&
    minirodin compare "$runs/generated/$1" --real "$fitted/validation" --train "$fitted/train" --out "$out/generated-$1.json" >/dev/null &&
    say "compared $1"
}
generated() { each generated_one interpolated "${variants[@]}" && merge generated; }
merge() {  # KIND: what $out/KIND-*.json say, in one
  "$python" - "$out" "$1" <<'P'
import json, sys
from pathlib import Path
from minirodin.evaluation import write_json
out, kind = Path(sys.argv[1]), sys.argv[2]
merged, means = {}, {}
for path in sorted(out.glob(f"{kind}-*.json")):
    one, name = json.loads(path.read_text()), path.stem.removeprefix(f"{kind}-")
    if kind == "clean":
        means[name] = next(iter(one.pop("mean").values()))  # at full size
        one = {key: one[key] for key in ("date", "commit", "device", "subjects", "views", "image_size", "perceptual")}
        merged = {**one, "mean": means}
    else:
        merged = {**one, "samples": {**merged.get("samples", {}), **one["samples"]}}
write_json(merged, out / f"upsampler_{kind}.json")
P
}
pictures() {
  "$python" "$tools/upsampler_pictures.py" --runs "$runs" --captures "$captures" --variants "${variants[@]}" --out "$out"
}
bench() { minirodin bench upsampler --preset "$preset" --out "$out/bench_upsampler.json" >/dev/null; }
export -f minirodin say train_one upsampled clean_one generated_one
first=${variants[0]}
export out runs python preset fitted known captures train_flags none first
for stage in $stages; do
  $stage || { echo "$stage failed" >&2; exit 1; }
  say "$stage done"
done
