"""Networks of a pre-training: shapes, gradients, and that what is hidden cannot be seen."""

import torch
from torch.nn import functional as F

from rwkvseg.models import RWKVUNetConfig
from rwkvseg.models.pretraining import EncoderClassifier, MaskedReconstruction, reconstruction_loss

CONFIG = RWKVUNetConfig(depths=(1, 2, 2, 2), widths=(6, 10, 12, 14), expansions=(1, 1, 2, 1), stem_width=5)


def with_random_decays(network):
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("decay", "bonus")):
                parameter.normal_(std=3)
    return network.double().eval()


def gradients_reach_all(network):
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-11, name


def test_the_classifier_is_the_mean_of_the_normalised_deepest_map():
    torch.manual_seed(0)
    network = with_random_decays(EncoderClassifier(CONFIG, 7))
    x = torch.randn(2, 3, 64, 80, dtype=torch.float64)
    logits = network(x)
    deepest = network.encoder(x)[-1].permute(0, 2, 3, 1)
    pooled = F.layer_norm(deepest, (14,), network.norm.weight, network.norm.bias, 1e-6).mean((1, 2))
    torch.testing.assert_close(logits, pooled @ network.head.weight.T + network.head.bias)
    (logits * torch.randn(2, 7, dtype=torch.float64)).sum().backward()
    gradients_reach_all(network)


def test_hidden_pixels_do_not_reach_the_painting():
    torch.manual_seed(0)
    network = with_random_decays(MaskedReconstruction(CONFIG))
    x = torch.rand(2, 3, 64, 80, dtype=torch.float64)
    mask = torch.zeros(2, 64, 80, dtype=torch.bool)
    mask[0, 8:40, :24] = mask[1, 50:, 40:] = True
    other = torch.where(mask.unsqueeze(1), torch.rand_like(x), x)
    assert not torch.equal(other, x)
    painted = network(x, mask)
    assert painted.shape == x.shape
    assert torch.equal(network(other, mask), painted)
    assert not torch.equal(network(x, ~mask), painted)
    reconstruction_loss(painted, x, mask).backward()
    gradients_reach_all(network)


def test_each_deepest_pixel_paints_its_own_square():
    torch.manual_seed(0)
    network = MaskedReconstruction(CONFIG).eval()
    x, mask = torch.rand(1, 3, 32, 48), torch.zeros(1, 32, 48, dtype=torch.bool)
    with torch.no_grad():
        deepest = network.encoder(x)[-1]
        weight = network.head.weight.view(3, 16, 16, 14)
        square = torch.einsum("cyxk,k->cyx", weight, deepest[0, :, 1, 2]) + network.head.bias.view(3, 16, 16)
        torch.testing.assert_close(network(x, mask)[0, :, 16:32, 32:48], square, rtol=1e-4, atol=1e-5)


def test_the_loss_counts_hidden_pixels_only():
    x, painted = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 100.0)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 3, 1] = True
    painted[0, :, 0, 0], painted[1, :, 3, 1] = 2.0, -1.0
    assert float(reconstruction_loss(painted, x, mask)) == 1.5
    assert float(reconstruction_loss(painted, x, torch.zeros_like(mask))) == 0
