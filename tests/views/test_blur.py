import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import ImageFilter
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from hf_ssl.views import blur_weights, gaussian_blur


BLUR_ATOL = 1e-5  # of the range of values; torchvision's kernel ends somewhere, and is one sum over its square
MAX_SIGMA = 3.0
REACH = 20  # of torchvision's kernel: more than six of the largest sigma
SIGMAS = torch.tensor([0.1, 0.2, 0.35, 0.5, 0.8, 1.2, 2.0, 3.0])
COUNT = len(SIGMAS)
EVERYBODY = torch.ones(COUNT, dtype=torch.bool)
SOME = torch.arange(COUNT) % 3 == 0
TINY = torch.finfo(torch.float32).tiny

# Images smaller than the kernels among them, of one pixel and of one row.
SHAPES = [(33, 33), (32, 47), (61, 20), (7, 5), (1, 1), (1, 30), (2, 1)]


def pictures(height, width, count=COUNT, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def torchvision_blurs(images, sigmas):
    """On images that go on with their outermost pixels, so far that torchvision's reflection is out of reach."""
    padded = F.pad(images, [2 * REACH] * 4, mode="replicate")
    kernel = [2 * REACH + 1] * 2
    blurred = [TF.gaussian_blur(p, kernel, [s, s]) for p, s in zip(padded, sigmas.tolist(), strict=True)]
    return torch.stack(blurred)[..., 2 * REACH : -2 * REACH, 2 * REACH : -2 * REACH]


def assert_close(actual, expected, atol=BLUR_ATOL):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.fixture(params=["picks", "selects"])
def path(request, monkeypatch):
    """What a CPU does, and what an accelerator does."""
    if request.param == "selects":
        monkeypatch.setattr("hf_ssl.views.photometric._picks", lambda images: False)


each_path = pytest.mark.usefixtures("path")
each_shape = pytest.mark.parametrize("height,width", SHAPES)


@each_path
@each_shape
def test_equals_torchvision(height, width):
    images = pictures(height, width)
    blurred = gaussian_blur(images, SIGMAS, EVERYBODY, MAX_SIGMA)
    assert blurred.shape == images.shape and blurred.dtype == torch.float32
    assert_close(blurred, torchvision_blurs(images, SIGMAS))
    assert torch.equal(images, pictures(height, width))


def test_float64():
    images, sigmas = pictures(33, 20, 3).double(), SIGMAS[-3:]
    blurred = gaussian_blur(images, sigmas, EVERYBODY[:3], MAX_SIGMA)
    assert blurred.dtype == torch.float64
    assert_close(blurred, torchvision_blurs(images, sigmas))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.mT.contiguous().mT,
        lambda x: F.pad(x, (1, 2, 3, 4), value=9.0)[..., 3:-4, 1:-2],
    ],
    ids=["channels last", "columns first", "part of a larger tensor"],
)
def test_any_layout(layout):
    images = pictures(33, 20)
    assert_close(
        gaussian_blur(layout(images), SIGMAS, SOME, MAX_SIGMA), gaussian_blur(images, SIGMAS, SOME, MAX_SIGMA), 1e-6
    )


@each_path
@each_shape
def test_images_that_are_not_chosen_stay_as_they_are(height, width):
    images = pictures(height, width)
    blurred = gaussian_blur(images, SIGMAS, SOME, MAX_SIGMA)
    assert torch.equal(blurred[~SOME], images[~SOME])
    assert_close(blurred[SOME], gaussian_blur(images, SIGMAS, EVERYBODY, MAX_SIGMA)[SOME], 1e-6)
    assert torch.equal(gaussian_blur(images, SIGMAS, ~EVERYBODY, MAX_SIGMA), images)


@each_path
def test_the_input_may_be_overwritten():
    for apply in (SOME, EVERYBODY, ~EVERYBODY):
        expected = gaussian_blur(pictures(33, 20), SIGMAS, apply, MAX_SIGMA)
        images = pictures(33, 20)
        assert torch.equal(gaussian_blur(images, SIGMAS, apply, MAX_SIGMA, inplace=True), expected)


def test_a_cpu_overwrites_the_input():
    images = pictures(33, 20)
    assert gaussian_blur(images, SIGMAS, SOME, MAX_SIGMA, inplace=True) is images


@each_path
def test_images_of_a_batch_do_not_mix():
    images = pictures(33, 20)
    broken = images.clone()
    broken[[3, 4], 0, 5, 5] = torch.nan
    expected, blurred = (gaussian_blur(x, SIGMAS, SOME, MAX_SIGMA) for x in (images, broken))
    assert SOME[3] and blurred[3, 0, 5, 5].isnan() and not SOME[4]
    torch.testing.assert_close(blurred[4], broken[4], atol=0, rtol=0, equal_nan=True)
    kept = [0, 1, 2, 5, 6, 7]
    assert torch.equal(blurred[kept], expected[kept])


@each_path
def test_empty_batch():
    nobody = torch.zeros(0)
    assert gaussian_blur(torch.zeros(0, 3, 9, 8), nobody, nobody.bool(), MAX_SIGMA).shape == (0, 3, 9, 8)


@each_shape
def test_flat_images_stay_flat(height, width):
    flat = torch.full((COUNT, 3, height, width), 0.7)
    assert_close(gaussian_blur(flat, SIGMAS, EVERYBODY, MAX_SIGMA), flat, 1e-6)


def test_linear():
    x, y = pictures(33, 47), pictures(33, 47, seed=1)
    blurred = [gaussian_blur(images, SIGMAS, EVERYBODY, MAX_SIGMA) for images in (x, y, 2 * x - 3 * y)]
    assert_close(blurred[2], 2 * blurred[0] - 3 * blurred[1])


def test_the_vertical_axis_is_blurred_as_the_horizontal_one():
    images = pictures(33, 20)
    turned = gaussian_blur(images.mT, SIGMAS, EVERYBODY, MAX_SIGMA)
    assert_close(turned.mT, gaussian_blur(images, SIGMAS, EVERYBODY, MAX_SIGMA), 1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 33, 100])
def test_weights(size):
    sigmas = torch.cat([torch.linspace(0.1, MAX_SIGMA, 50), torch.tensor([0.01])])
    weights = blur_weights(sigmas, size, MAX_SIGMA)
    assert weights.shape == (51, size, size) and weights.dtype == torch.float32
    assert_close(weights.sum(-1), torch.ones(51, size), 1e-6)
    # No subnormal numbers, with which a CPU is slow.
    assert ((weights == 0) | (weights >= TINY)).all()


def test_variance_is_that_of_the_sigma():
    middle = blur_weights(SIGMAS, 65, MAX_SIGMA)[:, 32].double()
    variance = (middle * (torch.arange(65) - 32) ** 2).sum(-1)
    # Below about half a pixel, the samples of a Gaussian have less.
    assert_close(variance[4:].sqrt(), SIGMAS[4:].double(), 1e-3)


def textured(seed, size=64):
    """Smooth gradients and, in smaller measure, finer and finer texture."""
    layers = [
        F.interpolate(pictures(n, n, 1, seed + n), size=(size, size), mode="bicubic") / n for n in (3, 6, 12, 24)
    ]
    image = sum(layers)[0]
    return ((image - image.min()) / (image.max() - image.min()) * 255).round().byte()


def photos(size=64):
    """A palace and a flower."""
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    return [TF.resize(image, [size, size], antialias=True) for image in images]


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.5, 0.75, 1.0, 1.4, 2.0, 3.0])
def test_close_to_pil(radius):
    for image in [*photos(), *map(textured, (0, 100))]:
        pil = TF.to_pil_image(image).filter(ImageFilter.GaussianBlur(radius))
        blurred = gaussian_blur(image[None].float(), torch.tensor([radius]), torch.tensor([True]), MAX_SIGMA)[0]
        difference = (blurred - TF.pil_to_tensor(pil)).abs()
        assert difference.mean() <= 1.3
        if radius >= 0.5:
            assert difference[:, 8:-8, 8:-8].max() <= 5
