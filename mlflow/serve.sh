#!/bin/sh
# Show the runs of a workspace in a browser: mlflow/serve.sh [WORKSPACE] [PORT]
# WORKSPACE is the .winnow folder beside a spec; $WINNOW_WORKSPACE or ./.winnow if left out.
set -eu

workspace=${1:-${WINNOW_WORKSPACE:-.winnow}}
port=${2:-5000}

if [ ! -f "$workspace/mlflow.db" ]; then
    echo "serve.sh: $workspace has no mlflow.db; name the .winnow folder beside your spec" >&2
    exit 2
fi
workspace=$(cd "$workspace" && pwd)

# MLflow's job runners outlive a killed server, and nothing here needs them.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_DISABLE_TELEMETRY=true

# Relative paths inside MLflow then stay inside the workspace.
cd "$workspace"
echo "http://127.0.0.1:$port shows $workspace (Ctrl-C ends it)"
exec mlflow server \
    --backend-store-uri "sqlite:///$workspace/mlflow.db" \
    --artifacts-destination "$workspace/mlartifacts" \
    --host 127.0.0.1 --port "$port" --workers 1
