"""Pictures: conversions to the byte, places on a sheet, which way up planes are; and a bar that can be quiet."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from minirodin import plots
from minirodin.progress import progress


def test_every_kind_of_picture_becomes_bytes():
    half = torch.full((2, 3, 4), 0.5)
    half[..., 3] = 0.25
    assert (plots.to_array(half) == 223).all()  # 0.25 · 0.5 + 0.75 of white = 0.875
    assert plots.to_array(np.zeros((2, 3))).shape == (2, 3, 3)
    assert (plots.to_array(np.full((2, 2, 3), 200, np.uint8)) == 200).all()
    assert (plots.to_array(torch.full((2, 2, 3), 200, dtype=torch.uint8)) == 200).all()
    assert (plots.to_array(torch.tensor([[[1.7, -1.0, 0.0]]])) == [255, 0, 0]).all()  # out of range is cut, not wrapped


def test_contact_sheet_places_pictures_row_by_row(tmp_path):
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = np.asarray(plots.contact_sheet(pictures, 2, tmp_path / "sheet.png", gap=1))
    assert sheet.shape == (9, 13, 3) and (tmp_path / "sheet.png").exists()
    assert sheet[0, 0, 0] == 10 and sheet[3, 12, 0] == 20 and sheet[8, 5, 0] == 30
    assert (sheet[:, 6] == 255).all() and (sheet[4] == 255).all() and (sheet[5:, 7:] == 255).all()


def test_planes_are_drawn_with_rows_upwards_and_alike_every_time():
    rows = torch.linspace(-1, 1, 8)[:, None].expand(8, 8)
    columns = rows.T
    planes = torch.stack([4 * rows, 2 * columns, 0.5 * rows * columns], 0).expand(3, 3, 8, 8)
    picture = plots.planes_to_rgb(planes)
    assert picture.shape == (3, 8, 8, 3)
    red, green = picture[0, :, 4, 0], picture[0, 4, :, 1]  # the components are the channels, the strongest first
    assert red[0] == pytest.approx(1, abs=0.05) and red[-1] == pytest.approx(0, abs=0.05)  # high rows at the top
    assert green[0] == pytest.approx(0, abs=0.05) and green[-1] == pytest.approx(1, abs=0.05)
    assert torch.equal(picture, plots.planes_to_rgb(planes))
    assert plots.planes_to_rgb(planes[:, :2]).shape == (3, 8, 8, 3)  # fewer channels than colours


def test_a_basis_makes_colours_comparable():
    planes = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    together = plots.planes_to_rgb(torch.stack([planes, -planes]))
    alone = plots.planes_to_rgb(planes, basis=torch.stack([planes, -planes]))
    assert torch.allclose(together[0], alone)


def test_figures_are_returned_and_not_left_open():
    picture = np.zeros((4, 4, 3))
    figure = plots.show_images([picture] * 5, ["a", "b"], columns=2, title="five")
    assert len(figure.axes) == 6 and figure.axes[1].get_title() == "b"
    curves = plots.show_curves({"a": ([1, 2], [3, 4]), "b": ([1], [2])}, "x", "y", log_y=True)
    assert [t.get_text() for t in curves.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert plots.show_planes(torch.rand(3, 4, 8, 8)).axes[2].get_title() == "wu"
    assert plt.get_fignums() == []


def test_progress_can_be_quiet(capsys, monkeypatch):
    monkeypatch.setenv("MINIRODIN_PROGRESS", "0")
    assert list(progress(range(3))) == [0, 1, 2] and capsys.readouterr().err == ""
    monkeypatch.delenv("MINIRODIN_PROGRESS")
    assert list(progress(range(3), enabled=False)) == [0, 1, 2] and capsys.readouterr().err == ""
    bar = progress(total=4, desc="fitting")
    bar.update(4)
    bar.set_postfix(psnr="30.1")
    bar.close()
    err = capsys.readouterr().err
    assert "fitting" in err and "4/4" in err and "psnr=30.1" in err


def test_a_photo_is_a_jpeg_of_the_figure_in_its_size():
    pytest.importorskip("IPython")
    figure = plots.show_curves({"line": ([0, 1], [0, 1])}, width=3)
    shown = plots.photo(figure)
    picture = Image.open(io.BytesIO(shown.data))
    assert picture.format == "JPEG" and picture.size == (300, 180)
