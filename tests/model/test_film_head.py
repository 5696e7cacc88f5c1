import torch

from fvlm.model.film_head import FilmHead, ResidualHead


def test_parameter_count_at_the_published_width() -> None:
    assert sum(value.numel() for value in FilmHead(576, 4).parameters()) == 1_300_612


def test_fewer_channels_make_a_smaller_head() -> None:
    head = FilmHead(16, 4, channels=8)
    previous = head.encode_previous(torch.randn(2, 3, 4, 5, 5))
    assert previous.features.shape == (6, 8, 5, 5)
    assert head(torch.randn(2, 3, 16), previous).shape == (2, 3, 4, 5, 5)
    assert sum(value.numel() for value in head.parameters()) < 30_000


def test_features_shared_by_passes_equal_separate_computation() -> None:
    head = FilmHead(16, 4)
    previous = torch.randn(2, 3, 4, 8, 8)
    hidden = torch.randn(2, 2, 3, 16)
    features = head.encode_previous(previous)
    shared = torch.stack([head(state, features) for state in hidden])
    separate = torch.stack([head(state, head.encode_previous(previous)) for state in hidden])
    assert torch.equal(shared, separate)
    assert shared.shape == (2, 2, 3, 4, 8, 8)


def test_the_equations() -> None:
    head = FilmHead(16, 4)
    previous, hidden = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 16)
    found = head(hidden, head.encode_previous(previous))
    for clip in range(2):
        for frame in range(3):
            gamma, beta = head.film(hidden[clip, frame]).split(256)
            feature = head.before(previous[clip, frame])
            expected = head.after(gamma[:, None, None] * feature + beta[:, None, None])
            torch.testing.assert_close(found[clip, frame], expected, rtol=1e-4, atol=1e-5)


def test_not_residual_and_size_free() -> None:
    head = FilmHead(16, 4)
    for parameter in head.after.parameters():
        torch.nn.init.zeros_(parameter)
    previous = torch.randn(1, 2, 4, 5, 7)
    assert head(torch.randn(1, 2, 16), head.encode_previous(previous)).abs().sum() == 0


def test_a_residual_head_starts_as_ar1_and_adds_what_film_computes() -> None:
    torch.manual_seed(0)
    film = FilmHead(16, 4, channels=8)
    torch.manual_seed(0)
    head = ResidualHead(16, (4, 5, 5), channels=8)
    previous, hidden, mean = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3, 16), torch.randn(4, 5, 5)
    head.gain.data.fill_(0.75)
    head.mean.data.copy_(mean)
    decayed = mean + 0.75 * (previous - mean)
    assert torch.equal(head(hidden, head.encode_previous(previous)), decayed)
    # All weights but the last convolution's are drawn as in the other head.
    head.after[-1].load_state_dict(film.after[-1].state_dict())
    change = film(hidden, film.encode_previous(previous))
    found = head(hidden, head.encode_previous(previous))
    torch.testing.assert_close(found, decayed + change)
    more = sum(value.numel() for value in head.parameters())
    assert more == sum(value.numel() for value in film.parameters()) + 1 + 4 * 5 * 5
