#!/usr/bin/env bash
# The whole journey on a simulated screen, one command a stage. Each stage skips what is already there.
set -euo pipefail
folder=${1:-demo}
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

say txpert simulate "$folder/screen" --cells 14000 --genes 1000 --perturbations 160 --doubles 16 --seed 1
say txpert ingest "$folder/screen/screen.h5ad" --store "$folder/screen.zarr" --preset scperturb
say txpert graph build "$folder/screen/graphs.yaml" --out "$folder/graphs" --store "$folder/screen.zarr"
say txpert train jobs/configs/demo.yaml output="$folder/runs" data.store="$folder/screen.zarr" graph.location="$folder/graphs"
say txpert evaluate "$folder/runs/demo" --report "$folder/runs/demo/report"
say txpert register "$folder/runs/demo" --alias champion
say txpert predict models:/txpert@champion --tracking-uri "sqlite:///$folder/runs/mlflow.db" \
  --store "$folder/screen.zarr" --cell-line LINE1 --perturbations "$(head -2 "$folder/screen/unseen_genes.txt" | paste -sd,)" --out "$folder/predicted.h5ad"

cat <<END

report      $folder/runs/demo/report/report.md
predictions $folder/predicted.h5ad
MLflow      mlflow ui --backend-store-uri sqlite:///$folder/runs/mlflow.db    then open http://127.0.0.1:5000
END
