# Read by a pod's shell, in an empty folder, before Snakemake starts there; PROJECT is the project on the volume.
pip() { :; }  # the image has what the executor would fetch
export PYTHONPATH="$PROJECT" POD="$(pwd)"
# The sources are fetched from the storage into this folder; the schema of params.yaml is not among them.
ln -s "$PROJECT/kubernetes" "$PROJECT/pipeline" .
# Where files of the storage are read and written in the pod: the project's own.
mkdir -p storage/fs && ln -s "$PROJECT" storage/fs/kubernetes
