#!/usr/bin/env bash
# All tables, one after the other; the numbers go to results/, from where the docs page reads them.
set -euo pipefail
export TQDM_DISABLE=1  # progress bars would stand between the rows
cd "$(dirname "$0")"
for script in limits metrics ensembles retraining larger_than_memory; do python "$script.py"; done
