from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pydicom.charset
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from series_factory import MARK_RAS, as_enhanced, brain, edit_files, make_files, mark_in, only_series, recode

import dicom_io.volume.nifti
from dicom_io.errors import ConversionError, GeometryError
from dicom_io.volume.converters import by_dicom2nifti, by_highdicom
from dicom_io.volume.nifti import convert_series, resample_to_source

ALL_AXES = ["".join(p) for names in permutations(["RL", "AP", "SI"]) for p in product(*names)]
"""All 48 ways to store a volume's axes: head first or feet first, supine, prone, decubitus, either slice order."""


def converted(folder: Path):
    """The conversion of a folder's one series, and its volume."""
    conversion = convert_series(only_series(folder), folder.with_suffix(".nii.gz"))
    return conversion, nib.load(conversion.volume_path)


def source_pixels(folder: Path, conversion) -> np.ndarray:
    """(slices, rows, columns) straight from the files, in the geometry's order."""
    return np.stack([pydicom.dcmread(folder / s.file).pixel_array for s in conversion.geometry.slices])


@pytest.mark.parametrize("axes", ALL_AXES)
def test_left_stays_left_however_the_series_is_stored(tmp_path, axes) -> None:
    folder = tmp_path / "s"
    make_files(folder, axes=axes, overrides={"PatientPosition": "FFP" if axes[1] == "A" else "HFS"})
    conversion, volume = converted(folder)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert np.array_equal(np.asarray(volume.dataobj), np.asarray(brain().dataobj))
    assert np.allclose(volume.affine, brain().affine, atol=1e-3)
    assert np.allclose(mark_in(volume.get_fdata(), volume.affine), MARK_RAS, atol=4.5)
    assert not conversion.warnings
    back = resample_to_source(volume, conversion.geometry)
    assert np.array_equal(back, source_pixels(folder, conversion))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("degrees", [-31.0, 8.0, 38.0])
def test_left_stays_left_in_double_oblique_series(tmp_path, plane, degrees) -> None:
    folder = tmp_path / "s"
    make_files(folder, plane=plane, oblique_degrees=degrees)
    conversion, volume = converted(folder)
    assert np.allclose(mark_in(volume.get_fdata(), volume.affine), MARK_RAS, atol=5)
    back = resample_to_source(volume, conversion.geometry)
    source = source_pixels(folder, conversion)
    assert np.array_equal(back, source)
    # the source slice and pixel that hold the mark lie at x < 0 by the headers alone
    slice_, row, column = np.argwhere(source > 0.85 * source.max()).mean(axis=0)
    assert np.allclose((conversion.geometry.affine_ras @ [column, row, slice_, 1])[:3], MARK_RAS, atol=5)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
        RLELossless, JPEG2000Lossless, JPEGLSLossless,
    ],
    ids=lambda s: s.name.split(",")[0],
)  # fmt: skip
@pytest.mark.parametrize("enhanced", [False, True])
def test_every_encoding_gives_the_same_volume(tmp_path, syntax, enhanced) -> None:
    folder = tmp_path / "s"
    files = make_files(folder)
    if enhanced:
        folder = tmp_path / "e"
        files = [as_enhanced(files, folder / "e.dcm")]
    recode(files, syntax)
    _, volume = converted(folder)
    assert np.array_equal(np.asarray(volume.dataobj), np.asarray(brain().dataobj))


@pytest.mark.parametrize("rescaled", [False, True])
def test_an_enhanced_series_is_its_classic_twin(tmp_path, rescaled) -> None:
    files = make_files(tmp_path / "s")
    as_enhanced(files, tmp_path / "e" / "e.dcm", shared_rescale=rescaled)
    _, volume = converted(tmp_path / "e")
    expected = np.asarray(brain().dataobj) * (2.5 if rescaled else 1) - (10 if rescaled else 0)
    assert np.allclose(volume.get_fdata(), expected)
    assert np.allclose(volume.affine, brain().affine, atol=1e-3)


def test_rescale_slope(tmp_path) -> None:
    def edit(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "0.37", "-5", "US"

    make_files(tmp_path / "s", edit=edit)
    _, volume = converted(tmp_path / "s")
    assert volume.get_data_dtype() == np.float32
    assert np.allclose(volume.get_fdata(), np.asarray(brain().dataobj) * 0.37 - 5, atol=1e-3)


@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (16, 10), (16, 12), (16, 16)])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_and_signs(tmp_path, allocated, stored, signed) -> None:
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    voxels = np.random.default_rng(0).integers(low, high, brain().shape, endpoint=True)

    def edit(dataset, index):
        plane = np.flip(voxels, axis=(0, 1))[..., index].T  # stored LPS
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
        dataset.PixelRepresentation = int(signed)
        dataset.PixelData = (plane & (2**stored - 1)).astype(f"<u{allocated // 8}").tobytes() if stored < allocated \
            else plane.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()  # fmt: skip

    make_files(tmp_path / "s", edit=edit)
    _, volume = converted(tmp_path / "s")
    assert np.array_equal(np.asarray(volume.dataobj), voxels)


def test_monochrome1_is_mirrored_so_that_bright_means_bright(tmp_path) -> None:
    def edit(dataset, _):
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.PixelData = (4095 - dataset.pixel_array).astype("<u2").tobytes()

    make_files(tmp_path / "s", edit=edit)
    conversion, volume = converted(tmp_path / "s")
    assert np.array_equal(volume.get_fdata(), np.asarray(brain().dataobj))
    assert any("MONOCHROME1" in w for w in conversion.warnings)


@pytest.mark.parametrize("enhanced", [False, True])
def test_both_converters_agree(tmp_path, enhanced, monkeypatch) -> None:
    files = make_files(tmp_path / "s", oblique_degrees=11)
    folder = as_enhanced(files, tmp_path / "e" / "e.dcm", scramble=False).parent if enhanced else tmp_path / "s"
    voxels, affines = [], []
    for converter in (by_dicom2nifti, by_highdicom):
        monkeypatch.setattr(dicom_io.volume.nifti, "CONVERTERS", (converter,))
        volume = converted(folder)[1]
        voxels.append(volume.get_fdata())
        affines.append(volume.affine)
    assert np.array_equal(*voxels)
    assert np.allclose(*affines)


def test_where_dicom2nifti_refuses_the_second_way_is_taken(tmp_path) -> None:
    make_files(tmp_path / "s", edit=lambda ds, _: delattr(ds, "InstanceNumber"))
    conversion, volume = converted(tmp_path / "s")
    assert np.array_equal(volume.get_fdata(), np.asarray(brain().dataobj))
    assert "dicom2nifti" in conversion.warnings[0]


@pytest.mark.parametrize("fault", ["flipped", "shifted", "swapped slices", "four dimensions"])
def test_a_converter_that_lies_is_not_believed(tmp_path, monkeypatch, fault) -> None:
    def lying(datasets):
        image = by_dicom2nifti(datasets)
        data, affine = np.array(image.dataobj), image.affine.copy()
        if fault == "flipped":
            data = data[::-1]
        elif fault == "shifted":
            affine[0, 3] += 1
        elif fault == "swapped slices":
            data[..., [3, 4]] = data[..., [4, 3]]
        else:
            data = data[..., None]
        return nib.Nifti1Image(data, affine)

    make_files(tmp_path / "s")
    monkeypatch.setattr(dicom_io.volume.nifti, "CONVERTERS", (lying,))
    with pytest.raises(ConversionError, match=r"not its own pixels|grid is not the source's"):
        converted(tmp_path / "s")
    assert not (tmp_path / "s.nii.gz").exists()


def test_too_few_slices(tmp_path) -> None:
    files = make_files(tmp_path / "s")
    for path in files[3:]:
        path.unlink()
    with pytest.raises(GeometryError, match="too few slices: expected at least 4, got 3"):
        converted(tmp_path / "s")


def test_colour_is_refused(tmp_path) -> None:
    def edit(dataset, _):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PlanarConfiguration = 8, 8, 7, 0
        dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3)

    make_files(tmp_path / "s", edit=edit)
    with pytest.raises(ConversionError, match="expected a grayscale image, got RGB with 3 samples"):
        converted(tmp_path / "s")


def test_pixels_that_cannot_be_decoded_are_named(tmp_path) -> None:
    files = make_files(tmp_path / "s")
    recode(files, JPEG2000Lossless)

    def spoil(dataset, index):
        if index == 9:
            middle = len(dataset.PixelData) // 2
            dataset.PixelData = dataset.PixelData[:40] + bytes(middle) + dataset.PixelData[40 + middle :]

    edit_files(files, spoil)
    with pytest.raises(ConversionError, match=r"0010\.dcm: its JPEG 2000 .* pixels cannot be decoded"):
        converted(tmp_path / "s")


def test_a_cut_off_end_is_a_warning(tmp_path) -> None:
    files = make_files(tmp_path / "s", overrides={"ImagesInAcquisition": "21"})
    for path in files[17:]:
        path.unlink()
    conversion, _ = converted(tmp_path / "s")
    assert conversion.warnings == ("the header announces 21 images in the acquisition, 17 came",)


def test_text_decoding_is_left_alone(tmp_path, flair_files) -> None:
    before = dict(pydicom.charset.python_encoding)
    converted(flair_files[0].parent)
    assert dict(pydicom.charset.python_encoding) == before


def test_conversion_is_quiet_and_reproducible(flair_files, capfd, caplog) -> None:
    folder = flair_files[0].parent
    first = converted(folder)[0].volume_path.read_bytes()
    assert converted(folder)[0].volume_path.read_bytes() == first
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_any_other_grid_is_interpolated(tmp_path) -> None:
    folder = tmp_path / "s"
    make_files(folder, plane="sagittal", oblique_degrees=9)
    conversion, _ = converted(folder)
    fine = np.diag([2.0, 2.0, 2.0, 1.0])
    fine[:3, 3] = (-80, -92, -62)
    ramp = np.indices((82, 94, 64))[0].astype(np.float32) * 2 - 80  # the value is RAS x
    on_source = resample_to_source(nib.Nifti1Image(ramp, fine), conversion.geometry)
    assert on_source.shape == conversion.geometry.shape
    for voxel in ((10, 20, 15), (18, 8, 30)):
        slice_, row, column = voxel
        x = (conversion.geometry.affine_ras @ [column, row, slice_, 1])[0]
        assert on_source[voxel] == pytest.approx(x, abs=1e-2)


def test_a_series_of_images_is_not_resampled(flair_files) -> None:
    conversion, _ = converted(flair_files[0].parent)
    with pytest.raises(GeometryError, match="expected a 3D image"):
        resample_to_source(nib.Nifti1Image(np.zeros((2, 2, 2, 2)), np.eye(4)), conversion.geometry)


@pytest.mark.parametrize("converter", [by_dicom2nifti, by_highdicom])
def test_a_refusal_says_nothing_of_a_converters_code(tmp_path: Path, converter) -> None:
    datasets = [pydicom.dcmread(path) for path in make_files(tmp_path)]
    for dataset in datasets:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    with pytest.raises(ConversionError) as said:
        converter(datasets)
    assert "object" not in str(said.value)
    assert "attribute" not in str(said.value)
