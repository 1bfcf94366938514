"""The drawn shapes: reproducible, and their best accuracy is what `data/make_shapes.py` says."""

import importlib.util
import io
import itertools
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

PATH = Path(__file__).resolve().parents[2] / "data" / "make_shapes.py"


def load_script() -> ModuleType:
    """Import the script by its path: `data/` is not a package."""
    spec = importlib.util.spec_from_file_location("make_shapes", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shapes = load_script()


def grid(pixels: int) -> np.ndarray:
    places = [pixels >> place & 1 for place in range(shapes.SIDE**2)]
    return np.array(places, np.uint8).reshape(shapes.SIDE, shapes.SIDE)


def test_png_is_the_picture() -> None:
    _, pixels = shapes.draw(random.Random(0))
    image = Image.open(io.BytesIO(shapes.png(pixels)))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), 255 * grid(pixels))


def test_a_shape_is_whole_at_each_of_its_places() -> None:
    for name, places in shapes.SHAPES.items():
        marks = {grid(place).sum() for place in places}
        assert len(places) == len(set(places)) == 36, name
        assert len(marks) == 1, name


def test_chances_are_those_of_enumeration() -> None:
    """On an image so small that the definition can be written out: each pixel by itself."""
    _, pixels = shapes.draw(random.Random(3))
    seen, noise = grid(pixels), 0.1
    likely = {
        name: np.mean([
            np.where(grid(place) == seen, 1 - noise, noise).prod() for place in places
        ])
        for name, places in shapes.SHAPES.items()
    }  # fmt: skip
    total = sum(likely.values())
    for name, chance in shapes.chances(pixels, noise).items():
        assert chance == pytest.approx(likely[name] / total, rel=1e-9)


@pytest.mark.slow
def test_chances_are_calibrated_and_best() -> None:
    """Among images whose best answer has a chance of about p, it is right for p of them."""
    rng = random.Random(5)
    drawn = [shapes.draw(rng, 0.2) for _ in range(4000)]
    here, average = shapes.optimum(drawn, 0.2)
    assert here == pytest.approx(average, abs=4 * (average * (1 - average) / 4000) ** 0.5)
    sure = []
    for name, pixels in drawn:
        chances = shapes.chances(pixels, 0.2)
        best = max(chances, key=lambda k: chances[k])
        sure.append((chances[best], best == name))
    low = [right for chance, right in sure if chance < 0.7]
    mean = np.mean([chance for chance, _ in sure if chance < 0.7])
    assert np.mean(low) == pytest.approx(mean, abs=4 * 0.5 / len(low) ** 0.5)


def test_noise_decides_how_hard_it_is() -> None:
    rng = random.Random(1)
    found = [shapes.optimum([shapes.draw(rng, n) for _ in range(500)], n)[1]
             for n in (0.01, 0.1, 0.2, 0.3)]  # fmt: skip
    assert found[0] > 0.9999
    assert all(a > b for a, b in itertools.pairwise(found))


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        shapes.main(["--images", "40", "--output", str(tmp_path / name)])
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 40
    assert {path.parent.name for path in files} == set(shapes.SHAPES)
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert "the best answers are right for" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [["--images", "0"], ["--noise", "0.5"], ["--noise", "0"]])
def test_bad_usage(bad: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        shapes.main([*bad, "--output", str(tmp_path / "none")])
    assert stopped.value.code == 2
    assert not (tmp_path / "none").exists()
