"""Specs that tests start from, as TOML text."""

MINIMAL = """
name = "tiny"
data.source = "sklearn:digits"
model.build = "linear"

[[attribution]]
method = "trak"
"""

FULL = """
# every section, with values that are not the defaults
name = "digits"
seed = 7

[data]
source = "csv:rows/digits.csv"
target = "label"
id = "row"
metadata = ["writer"]
test_fraction = 0.25
corrupt = { labels = 0.1 }
task = "classification"

[sets]
queries = "SELECT example_id FROM examples WHERE split = 'test' ORDER BY example_id LIMIT 100"
holdout = "SELECT example_id FROM examples WHERE split = 'test' ORDER BY example_id OFFSET 100"

[model]
build = "mlp"
options = { hidden = [128, 64], activation = "tanh" }
checkpoints = ["weights/a.safetensors", "/elsewhere/b.pt"]

[train]
optimizer = "sgd"
lr = 0.1
momentum = 0.8
nesterov = true
weight_decay = 0
schedule = "cosine"
warmup = 2
epochs = 20
batch_size = 100
seeds = 3

[bank]
models = 48
alpha = [0.5, 0.75]
seeds = 3
calibrate = 0.25

[[attribution]]
method = "trak"
name = "published"
output = "loss"
projection = { dim = 512, nonzeros = 2 }
curvature = "after-kernel"
damping = 1
leverage = true
average = "features"
checkpoints = "bank"

[[problem]]
kind = "select"
name = "clean"
uses = "published"
targets = "queries"
size = 0.9
quotas = { class = { 3 = { min = 10, max = 200 }, 8 = { min = 10 } } }

[verdict]
seeds = 3
arms = ["all", "random", "balanced"]
judge_on = "holdout"

[store]
max_rows = 1000
publish = false

[compute]
device = "cpu"
workers = 2
memory = "1.5 GiB"

[tracking]
uri = "http://127.0.0.1:5000"
"""
