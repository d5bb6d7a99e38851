"""Every configuration that ships, and every combination that the documents name, is built.

Model and data module are built for real, with weights on the meta device; then one training step
goes through the model on a batch with the shapes that the data module makes.
"""

import re
import shlex
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import yaml
from timm.models.vision_transformer import Block
from torch.utils._pytree import tree_flatten, tree_map_only

from parsed import TINY, Parsed, build, parsed
from ser_lightning.commands.evaluate import StageCommandLine
from ser_lightning.data.plan import BatchKey
from ser_lightning.sources.base import MemoryImages

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
README = (ROOT / "README.md").read_text()
ABLATIONS_PAGE = (ROOT / "docs" / "ablations.md").read_text()
GREY = torch.full((1, 3, 40, 50), 128, dtype=torch.uint8)
IMAGES = MemoryImages(GREY.expand(8192, -1, -1, -1), torch.zeros(8192, dtype=torch.long), ("grey",))
FASHION = ("--config", "configs/fashion_mnist.yaml")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*"),
]


def config(*names):
    """Arguments that name files below configs/."""
    return tuple(part for name in names for part in ("--config", f"configs/{name}.yaml"))


FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if "eval" not in path.parts)
RUNS = sorted(  # what names an objective; the others are overlays
    path.stem for path in CONFIGS.glob("*.yaml") if "class_path" in yaml.safe_load(
        path.read_text()).get("model", ())
)  # fmt: skip
SHRUNK = ("barlow", "byol", "dino", "simclr", "simsiam", "vicreg")  # by a delta of their own
STAGES = sorted((CONFIGS / "eval").rglob("*.yaml"))
PAIRS = [
    (name, name.replace("_ser", "")) for name in RUNS
    if "_ser" in name and name.replace("_ser", "") in RUNS
]  # fmt: skip


def few(rows, every=5):
    """Rows of which the fast suite takes one in `every`, and `-m slow` the others."""
    return [
        pytest.param(row, marks=[pytest.mark.slow] if number % every else [])
        for number, row in enumerate(rows)
    ]


def header(path):
    """The comment that a configuration opens with."""
    return re.match(r"(?:#.*\n)*", path.read_text())[0]


def fits(text):
    """The arguments of every `ser-fit fit --config ...` in a text."""
    text = re.sub(r"\\\n[# ]*", " ", text)
    for line in re.findall(r"ser-fit fit (--config .*)", text):
        yield tuple(word for word in shlex.split(line, comments=True) if word != "...")


def documented():
    """Combinations of files and options by where they are named: pages and headers."""
    named = {path.name: path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")}
    named |= {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
    named |= {str(path.relative_to(CONFIGS)): header(path) for path in FILES}
    found = {f"{name}-{i}": args for name in named for i, args in enumerate(fits(named[name]))}
    for line in re.findall(r"^(--(?:model|data)\.\S+ .*)$", README, re.MULTILINE):
        args = shlex.split(line, comments=True)
        found[" ".join(args)] = (*config("moco_ser_2plus4"), *args)
    for name in RUNS:  # as the header of fashion_mnist.yaml has it
        words = name.split("_")
        if words[-1] in ("official", "lars", "multicrop", "demo"):
            continue
        deltas = [f"fashion_mnist/{word}" for word in words if word in (*SHRUNK, "2plus4")]
        found[f"{name} on Fashion-MNIST"] = config(name, "fashion_mnist", *deltas)
        if words[0] == "moco" and words[-1] != "2plus4":
            found[f"{name} in the study"] = config(name, "fashion_mnist", "fashion_mnist/study")
    return found


class Row(NamedTuple):
    """A row of the page of ablations."""

    what: str
    run: tuple[str, ...]
    options: tuple[str, ...]
    expected: str


ABLATIONS = [
    Row(what, config(run), tuple(shlex.split(options)), expected)
    for what, run, options, expected in re.findall(
        r"^\| ([^|]+) \| `(\w+)` \| `([^`]+)` \| ([^|]+) \|$", ABLATIONS_PAGE, re.MULTILINE
    )
]


def resolved(args):
    """What a command line asks of model and data."""
    found = parsed(args)["fit"].as_dict()
    return {key: found[key] for key in ("model", "data")}


def leaves(node, place=""):
    """Values of a nested configuration by their dotted place."""
    if isinstance(node, dict):
        return {k: v for key in node for k, v in leaves(node[key], f"{place}.{key}").items()}
    return {place.replace(".init_args", ""): node}


def changed(before, after):
    """Places whose values differ between two command lines."""
    one, two = leaves(resolved(before)), leaves(resolved(after))
    return {place for place in one.keys() | two.keys() if one.get(place) != two.get(place)}


_BATCHES = {}
_STEPS = set()
_BLOCKS = set()


def small_batch(run):
    """A batch of two images per sub-batch, as the run's data module cuts and renders them."""
    data = run.data
    key = str((data.image_size, data.patch_size, data.needs, run.config["data"]))
    if key not in _BATCHES:
        num_invertible = 2 if data.invertible is not None else 0
        data.global_batch_size, data._num_invertible = 2 + num_invertible, num_invertible
        host = data.train_dataset()[BatchKey(0, 0)]
        _BATCHES[key] = data.on_after_batch_transfer(host, 0)
    return _BATCHES[key]


def structure(model, batch):
    """All that a step's shapes follow from: equal ones need one step only."""
    tensors, tree = tree_flatten(batch)
    shapes = [(name, tuple(p.shape)) for name, p in model.state_dict().items()]
    places = model.backbone.layers, model.backbone.cls_layer, model.partition
    return str((type(model), type(model.regularizer), places, shapes, tree,
                [x.shape if isinstance(x, torch.Tensor) else x for x in tensors]))  # fmt: skip


def without_hardware(args):
    """Arguments without those that say on what, from where and to where: one step is enough."""
    pairs = list(zip(args[::2], args[1::2], strict=True))
    left_out = ["--run_dir", "--ckpt_path"]
    left_out += ["--data.source.root"] if "--data.source" not in args else []
    return tuple(part for name, value in pairs
                 if name not in left_out and "configs/trainer/" not in value
                 for part in (name, value))  # fmt: skip


def check(args):
    """Builds a run and takes the loss of a batch with its data module's shapes."""
    _checked(without_hardware(args))


@cache
def _checked(args):
    run = build(args)
    run.data._train_images = IMAGES
    run.data.plan()  # refuses a batch that does not divide as it must
    batch = small_batch(run)
    same = structure(run.model, batch)
    if same in _STEPS:
        return
    loss = run.model.training_step(tree_map_only(torch.Tensor, lambda x: x.to("meta"), batch), 0)
    assert loss.shape == ()
    assert loss.requires_grad
    _STEPS.add(same)


@pytest.fixture(autouse=True)
def _step_on_the_meta_device(monkeypatch, tmp_path):
    """Lacks autocast, which losses switch off; blocks that were run for a shape keep it."""
    forward, interpolate, seen = Block.forward, F.interpolate, _BLOCKS

    def block(self, tokens):
        key = (tokens.shape, self.attn.qkv.weight.shape, self.mlp.fc1.weight.shape)
        found = tokens if key in seen else forward(self, tokens)
        seen.add(key)
        return found

    def resized(maps, size, **options):
        if maps.is_meta:  # a shape costs half a second there
            return maps.mean((2, 3), keepdim=True).expand(-1, -1, *size)
        return interpolate(maps, size, **options)

    monkeypatch.setattr(torch, "autocast", lambda device_type, **_: nullcontext())
    monkeypatch.setattr(Block, "forward", block)
    monkeypatch.setattr(F, "interpolate", resized)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_configuration_opens_with_its_notes(path):
    notes = ("Run",) if path.parent.name == "trainer" else ("Source", "Run", "Expect", "Measured")
    for note in notes:
        assert re.search(rf"^# {note}:? ", header(path), re.MULTILINE), note


@pytest.mark.parametrize("name", RUNS)
def test_shipped_run_takes_a_step(name):
    check(config(name))


DOCUMENTED = documented()
MADE = [name for name in DOCUMENTED if " on " in name or " in the " in name]  # by rule, alike
WRITTEN = [name for name in DOCUMENTED if name not in MADE]


@pytest.mark.parametrize("name", [*WRITTEN, *few(MADE)])
def test_documented_combination_takes_a_step(name):
    check(DOCUMENTED[name])


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [
        ("dino_ser", "{weight: 0.3", "{width: 48, weight: 0.3", "width 48, the backbone has 384"),
        ("moco_ser", "image_size: 224", "image_size: 225", "225 is not a multiple"),
        ("moco_ser_2plus4", "size: 96", "size: 90", "90 is not a multiple"),
        ("moco_ser_2plus4", "class_path: MoCoV3", "class_path: BYOL", "BYOL compares two views"),
        ("moco_augself", "layer: 12, cls_layer: 0", "layer: 3, cls_layer: 6", "not joined"),
        ("moco_ser", "ratio: 0.01", "ratio: 0.0001", "at least 2 are needed"),
        ("moco_stl", "batch_size: 2048", "batch_size: 2047", "do not form the pairs"),
    ],
    ids=lambda value: value,
)
def test_a_fault_in_a_shipped_run_fails_its_test(name, right, wrong, message, tmp_path, capsys):
    """What the tests above are worth: a faulty copy of the file does not pass them."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert right in text
    text = re.sub(r" +reduction: sum\n", "", text) if "BYOL" in wrong else text
    text = re.sub(r" +temperature: 0.2\n", "", text) if "BYOL" in wrong else text
    (tmp_path / "faulty.yaml").write_text(text.replace(right, wrong))
    with pytest.raises((ValueError, SystemExit)) as found:
        check(("--config", str(tmp_path / "faulty.yaml")))
    assert message in str(found.value) + capsys.readouterr().err


@pytest.mark.parametrize("row", few(ABLATIONS), ids=lambda row: f"{row.what}-{row.run[1]}")
def test_ablation_changes_what_its_options_name_and_takes_a_step(row):
    check((*row.run, *row.options))
    names = [a.removeprefix("--model").removeprefix("--data") for a in row.options[::2]]
    written = {  # what a file leaves out appears as a whole where one of it is named
        ".group": ("--data.invertible.group.rotation", "true"),
        ".local": ("--data.crop.local.num", "2"),
        ".crop": ("--data.crop.p_flip", "0.5"),
    }
    default = next((written[part] for part in written if part in row.options[0]), ())
    places = changed((*row.run, *default), (*row.run, *row.options))
    if ".regularizer" in names:  # without an add-on, [CLS] and the sub-batch follow
        names += [".backbone.cls_layer", ".invertible"]
    if "--config" not in row.options:
        assert all(any(name in place for name in names) for place in places)
        assert (
            places
            or row.what.partition(": ")[2] in ("layer 3", "weight 1", "1 %")
            or row.what == "between crops"
            or ("layer 12" in row.what)
        )


def test_page_of_ablations_has_the_paper_s_numbers():
    assert len(ABLATIONS) == len(re.findall(r"^\| .*`moco_", ABLATIONS_PAGE, re.MULTILINE)) == 66
    path = ROOT / "src" / "ser_lightning" / "reporting" / "paper_results.yaml"
    tables = yaml.safe_load(path.read_text())["tables"]
    layers = {
        (f"moco_{row['method'].lower()}", str(row["equiv_layer"])): str(row["imagenet1k_top1"])
        for table in ("table4", "table6")
        for row in tables[table]["rows"]
    }
    for row in ABLATIONS:
        if row.options[0] == "--model.backbone.layer":
            expected = layers.pop((Path(row.run[1]).stem, row.options[1]), "-")
            assert row.expected.partition(",")[0] == expected, row.what
    assert list(layers.values()) == [ABLATIONS[0].expected]  # without an add-on
    control = tables["table5"]["rows"][1]
    assert (control["lambda"], str(control["imagenet1k_top1"])) == (0, ABLATIONS[1].expected)


@pytest.mark.parametrize("blocks", [12, 4])
def test_every_layer_has_an_add_on_and_they_share_the_weight(blocks):
    (row,) = (
        row for row in ABLATIONS
        if row.what.endswith("every layer") and (FASHION[1] in row.options) == (blocks == 4)
    )  # fmt: skip
    model = build((*row.run, *row.options)).model
    assert model.backbone.layers == tuple(range(1, blocks + 1))
    assert len(model.regularizer.regularizers) == blocks
    assert model.regularizer.weight * blocks == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("with_ser", "plain"), PAIRS)
def test_run_without_its_add_on_is_the_plain_run(with_ser, plain):
    """README's line for plain MoCo-v3 gives moco.yaml, and so for every objective."""
    without = (*config(with_ser), "--model.regularizer", "null")
    assert resolved(without) == resolved(config(plain))
    if plain == "moco":  # README's line of version 0.1.0
        assert resolved((*without, "--data.invertible", "null")) == resolved(config(plain))
    one, other = build(without), build(config(plain))
    names = [[(n, p.shape, p.requires_grad) for n, p in run.model.named_parameters()]
             for run in (one, other)]  # fmt: skip
    assert names[0] == names[1]
    assert one.model.backbone.cls_layer == other.model.backbone.cls_layer == 0
    assert one.data.invertible is other.data.invertible is None


@pytest.mark.parametrize("pair", few(PAIRS))
def test_overlay_of_a_data_set_serves_runs_with_and_without_an_add_on(pair):
    with_ser, plain = pair
    small = resolved((*config(plain), *FASHION))
    assert small == resolved((*config(with_ser), *FASHION, "--model.regularizer", "null"))
    assert small["data"]["invertible"] is None
    partition = resolved((*config(with_ser), *FASHION))["data"]["invertible"]["init_args"]
    assert partition["ratio"] == 0.05


def test_overlays_for_small_images_differ_in_what_their_headers_say_and_nothing_else():
    """Each stands alone, so that a run of one `--config` more is a small one: they repeat."""
    overlays = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
                for name in ("fashion_mnist", "small_photos")]  # fmt: skip
    one, two = map(leaves, overlays)
    assert one.keys() == two.keys()
    assert {place.rpartition(".")[2] for place in one if one[place] != two[place]} == {
        *("image_size", "depth", "embed_dim", "mlp_ratio", "num_heads", "max_epochs"),
        *("ratio", "size", "class_path"),  # of the invertible sub-batch, the rotated crops, images
    }


def test_configuration_of_version_0_1_0_keeps_its_meaning(tmp_path):
    """It repeats the width, and its null is the layer where [CLS] joins, add-on or not."""
    old = yaml.safe_load((CONFIGS / "moco_ser.yaml").read_text())
    arguments = old["model"]["init_args"]
    arguments["regularizer"]["init_args"] |= {"width": 384, "hidden": 512}
    arguments["backbone"]["cls_layer"] = None
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    run = build(("--config", "old.yaml"))
    assert (run.model.regularizer.width, run.model.backbone.cls_layer) == (384, 3)
    plain = build(("--config", "old.yaml", "--model.regularizer", "null"))
    assert plain.model.backbone.cls_layer == 3


@pytest.mark.parametrize(
    ("run", "overlay", "temperature"),
    [
        ("moco_ser", "authors_moco", 0.5),
        ("dino_ser", "authors_dino_barlow", 0.4),
        ("barlow_ser", "authors_dino_barlow", 0.4),
    ],
)
def test_overlay_sets_the_public_scripts_temperature_and_nothing_else(run, overlay, temperature):
    after = config(run, f"overlay/{overlay}")
    assert changed(config(run), after) == {".model.regularizer.temperature"}
    assert leaves(resolved(after))[".model.regularizer.temperature"] == temperature


@pytest.mark.parametrize(("name", "places"), [
    ("augself", {"model.regularizer.jitter", "data.crop.view_1", "data.crop.view_2"}),
    ("stl", {"data.crop.scale", "data.crop.view_1", "data.crop.view_2"}),
])  # fmt: skip
def test_authors_views_change_the_views_and_what_must_agree_with_them(name, places, tmp_path):
    (tmp_path / "crop.yaml").write_text("data: {crop: {p_flip: 0.5}}")  # the default, spelt out
    base = (*config(f"moco_{name}"), "--config", str(tmp_path / "crop.yaml"))
    after = (*base, *config(f"overlay/authors_{name}"))
    different = changed(base, after)
    assert {next((p for p in places if k.startswith(f".{p}")), k) for k in different} == places
    if name == "augself":
        found = leaves(resolved(after))
        recipe = [
            found[f".data.crop.view_1.{k}"] for k in ("brightness", "contrast", "saturation", "hue")
        ]
        assert list(found[".model.regularizer.jitter"]) == recipe


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "trainer").glob("*.yaml")), ids=lambda path: path.stem
)
def test_trainer_overlay_holds_trainer_settings_only(path):
    settings = yaml.safe_load(path.read_text())
    assert list(settings) == ["trainer"]
    trainer = parsed(config("moco_ser", f"trainer/{path.stem}"))["fit"].trainer
    assert {name: trainer[name] for name in settings["trainer"]} == settings["trainer"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint of a tiny run of twelve blocks, before its first step."""
    options = ["--model.backbone.vit_options", "{embed_dim: 32, depth: 12, num_heads: 2}"]
    cli = Parsed(["fit", "--config", TINY, *options])
    path = tmp_path_factory.mktemp("tiny") / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    text = cli._parser("fit").dump(cli.config["fit"], skip_none=False)
    torch.save({"state_dict": cli.model.state_dict(), "ser_lightning": {"config": text}}, path)
    return path


@pytest.mark.parametrize(
    "path",
    few(STAGES, every=4),
    ids=lambda path: str(path.relative_to(CONFIGS)),
)
def test_stage_is_built_for_a_checkpoint(path, checkpoint):
    files = dict.fromkeys([CONFIGS / "eval" / path.name, path])
    args = [part for file in files for part in ("--config", str(file))]
    text = "".join(file.read_text() for file in files)
    args += ["--data.source.root", "images"] if "its root is yours" in text else []
    args += ["--data.generated", "true"] if path.stem in ("imagenet-c", "imagenet-p") else []
    args += ["--data.imagenet_r", "images"] if path.stem == "shift" else []
    trainer = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    stage = StageCommandLine([*args, "--checkpoint", str(checkpoint), *trainer]).model
    assert stage.backbone.depth == 12
