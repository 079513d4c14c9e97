"""A spec whose models must forget some wines: small enough for every test that needs one."""

from pathlib import Path

from tests.tasks.pipeline import exchanged

SPEC = """
name = "wines"
seed = 1

[data]
source = "sklearn:wine"
test_fraction = 0.4

[sets]
queries = "SELECT example_id FROM examples WHERE split = 'test' ORDER BY example_id LIMIT 40"
holdout = "SELECT example_id FROM examples WHERE split = 'test' ORDER BY example_id OFFSET 40"
withdrawn = '''
SELECT example_id FROM examples -- <script>alert('withdrawn')</script> & "quoted"
WHERE split = 'train' ORDER BY example_id LIMIT 9
'''

[model]
build = "linear"

[train]
lr = 0.05
epochs = 6
batch_size = 20
seeds = 2

[bank]
models = 40
alpha = [0.5, 0.8]
seeds = 2

[[attribution]]
name = "trak"
method = "trak"
projection = { kind = "sparse", dim = 32 }

[[problem]]
name = "withdrawn"
kind = "unlearn"
uses = "trak"
forget = "withdrawn"
models = 8
compare = ["finetune"]
options = { finetune = { epochs = 1 } }

[verdict]
seeds = 3
"""


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """The spec with changes, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wines.toml"
    path.write_text(exchanged(SPEC, *changes))
    return path
