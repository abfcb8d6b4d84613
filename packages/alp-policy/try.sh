# try.sh BUILDER INDEX FOLDER PYTHON TORCH TRANSFORMERS, in the root of the tree: builds alp-policy with BUILDER, installs it
# into a new environment in FOLDER of that PYTHON (a version, which uv finds or fetches, or a path) with that torch (a CPU
# build, where INDEX or the configured sources have one), and runs there what needs nothing more.
set -e
builder=$1 cpu_index=$2 folder=$3 python=$4 torch=$5 transformers=$6 # names that locks/uv.sh does not set
. locks/uv.sh
say() { echo "alp-policy on $("$folder/bin/python" -V), torch $("$folder/bin/python" -c 'import torch; print(torch.__version__)'): $1"; }

create "$builder" "$folder-uv"
rm -rf "$folder-tried"
$uv build --quiet --python "$folder-uv/bin/python" packages/alp-policy --out-dir "$folder-tried/dist"
$uv venv --quiet --clear --python "$python" "$folder"
VIRTUAL_ENV=$folder
if [ "$torch" = newest ]; then
  $uv pip install --quiet --index "$cpu_index" torch || $uv pip install --quiet torch
else
  cpu_torch "$torch" "$cpu_index" || $uv pip install --quiet "torch==$torch"
fi
wheel=$(ls "$folder-tried"/dist/*.whl)

$uv pip install --quiet "$wheel" # with torch, numpy and PyYAML alone
(cd "$folder-tried" && ../"$folder/bin/python" - <<'SCRIPT'
import torch
from alp.diagnosis import diagnose
from alp.policy import mismatch_diagnostics

old = -torch.rand(4, 6)
rollout, mask = old - 0.01 * torch.rand(4, 6), torch.ones(4, 6)
found = diagnose(old_log_probs=old, rollout_log_probs=rollout, response_mask=mask)
kl = mismatch_diagnostics(old.double(), rollout.double(), mask.bool())["rollout_corr/kl"]
assert abs(found.figures["rollout_corr/kl"] - float(kl)) < 1e-12, (found.figures, kl)
SCRIPT
)
say "imports and diagnoses with what it asks for alone"

$uv pip install --quiet "$wheel[page,parquet]" "$transformers" pytest hypothesis
# tests and example without the tree's own alp beside them
mkdir -p "$folder-tried/tests/diagnosis"
cp -r tests/__init__.py tests/policy "$folder-tried/tests"
cp -r examples "$folder-tried"
for name in __init__ native test_causes test_counterfactual test_library test_module; do
  cp "tests/diagnosis/$name.py" "$folder-tried/tests/diagnosis"
done
mkdir "$folder-tried/tests/examples"
cp tests/examples/__init__.py tests/examples/test_notebook.py "$folder-tried/tests/examples"
# one measures with benchmarks/, the other knows the newest transformers alone (make newest)
rm "$folder-tried/tests/policy/test_perturbation_cost.py" "$folder-tried/tests/policy/test_architectures.py"
cd "$folder-tried"
export OMP_NUM_THREADS=1
../"$folder/bin/python" examples/own_trainer.py
../"$folder/bin/python" -m pytest -q -p no:cacheprovider -W ignore::pytest.PytestUnknownMarkWarning -m "not long" tests
cd ..
say "the example trains, its tests pass"
