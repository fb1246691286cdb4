# sh profiles/kubernetes/link.sh: once in a checkout, before the first start through this profile.
# Snakemake keeps what it takes from the storage in a folder of its own. What the light stages write is the project's;
# what pods write is not linked, for Snakemake takes a lost pod's half-done files there for its own.
set -eu
place=.snakemake/storage/fs/kubernetes
mkdir -p $place/results
for folder in data logs results/tables results/metrics results/plots results/figures; do
    mkdir -p $folder
    ln -sfn "$PWD/$folder" $place/$folder
done
