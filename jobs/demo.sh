#!/usr/bin/env bash
# The whole journey on a simulated screen, one command a stage. Each stage skips what is already there.
set -euo pipefail
cd "$(dirname "$0")/.."
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
registry=sqlite:///demo/runs/mlflow.db

if [ -e demo/screen/screen.h5ad ]; then echo "demo/screen/screen.h5ad is there already"; else
  run txpert simulate demo/screen/screen.h5ad --cells 14000 --genes 1000 \
    --perturbations 160 --doubles 16 --cell-lines 1 --seed 1
fi
run txpert ingest demo/screen/screen.h5ad --store demo/screen.zarr --preset scperturb
run txpert graph build demo/screen/graphs.yaml --out demo/graphs --store demo/screen.zarr
run txpert train jobs/configs/demo.yaml
run txpert evaluate demo/runs/demo
# champion is for a model that beats every baseline of its report; on this screen ridge regression on the graph is hard to beat
run txpert register demo/runs/demo --alias challenger --force
run txpert predict models:/txpert@challenger --tracking-uri "$registry" --store demo/screen.zarr \
  --cell-line LINE1 --perturbations "GENE0007,GENE0011+GENE0042" --out demo/predicted.h5ad

cat <<END

report       demo/runs/demo/report/report.html
predictions  demo/predicted.h5ad
MLflow       .venv/bin/mlflow ui --backend-store-uri $registry, then open http://127.0.0.1:5000
END
