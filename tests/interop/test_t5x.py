"""T5X checkpoints as a source, written as T5X's checkpoints.py does: every layout of its networks, every mistake.

T5X's names and shapes of PyTorch's tensors are those of transformers' scripts that convert T5X's T5 and umT5.
"""

import dataclasses
import functools
import re
import shutil

import jax
import numpy as np
import pytest
import tensorstore
import torch
import transformers
from flax import serialization, traverse_util
from safetensors.torch import load_file

from t5x_lite import partitioning
from t5x_lite.data import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import convert, load_model, open_source
from t5x_lite.model import bind
from t5x_lite.model.names import named
from tests.model.reference import VARIANTS, difference, examples, shifted, torch_model

V1_0, _, _, BYT5, UMT5, PADDED = (dataclasses.replace(variant, layers=(2, 1)) for variant in VARIANTS)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a network of T5X names and shapes its layers; `stack` is the name that scanned ones have in common."""

    stack: str | None = None
    heads_apart: bool = False
    bias: str = "relpos_bias"


LAYOUTS = {
    "t5": Layout(),
    "scalable_t5, not scanned": Layout(heads_apart=True),
    "scalable_t5": Layout(stack="{part}", heads_apart=True),
    "scalable_t5, early": Layout(stack="layers", heads_apart=True, bias="relative_posemb"),
    "flaxformer, scanned": Layout(stack="{part}"),
}
# Only the plain T5 shares one table of biases among its layers.
CASES = [(variant, "t5") for variant in (V1_0, BYT5, PADDED)]
CASES += [(UMT5, layout) for layout in list(LAYOUTS)[1:]]

SUBLAYERS = {
    "encoder": (("attention", "pre_attention_layer_norm"), ("mlp", "pre_mlp_layer_norm")),
    "decoder": (
        ("self_attention", "pre_self_attention_layer_norm"),
        ("encoder_decoder_attention", "pre_cross_attention_layer_norm"),
        ("mlp", "pre_mlp_layer_norm"),
    ),
}
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
OUTSIDE_LAYERS = {
    "shared.weight": "token_embedder/embedding",
    "encoder.final_layer_norm.weight": "encoder/encoder_norm/scale",
    "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
    "lm_head.weight": "decoder/logits_dense/kernel",
}
HEADS, HEAD_DIM = 3, 16


def t5x_parameters(tensors, layout, *, bias_per_layer):
    """{T5X's name: array} of PyTorch's tensors."""
    params, stacks = {}, {}
    for theirs in sorted(tensors):
        array = to_numpy(tensors[theirs])
        if theirs in OUTSIDE_LAYERS:
            name = OUTSIDE_LAYERS[theirs]
            params[name] = array.T if name.endswith("kernel") else array
            continue
        part, n, place, module = re.fullmatch(r"(\w+)\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight", theirs).groups()
        sublayer, norm = SUBLAYERS[part][int(place)]
        kernel = module.split(".")[-1]
        if module == "layer_norm":
            name = f"{norm}/scale"
        elif kernel == "relative_attention_bias":
            name, array = f"{layout.bias}/rel_embedding", array.T
            if not bias_per_layer:
                params[f"{part}/{name}"] = array
                continue
        else:
            name, array = f"{sublayer}/{ATTENTION.get(kernel, kernel)}/kernel", array.T
            if kernel in ATTENTION and layout.heads_apart:
                heads = (HEADS, HEAD_DIM)
                array = array.reshape(*heads, -1) if kernel == "o" else array.reshape(-1, *heads)
        if layout.stack:
            stacks.setdefault(f"{part}/{layout.stack.format(part=part)}/{name}", {})[int(n)] = array
        else:
            params[f"{part}/layers_{n}/{name}"] = array
    return params | {name: np.stack([by_layer[n] for n in sorted(by_layer)], 1) for name, by_layer in stacks.items()}


def to_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(jax.numpy.bfloat16)
    return tensor.numpy()


def spec_of(name, array):
    """The TensorStore spec that T5X puts into its state file, several chunks an array."""
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": name.replace("/", ".")},
        "metadata": {
            "compressor": {"id": "gzip"},
            "shape": array.shape,
            "chunks": [size // 2 if size % 2 == 0 else size for size in array.shape],
        },
    }
    return tensorstore.Spec(spec).to_json()


def store(folder, name, array):
    """Writes an array, and returns what the state file has in its place."""
    spec = spec_of(name, array)
    where = {"driver": "file", "path": f"{folder}/{spec['kvstore']['path']}", "file_io_sync": False}
    tensorstore.open(spec | {"kvstore": where}, create=True).result().write(array).result()
    return spec


def write(folder, params, *, optimizer=True, leaf=store):
    folder.mkdir(parents=True, exist_ok=True)
    target = {name: leaf(folder, f"target/{name}", array) for name, array in params.items()}
    states = {"target": traverse_util.unflatten_dict(target, sep="/")}
    if optimizer:
        # The accumulators themselves were not copied: nothing looks for them.
        slots = {f"{name}/v": spec_of(f"state/param_states/{name}/v", array) for name, array in params.items()}
        slots = traverse_util.unflatten_dict(slots, sep="/")
        states["state"] = {"step": np.int32(1000), "param_states": slots}
    state_file(folder, {"version": 3, "optimizer": states})
    return folder


def state_file(folder, content):
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """The function that gives a variant's (folder as transformers saves it, its tensors)."""

    @functools.cache
    def saved(variant, dtype="float32"):
        folder = tmp_path_factory.mktemp("hugging_face")
        torch_model(variant).to(getattr(torch, dtype)).save_pretrained(folder)
        return folder, load_file(folder / "model.safetensors")

    return saved


@pytest.fixture
def params(hugging_face):
    """A model of layers that share their biases, under T5X's names."""
    return t5x_parameters(hugging_face(BYT5)[1], LAYOUTS["t5"], bias_per_layer=False)


def load(path, partitioner=None, **changes):
    source = open_source(path)
    config = dataclasses.replace(source.config, **{"scan_layers": False} | changes)
    return named(load_model(source, config, partitioner or partitioning.make_partitioner()))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(array), err_msg=name)


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("optimizer", [True, False], ids=["optimizer", "weights alone"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("variant", "layout"), CASES, ids=lambda value: getattr(value, "name", value))
def test_the_parameters_are_those_of_a_hugging_face_folder(hugging_face, tmp_path, variant, layout, dtype, optimizer):
    reference, tensors = hugging_face(variant, dtype)
    layout = LAYOUTS[layout]
    write(tmp_path, t5x_parameters(tensors, layout, bias_per_layer=variant.kind == "UMT5"), optimizer=optimizer)
    source, expected = open_source(tmp_path), open_source(reference)
    assert source.config == dataclasses.replace(expected.config, scan_layers=layout.stack is not None)
    assert source.dtype == expected.dtype == dtype
    for scanned in (False, True):
        assert_same(load(tmp_path, scan_layers=scanned), load(reference, scan_layers=scanned))


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, batch):
    return bind(config, params)(batch)


@pytest.mark.parametrize(
    ("variant", "layout"), [(V1_0, "t5"), (BYT5, "t5"), (UMT5, "scalable_t5")], ids=lambda v: getattr(v, "name", v)
)
def test_it_predicts_as_the_same_weights_from_a_hugging_face_folder(hugging_face, tmp_path, variant, layout):
    reference, tensors = hugging_face(variant)
    write(tmp_path, t5x_parameters(tensors, LAYOUTS[layout], bias_per_layer=variant.kind == "UMT5"))
    inputs, targets = examples(variant)
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": shifted(targets)}
    found = []
    with jax.default_matmul_precision("highest"):
        for path in (tmp_path, reference):
            source = open_source(path)
            config = dataclasses.replace(source.config, scan_layers=False)
            found.append(logits(config, load_model(source, config, partitioning.make_partitioner()), batch))
    np.testing.assert_array_equal(*found)
    assert difference(found[0][targets > 0], torch_logits(torch_model(variant), inputs, targets)).relative < 1e-5


def torch_logits(model, inputs, targets):
    """PyTorch's, of real targets only."""
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor(inputs > 0),
            decoder_input_ids=torch.tensor(shifted(targets)),
        )
    return found.logits.numpy()[targets > 0]


def in_a_bucket(folder, name, array):
    return store(folder, name, array) | {
        "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": name.replace("/", ".") + "/"}
    }


def before_tensorstore_0_1_14(folder, name, array):
    return store(folder, name, array) | {"kvstore": {"driver": "gfile"}, "path": name.replace("/", ".")}


def norms_inline(folder, name, array):
    return array if name.endswith("/scale") else store(folder, name, array)


def all_inline(folder, name, array):
    return array


@pytest.mark.parametrize("leaf", [in_a_bucket, before_tensorstore_0_1_14, norms_inline, all_inline])
@pytest.mark.parametrize("layout", ["scalable_t5, not scanned", "scalable_t5"])
def test_however_the_state_file_says_where_an_array_is(hugging_face, tmp_path, layout, leaf):
    reference, tensors = hugging_face(UMT5, "bfloat16")
    write(tmp_path, t5x_parameters(tensors, LAYOUTS[layout], bias_per_layer=True), leaf=leaf)
    assert open_source(tmp_path).dtype == "bfloat16"
    assert_same(load(tmp_path), load(reference))


def by_orbax(folder, name, array):
    store(folder, name, array)
    return f"PLACEHOLDER://{name.replace('/', '.')}"


@pytest.mark.parametrize("given", ["", "checkpoint_7", "checkpoint_7/state", "checkpoint_7/state/checkpoint"])
def test_what_t5x_saved_through_orbax(hugging_face, tmp_path, params, given):
    folder = write(tmp_path / "checkpoint_7" / "state", params, leaf=by_orbax)
    # Orbax has no version and no 'optimizer' above the state.
    state_file(folder, serialization.msgpack_restore((folder / "checkpoint").read_bytes())["optimizer"])
    assert_same(load(tmp_path / given), load(hugging_face(BYT5)[0]))


SHARDED = (("vocab", "model"), ("mlp", "model"), ("heads", "model"), ("kv", "model"), ("embed", "fsdp"))


@pytest.mark.parametrize("scanned", [False, True], ids=["not scanned", "scanned"])
@pytest.mark.parametrize("layout", ["scalable_t5, not scanned", "scalable_t5"])
def test_shards_are_cut_as_the_mesh_wants_them(hugging_face, tmp_path, layout, scanned):
    reference, tensors = hugging_face(UMT5, "bfloat16")
    write(tmp_path, t5x_parameters(tensors, LAYOUTS[layout], bias_per_layer=True))
    partitioner = partitioning.make_partitioner({"data": 1, "fsdp": 2, "model": 4}, SHARDED)
    changes = {"scan_layers": scanned, "param_dtype": "bfloat16"}
    found = load(tmp_path, partitioner, **changes)
    assert_same(found, load(reference, **changes))
    kernel = found[f"encoder/{'layers' if scanned else 'layers_1'}/mlp/wi_0/kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 8


# ---------------------------------------------------------------------- which checkpoint


def test_the_latest_whole_checkpoint_of_a_folder(hugging_face, tmp_path, params):
    # 10 is later than 9, a .tmp was never finished, and T5X counts no folder without a state file.
    for step in ("9", "11.tmp-1700000000"):
        write(tmp_path / f"checkpoint_{step}", {"token_embedder/embedding": np.zeros(1)}, leaf=all_inline)
    (tmp_path / "checkpoint_12").mkdir()
    write(tmp_path / "checkpoint_10", params)
    assert open_source(tmp_path).where == str(tmp_path / "checkpoint_10")
    assert_same(load(tmp_path), load(hugging_face(BYT5)[0]))


@pytest.mark.parametrize("given", ["checkpoint_5", "checkpoint_5/checkpoint"])
def test_one_checkpoint_given_itself(hugging_face, tmp_path, params, given):
    write(tmp_path / "checkpoint_5", params)
    write(tmp_path / "checkpoint_6", params | {"encoder/encoder_norm/scale": np.zeros(48, np.float32)}, leaf=all_inline)
    assert_same(load(tmp_path / given), load(hugging_face(BYT5)[0]))


def test_a_folder_is_named_as_people_name_folders(hugging_face, tmp_path, params):
    assert_same(load(write(tmp_path / "50%20 done #1 né", params)), load(hugging_face(BYT5)[0]))


# ---------------------------------------------------------------------- conversion


@pytest.mark.parametrize("formats", [["hf"], ["t5x_lite", "hf"]], ids=" then ".join)
def test_it_is_converted_for_transformers(tmp_path, params, formats):
    path = write(tmp_path / "t5x", params)
    for format in formats:
        convert(open_source(path), str(tmp_path / format), vocabulary=vocabularies.byte(), format=format)
        path = tmp_path / format
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(path, attn_implementation="eager")
    inputs, targets = examples(BYT5)
    np.testing.assert_array_equal(
        torch_logits(theirs.eval(), inputs, targets), torch_logits(torch_model(BYT5), inputs, targets)
    )
    tokens = transformers.AutoTokenizer.from_pretrained(path)("né").input_ids
    assert tokens == [ord("n") + 3, 0xC3 + 3, 0xA9 + 3, 1]  # UTF-8 above pad, </s> and <unk>; </s>


# ---------------------------------------------------------------------- mistakes


def says(path, *parts):
    """Opening and loading `path` is refused in one line with these parts."""
    with pytest.raises(UserError) as error:
        load(path)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_it_names_what_vocabulary_to_give(tmp_path, params):
    source = open_source(write(tmp_path, params))
    with pytest.raises(UserError, match=r"keeps no vocabulary .*name one: a SentencePiece \.model file, 'bytes', or"):
        source.vocabulary()


@pytest.mark.parametrize(
    "content",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b'model_checkpoint_path: "model.ckpt-1000000"\n',  # TensorFlow's
        lambda whole: serialization.msgpack_serialize({"version": 3, "optimizer": {"state": {}}}),
    ],
    ids=["cut off", "empty", "TensorFlow", "no target"],
)
def test_a_state_file_that_is_none(tmp_path, params, content):
    path = write(tmp_path, params, leaf=all_inline) / "checkpoint"
    path.write_bytes(content(path.read_bytes()))
    says(tmp_path, f"'{path}' is no T5X checkpoint (")


WI = "encoder.layers_1.mlp.wi_0.kernel"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder),
        lambda folder: (folder / ".zarray").unlink(),
        lambda folder: (folder / "1.0").unlink(),
        lambda folder: (folder / "1.0").write_bytes((folder / "1.0").read_bytes()[:100]),
    ],
    ids=["folder", "metadata", "chunk", "part of a chunk"],
)
@pytest.mark.parametrize("name", [WI, "token_embedder.embedding"])
def test_an_array_that_was_not_copied_whole(tmp_path, params, name, damage):
    damage(write(tmp_path, params) / f"target.{name}")
    says(tmp_path, f"{tmp_path}: cannot read 'target.{name}' of this T5X checkpoint (", "); copy it again")


NORM = "decoder/layers_0/pre_cross_attention_layer_norm/scale"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({NORM: None}, [f"no parameter '{NORM}' in this T5X checkpoint"]),
        ({"encoder/encoder_norm/scale": None}, ["no parameter 'encoder/encoder_norm/scale' in this T5X checkpoint"]),
        ({"encoder/relpos_bias/rel_embedding": None}, ["'encoder/relpos_bias/rel_embedding'", "it is not a T5"]),
        (
            {"encoder/side_relpos_bias/rel_embedding": np.ones((3, 32))},  # LongT5's
            ["'encoder/side_relpos_bias/rel_embedding' is no parameter of a T5", "nearest: 'encoder/relpos_bias/rel_"],
        ),
        ({NORM: np.ones(47, np.float32)}, [f"'{NORM}' has shape (47,), and the others' shapes mean (48,)"]),
        (
            {"encoder/relpos_bias/rel_embedding": np.ones((3, 30))},
            ["make no T5: T5Config.relative_attention_num_buckets is 30"],
        ),
        # What T5X wrote for bfloat16 until 2021, and refuses since.
        ({NORM: np.ones(48, np.uint16)}, [f"'{NORM}' is uint16; weights are read from float32, bfloat16"]),
    ],
    ids=["layer", "norm", "bias", "LongT5", "shape", "buckets", "dtype"],
)
def test_parameters_that_are_not_a_t5s(tmp_path, params, change, parts):
    changed = {name: array for name, array in (params | change).items() if array is not None}
    says(write(tmp_path, changed, leaf=all_inline), str(tmp_path), *parts)


def test_a_model_that_is_no_t5(tmp_path):
    says(write(tmp_path, {"Dense_0/kernel": np.ones((3, 4))}, leaf=all_inline), "no parameter ", "it is not a T5")
