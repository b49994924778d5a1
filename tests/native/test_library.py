"""A library that may not be loaded is refused with one sentence, before anything is loaded."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trt_compress.errors import ConfigError, PluginError
from trt_compress.plugins import build as building
from trt_compress.plugins import headers, library
from trt_compress.plugins.library import Kind, Library

Make = Callable[..., Path]


@pytest.fixture
def copy(native_library: Library, tmp_path: Path) -> Path:
    """A copy of the library with its description."""
    path = tmp_path / native_library.path.name
    for suffix in (".so", ".json"):
        shutil.copy2(native_library.path.with_suffix(suffix), path.with_suffix(suffix))
    return path


def edit(path: Path, **changes: Any) -> Path:
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **changes}))
    return path


def described(path: Path, kind: Kind, **facts: Any) -> Path:
    """A file that its description calls a library of this kind; checking reads no more than that."""
    path.write_bytes(b"code")
    info = {"kind": kind, "version": "0.1.0", "source_hash": library.source_hash(kind), "operators": [], **facts}
    path.with_suffix(".json").write_text(json.dumps({**info, "sha256": hashlib.sha256(b"code").hexdigest()}))
    return path


def refusal(path: Path, kind: Kind = "onnxruntime", **wanted: Any) -> str:
    with pytest.raises(PluginError) as caught:
        library.check(path, kind, **wanted)
    message = caught.value.message
    assert "\n" not in message and message.endswith(".")
    return message


def test_a_fitting_library_passes(copy: Path) -> None:
    found = library.check(copy, "onnxruntime")
    assert found.kind == "onnxruntime" and "TrtcTokenMerge" in found.operators
    assert found.info["compilers"]["cxx"] and found.info["onnxruntime_api"] == headers.OLDEST_API


def test_missing(tmp_path: Path) -> None:
    assert "is not there; build the libraries with 'trt-compress plugins build'" in refusal(tmp_path / "libtrtc.so")


def test_foreign(copy: Path) -> None:
    copy.with_suffix(".json").unlink()
    assert "was not built by trt-compress: 'libtrtc_onnxruntime.json' is not beside it" in refusal(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "onnxruntime"}', '{"kind": 1, "sha256": ""}'])
def test_a_description_that_is_none(copy: Path, text: str) -> None:
    copy.with_suffix(".json").write_text(text)
    assert "does not describe a library" in refusal(copy)


def test_truncated(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:-100])
    assert "is not the file that 'libtrtc_onnxruntime.json' describes: it was changed or cut off" in refusal(copy)


def test_stale(copy: Path) -> None:
    message = refusal(edit(copy, source_hash="0123456789abcdef", version="0.0.9"))
    assert "was built from other sources (trt-compress 0.0.9, 0123456789abcdef) than this package has" in message
    assert message.endswith("build it again with 'trt-compress plugins build'.")


def test_another_kind(copy: Path) -> None:
    message = refusal(copy, "tensorrt")
    assert "holds custom operators for ONNX Runtime on the CPU; TensorRT plugins are wanted" in message


def test_a_processor_that_lacks_something(copy: Path) -> None:
    message = refusal(edit(copy, cpu_features=["avx2", "avx9000"]), features={"avx2"})
    assert "needs avx9000, which this processor does not have" in message


def test_another_tensorrt(tmp_path: Path) -> None:
    path = described(tmp_path / "libtrtc_tensorrt.so", "tensorrt", tensorrt="10.3", sms=[87], ptx=87)
    library.check(path, "tensorrt", tensorrt="10.16.1")
    message = refusal(path, "tensorrt", tensorrt="11.1")
    assert "was built for TensorRT 10.3 and this is TensorRT 11.1; build it with the headers of the latter" in message


@pytest.mark.parametrize(
    ("sms", "ptx", "gpu", "fits"),
    [
        ([80, 90], None, 90, True),
        ([80], None, 86, True),  # code of an SM runs on later ones of the same major
        ([86], None, 80, False),
        ([80, 90], None, 100, False),
        ([80, 90], 90, 100, True),  # PTX is compiled by the driver of a later GPU
        ([87], 87, 75, False),
    ],
)
def test_an_sm_that_is_not_in_it(tmp_path: Path, sms: list[int], ptx: int | None, gpu: int, fits: bool) -> None:
    path = described(tmp_path / "libtrtc_cuda.so", "cuda", sms=sms, ptx=ptx)
    if fits:
        library.check(path, "cuda", sms=[gpu])
    else:
        message = refusal(path, "cuda", sms=[gpu])
        assert f"and this GPU is SM {gpu}; build it with 'trt-compress plugins build --cuda {gpu}'" in message


@pytest.mark.parametrize("backend", ["rtx", "tensorrt-rtx", "tensorrt_rtx"])
def test_the_rtx_backend_never_gets_plugins(backend: str) -> None:
    with pytest.raises(PluginError, match="TensorRT-RTX takes no plugins, and a plugin that matches a node ends the"):
        library.refuse_on(backend)
    library.refuse_on("tensorrt")


def test_what_is_not_built_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library.find("onnxruntime") is None and library.installed() == ()
    with pytest.raises(PluginError, match="are not built for this version of the sources; run 'trt-compress plugins"):
        library.require("onnxruntime")


def test_a_spoiled_library_in_its_place_is_an_error_not_a_fallback(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = library.library_path("onnxruntime")
    place.parent.mkdir(parents=True)
    shutil.copy2(copy, place)
    with pytest.raises(PluginError, match="was not built by trt-compress"):
        library.find("onnxruntime")
    (found,) = library.installed()
    assert isinstance(found, PluginError)


def test_the_hash_follows_the_sources_of_its_kind_only() -> None:
    of = {kind: set(library.native_sources(kind)) for kind in library.KINDS}
    assert (
        Path("token_merge/kernel_cpu.h") in of["onnxruntime"] and Path("token_merge/kernel.cu") not in of["onnxruntime"]
    )
    assert Path("token_merge/kernel.cu") in of["cuda"] and Path("common/tensorrt_adapter.cpp") not in of["cuda"]
    assert {Path("token_merge/kernel.cu"), Path("common/tensorrt_adapter.cpp")} <= of["tensorrt"]
    assert all({Path("CMakeLists.txt"), Path("token_merge/contract.cpp")} <= files for files in of.values())


# ---- building ----


def test_what_is_there_is_not_built_again(native_library: Library) -> None:
    (outcome,) = building.build(only=("onnxruntime",))
    assert outcome.library == native_library and not outcome.was_built


def test_without_cmake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PluginError, match="CMake is not on the path; install it"):
        building.build()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cmake").write_text("")
    (tmp_path / "cmake").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PluginError, match="no C\\+\\+ compiler on the path; install g\\+\\+ or clang\\+\\+"):
        building.build()


def test_without_nvcc_and_gpu_the_gpu_libraries_are_skipped_or_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for tool in ("cmake", "g++"):
        (tmp_path / tool).write_text("")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    skipped = building.build(only=("cuda", "tensorrt"))
    assert [outcome.library for outcome in skipped] == [None, None]
    assert all("nvcc is not on the path" in outcome.note for outcome in skipped)
    with pytest.raises(PluginError, match="The CUDA kernels cannot be built: nvcc is not on the path"):
        building.build(only=("cuda",), cuda=[90])
    assert building.build(only=("cuda",), cuda="none")[0].note == "not asked for"


def test_without_apt_the_headers_must_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(headers, "_SYSTEM", ())
    with pytest.raises(PluginError, match="without apt-get and dpkg-deb they cannot be fetched; give the unpacked rel"):
        headers.onnxruntime_headers()
    with pytest.raises(
        PluginError, match="JSON library of the C\\+\\+ runtime are not here, .*; install nlohmann-json3-"
    ):
        headers.json_headers()


def test_headers_of_the_system_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(headers, "_SYSTEM", (tmp_path / "none", tmp_path))
    for name in ("onnxruntime/onnxruntime_c_api.h", "nlohmann/json.hpp"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("#define ORT_API_VERSION 21\n")
    assert headers.onnxruntime_headers() == tmp_path / "onnxruntime"
    assert headers.json_headers() == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no onnxruntime_c_api.h; give the unpacked release archive"),
        ("#define ORT_API_VERSION 17\n", "are of ONNX Runtime 1.17; 1.20 or newer are needed"),
        ("// nothing\n", "does not define ORT_API_VERSION"),
    ],
)
def test_headers_that_are_given(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "include").mkdir()
        (tmp_path / "include" / headers.HEADER).write_text(text)
    with pytest.raises(PluginError, match=message):
        headers.onnxruntime_headers(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no NvInfer.h"),
        ("#define NV_TENSORRT_MAJOR 8 //!< major\n#define NV_TENSORRT_MINOR 6\n", "is of TensorRT 8.6; 10.3"),
        ("#define NV_TENSORRT_MAJOR\n", "does not say its version"),
    ],
)
def test_headers_of_tensorrt_that_do_not_do(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "NvInfer.h").write_text("")
        (tmp_path / "NvInferVersion.h").write_text(text)
    with pytest.raises(PluginError, match=message):
        found = building.tensorrt_headers(tmp_path)
        assert found is not None
        building.tensorrt_version(found)


def test_versions_of_tensorrt_are_read_as_each_release_writes_them(tmp_path: Path) -> None:
    version = tmp_path / "NvInferVersion.h"
    version.write_text("#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 3 //!< minor\n")
    assert building.tensorrt_version(tmp_path) == "10.3"
    version.write_text(
        "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n"
        "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major\n#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n"
    )
    assert building.tensorrt_version(tmp_path) == "11.1"


def test_an_sm_that_is_too_old() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the path")
    with pytest.raises(ConfigError, match="--cuda 61: SMs from 75 on are supported: 75, 80"):
        building.build(only=("cuda",), cuda=[61])


def test_a_failing_compiler_says_so_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("cmake or a C++ compiler is not on the path")
    sources = tmp_path / "sources"
    shutil.copytree(library.sources_folder() / "common", sources / "common")
    shutil.copy2(library.sources_folder() / "CMakeLists.txt", sources)
    (sources / "broken").mkdir()
    (sources / "broken" / "ort_op.cpp").write_text("this is no program\n")
    given = headers.onnxruntime_headers()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (building, library):
        monkeypatch.setattr(module, "sources_folder", lambda: sources)
    with pytest.raises(PluginError, match="Building the native libraries failed: cmake ended with 1") as caught:
        building.build(only=("onnxruntime",), onnxruntime=given)
    assert caught.value.hint and "broken/ort_op.cpp" in caught.value.hint and "error" in caught.value.hint
    assert library.installed() == () and not list((tmp_path / "cache").glob("trt-compress/plugins/*"))
