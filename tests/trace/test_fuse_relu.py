"""fuse_relu gives the same network, bit for bit, with the same checkpoints, and replaces only what is certain."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fusing import assert_same_network, kept
from hypothesis import given
from hypothesis import strategies as st
from nets import INPUTS, ResNet, made, mlp
from strategies import examples, seeds
from tolerances import assert_same_bits
from torch import Tensor, nn

from gatedops import Gate, GatedConv2d, GatedLinear, fuse_relu, gated_twin, record_gates, trace


def classes(net: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in net.named_modules()}


# --- the same network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INPUTS)
def test_outputs_and_checkpoints_are_the_same(name):
    net, x = made(name, 5)
    before = classes(net)
    fused = assert_same_network(net, x)
    assert classes(net) == before
    assert not hasattr(net, "fuse_report")
    other, _ = made(name, 1, seed=1)
    other.load_state_dict(fused.state_dict())
    fuse_relu(made(name, 1, seed=2)[0], x).load_state_dict(net.state_dict())
    with torch.no_grad():
        assert_same_bits(other(x), net(x))


@examples(30)
@given(
    st.integers(1, 70),
    st.sampled_from([1, 2, 31, 64, 100, 257, 784, 1023, 1024]),
    st.integers(1, 70),
    st.booleans(),
    seeds,
)
def test_a_pair_is_torchs_bit_for_bit(n, inputs, width, bias, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, width, bias), nn.ReLU())
    fused = fuse_relu(net)
    x = torch.randn(n, inputs)
    with torch.no_grad():
        assert_same_bits(fused(x), net(x))
    assert_same_bits(fused(x), net(x))
    assert_same_bits(fused(x.view(1, n, inputs)), net(x.view(1, n, inputs)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_wide_layer_is_torchs_for_any_number_of_threads(threads):
    before = torch.get_num_threads()
    net = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU())
    fused, x = fuse_relu(net), torch.randn(512, 1024)
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            assert_same_bits(fused(x), net(x))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_torchs_too(dtype):
    net = mlp().to(dtype)
    x = torch.randn(9, 6, dtype=dtype)
    with torch.no_grad():
        assert_same_bits(fuse_relu(net)(x), net(x))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same", "padding_mode": "circular"},
        {"stride": 2, "padding": 1, "groups": 2},
        {"dilation": 2, "bias": False},
        {"padding": (2, 0), "padding_mode": "reflect"},
    ],
)
def test_convolutions(options):
    fused = assert_same_network(nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.ReLU(True)), torch.randn(2, 4, 9, 8))
    assert isinstance(fused[0], GatedConv2d)
    assert isinstance(fused[1], nn.Identity)


def test_compiles_and_exports():
    torch.compiler.reset()
    net, x = made("vgg", 4)
    fused = fuse_relu(net)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-5)
        exported = torch.export.export(fused, (x,), strict=False).module(check_guards=False)
        torch.testing.assert_close(exported(x), net(x), rtol=1e-5, atol=1e-5)


# --- what is replaced ---------------------------------------------------------------------------------------


def test_pairs_and_lone_relus_of_the_networks():
    reports = {name: fuse_relu(*made(name, 2)).fuse_report for name in INPUTS}
    assert reports["mlp"].replaced == (("0", "GatedLinear"), ("2", "GatedLinear"))
    assert reports["vgg"].replaced == (("0.2", "Gate"), ("0.6", "Gate"), ("1.1", "GatedLinear"))
    assert reports["resnet"].replaced == ()
    functional = "it calls relu as a function"
    assert reports["resnet"].kept == (("", functional), ("block1", functional), ("block2", functional))
    assert reports["transformer"].kept == (("encoder.layers.0", functional), ("encoder.layers.1", functional))
    assert str(reports["mlp"]) == "0: GatedLinear\n2: GatedLinear"
    assert str(reports["resnet"]).startswith("the model: kept, it calls relu as a function\nblock1: kept")


def test_parameters_and_modes_go_over():
    net = mlp()
    net[0].weight.requires_grad_(False)
    net[0].register_buffer("extra", torch.ones(1))
    net[0].note = "mine"
    net[1].eval()
    fused = fuse_relu(net, inplace=True)
    assert fused is net
    assert type(fused[0]) is GatedLinear
    assert not fused[0].weight.requires_grad
    assert (fused[0].note, fused[0].extra.item()) == ("mine", 1.0)
    assert fused[0].training
    assert not fused[1].training
    assert list(fused.state_dict())[:3] == ["0.weight", "0.bias", "0.extra"]


def test_in_place_keeps_the_parameters():
    net = mlp()
    before = list(net.parameters())
    fused = fuse_relu(net, inplace=True)
    assert all(a is b for a, b in zip(fused.parameters(), before, strict=True))


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU())
    net[2].weight = net[0].weight
    fused = assert_same_network(net, torch.randn(3, 5))
    assert fused[2].weight is fused[0].weight


def test_shared_relus():
    act, lone = nn.ReLU(), nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act, nn.Flatten(), lone, nn.Dropout(0.0), lone)
    fused = assert_same_network(net, torch.randn(3, 4))
    assert [type(module) for module in fused] == [
        GatedLinear,
        nn.Identity,
        GatedLinear,
        nn.Identity,
        nn.Flatten,
        Gate,
        nn.Dropout,
        Gate,
    ]
    assert fused[5] is fused[7]


def test_fusing_twice_changes_nothing_more():
    fused = fuse_relu(made("vgg", 2)[0])
    again = fuse_relu(fused)
    assert classes(again) == classes(fused)
    assert again.fuse_report.replaced == ()


def test_copies_and_pickles():
    net, x = mlp(), torch.randn(3, 6)
    fused = fuse_relu(net)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same_bits(other(x), net(x))
        assert other.fuse_report == fused.fuse_report


# --- what is kept -------------------------------------------------------------------------------------------


def test_what_is_no_certain_pair():
    class MyLinear(nn.Linear):
        pass

    class MyReLU(nn.ReLU):
        pass

    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in reversed(self):
                x = module(x)
            return x

    subclass = assert_same_network(
        nn.Sequential(MyLinear(4, 4), nn.ReLU(), nn.Linear(4, 4), MyReLU()), torch.randn(2, 4)
    )
    assert [type(module) for module in subclass] == [MyLinear, Gate, nn.Linear, MyReLU]
    assert kept(subclass) == {"3": "it is a MyReLU, not torch's ReLU"}
    reverse = assert_same_network(Reversed(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    assert [type(module) for module in reverse] == [nn.Linear, Gate]
    parametrized = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    assert type(fuse_relu(parametrized)[0]).__name__ == "ParametrizedLinear"


def test_hooks_keep_their_modules():
    net, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), []
    net[0].register_forward_hook(lambda _, args, output: seen.append(output.clone()))
    net[3].register_full_backward_hook(lambda *_: None)
    x = torch.randn(3, 4)
    net(x)
    fused = fuse_relu(net)
    assert [type(module) for module in fused] == [nn.Linear, Gate, nn.Linear, nn.ReLU, nn.Linear]
    assert_same_bits(fused(x), net(x))
    assert torch.equal(seen[0], seen[-1])
    assert kept(fused)["0"] == kept(fused)["2"] == "the layer or its ReLU has hooks"
    assert kept(fused)["3"] == "it has hooks"


def test_a_layer_that_is_used_elsewhere_is_kept():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.body = nn.Sequential(self.fc, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.body(x))

    fused = assert_same_network(Shared(), torch.randn(3, 4))
    assert [type(module) for module in fused.body] == [nn.Linear, Gate]
    assert kept(fused) == {"fc": "the layer is used elsewhere too"}


def test_in_place_relus_are_replaced_only_where_no_one_looks():
    class Shortcut(nn.Module):
        """The shortcut sees what the in-place ReLU at the start of the branch leaves."""

        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                nn.ReLU(True), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(True), nn.Dropout(0.0)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            return self.branch(x) + x

    fused = assert_same_network(Shortcut(), torch.randn(5, 4))
    assert [type(module) for module in fused.branch][::3] == [nn.ReLU, Gate]
    assert "with inplace=False it would be a Gate" in kept(fused)["branch.0"]
    after = fuse_relu(nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.ReLU(True)))
    assert type(after[2]) is nn.ReLU


def test_modules_inside_torchs_own_layers_are_kept():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True).eval()
    fused = fuse_relu(encoder, torch.randn(2, 3, 8))
    assert kept(fused)["activation"] == "it belongs to torch's TransformerEncoderLayer"
    assert kept(fused)["linear1"] == "it belongs to torch's TransformerEncoderLayer, or its ReLU does"
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        assert_same_bits(fused(x), encoder(x))


def test_shapes_go_through_a_fused_net_on_the_meta_device():
    net = fuse_relu(mlp().to("meta"))
    assert kept(net) == {}
    expected = mlp()(torch.zeros(2, mlp()[0].in_features)).shape
    assert net(torch.zeros(2, net[0].in_features, device="meta")).shape == expected


def test_a_model_that_is_a_relu_is_kept():
    net = nn.ReLU()
    assert type(fuse_relu(net)) is nn.ReLU
    assert kept(fuse_relu(net)) == {"": "it is itself a ReLU"}


def test_models_that_are_none():
    with pytest.raises(TypeError, match=r"model: got function, needs a torch\.nn\.Module"):
        fuse_relu(F.relu)


# --- fused networks in the other tools ----------------------------------------------------------------------


@pytest.mark.parametrize("name", INPUTS)
def test_gates_steps_and_twins_of_a_fused_network(name):
    net, x = made(name, 4)
    fused = fuse_relu(net, x)
    expected, found = record_gates(net, x, max_pool=True), record_gates(fused, x, max_pool=True)
    assert [layer.shape for layer in found.layers] == [layer.shape for layer in expected.layers]
    assert_same_bits(found.words, expected.words)
    if name != "transformer":
        ours, theirs = trace.steps(fused, x), trace.steps(net, x)
        assert [(type(a), a.inputs, a.shape) for a in ours] == [(type(a), a.inputs, a.shape) for a in theirs]
    assert torch.equal(gated_twin(fused, fused).eval()(x), net(x))


def test_the_twin_of_a_fused_network_learns_by_the_gates_of_the_feature_network():
    torch.manual_seed(0)
    net, x = nn.Sequential(*mlp(), nn.Flatten(), nn.ReLU()), torch.randn(5, 6)
    fused = fuse_relu(net)
    fused[6].record = True
    value = mlp().state_dict()
    plain, ours = gated_twin(net, value), gated_twin(fused, value)
    output, expected = ours(x), plain(x)
    assert_same_bits(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(ours.value.parameters(), plain.value.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.compiler.reset()
    fused[6].record = False
    compiled = torch.compile(gated_twin(fused, value), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, expected)
    compiled.square().sum().backward()


def test_soft_twins_of_fused_networks_are_refused():
    twin = gated_twin(fuse_relu(mlp()), gate="soft")
    with pytest.raises(ValueError, match="take the twin of the model before fuse_relu"):
        twin(torch.zeros(2, 6))


def test_gates_that_record_themselves_are_recorded():
    net = nn.Sequential(nn.Flatten(), Gate(record=True))
    x = torch.randn(3, 4)
    bits = record_gates(net, x)
    assert bits.layers[0].shape == (4,)
    assert net[1].gates is None  # record_gates leaves no gates in the model
    net(x)
    assert_same_bits(bits.words, net[1].gates.words)


def test_a_residual_network_keeps_everything_it_has():
    net, x = made("resnet", 3)
    assert classes(fuse_relu(net, x)) == classes(net)
    assert isinstance(fuse_relu(net, x), ResNet)


def test_a_fused_convolution_takes_an_input_without_a_batch():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU()).eval()
    x = torch.randn(3, 8, 7)
    fused = fuse_relu(net)
    assert torch.equal(fused(x), net(x))
    z, bits = fused[0](x, return_gates=True)
    assert torch.equal(z, net(x))
    assert torch.equal(fused[0](x, bits), z)
    assert torch.equal(fused[0](x, z > 0), z)
