import pytest
import torch
import torch.nn.functional as F

from reco_ray.models.sliding import fit_to_stride, slide


def random_images(height, width, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def patch_encoder(stride, channels=5):
    """One convolution of patches: what it says of a location depends on nothing outside it."""
    weight = torch.randn(channels, 3, stride, stride, generator=torch.Generator().manual_seed(1))
    return lambda images: F.conv2d(images, weight, stride=stride)


def mean_encoder(images):
    """Every location holds the mean of the whole window: what it says depends on the window alone."""
    return images.mean(dim=(2, 3), keepdim=True).expand(-1, -1, *images.shape[-2:]).contiguous()


def test_a_window_as_large_as_the_image_is_no_window():
    images = random_images(32, 48)
    encode = patch_encoder(8)
    assert torch.equal(slide(encode, images, window=48, step=8, stride=8), encode(images))
    assert torch.equal(slide(encode, images, window=480, step=480, stride=8), encode(images))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72), (24, 100), (100, 24)])
@pytest.mark.parametrize(("window", "step"), [(32, 32), (32, 20), (24, 4)])
def test_windows_of_a_local_encoder_give_what_the_whole_image_gives(height, width, window, step):
    images = random_images(height, width)
    encode = patch_encoder(4)
    expected = encode(images)
    assert torch.allclose(slide(encode, images, window=window, step=step, stride=4), expected, atol=1e-5)


def test_overlaps_are_averaged():
    images = torch.zeros(1, 3, 1, 6)
    images[..., 4:] = 3.0  # the two windows [0, 4) and [2, 6) have the means 0 and 1.5
    scores = slide(mean_encoder, images, window=4, step=2)
    assert scores[0, 0, 0].tolist() == [0.0, 0.0, 0.75, 0.75, 1.5, 1.5]


def test_the_last_window_is_moved_inwards_so_that_all_are_whole():
    sizes = []

    def encode(images):
        sizes.append(tuple(images.shape[-2:]))
        return images

    images = random_images(10, 23)
    assert torch.allclose(slide(encode, images, window=8, step=8), images)
    assert set(sizes) == {(8, 8)}
    assert len(sizes) == 2 * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 30, "step": 8, "stride": 8}, "window 30"),
        ({"window": 32, "step": 6, "stride": 8}, "step 6"),
        ({"window": 16, "step": 24, "stride": 8}, "skipped"),
        ({"window": 16, "step": 0, "stride": 8}, "step 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        slide(patch_encoder(8), random_images(64, 64), **options)


def test_an_image_that_the_stride_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 60"):
        slide(patch_encoder(8), random_images(64, 60), window=32, step=32, stride=8)


def test_fitting_keeps_what_fits_and_rounds_what_does_not():
    fitting = random_images(28, 56)
    assert fit_to_stride(fitting, 14) is fitting
    assert fit_to_stride(random_images(30, 64), 14).shape == (2, 3, 28, 70)
    assert fit_to_stride(random_images(5, 5), 14).shape == (2, 3, 14, 14)


def test_fitting_keeps_the_picture():
    ramp = torch.linspace(0, 1, 50).expand(1, 3, 50, 50)
    fitted = fit_to_stride(ramp, 16)
    assert fitted.shape[-1] == 48
    assert torch.allclose(fitted[0, 0, 0, 2:-2], torch.linspace(0, 1, 48)[2:-2], atol=0.01)
