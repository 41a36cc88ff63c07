"""What to do about a library, symbol or module that a live probe did not find."""

from __future__ import annotations

import re

from qlora_doctor.facts import LiveProbe

# What the loader asks for, and what brings it. {major} is the number behind `.so.`.
_LIBRARIES = (
    (r"libcuda\.so", "It belongs to the NVIDIA driver: install the driver, or start the container with --gpus all"),
    (
        r"libcudart\.so\.(\d+)",
        "It is in the wheel nvidia-cuda-runtime of CUDA {major}: {package} was built for that CUDA",
    ),
    (
        r"libcublas(?:Lt)?\.so\.(\d+)",
        "It is in the wheel nvidia-cublas of CUDA {major}: {package} was built for that CUDA",
    ),
    (
        r"libcudnn\S*\.so\.(\d+)",
        "It is in NVIDIA's cuDNN {major} wheel, which torch asks for: install torch again with its dependencies",
    ),
    (r"libnccl\.so", "It is in NVIDIA's NCCL wheel, which torch asks for: install torch again with its dependencies"),
    (
        r"libcusparseLt\.so",
        "It is in NVIDIA's cuSPARSELt wheel, which torch asks for: install torch again with its dependencies",
    ),
    (
        r"libnvJitLink\.so\.(\d+)",
        "It is in the wheel nvidia-nvjitlink of CUDA {major}: {package} was built for that CUDA",
    ),
    (r"libnvrtc\.so\.(\d+)", "It is in the wheel nvidia-cuda-nvrtc of CUDA {major}: {package} was built for that CUDA"),
    (
        r"lib(?:amdhip64|hsa-runtime64|rocblas|hipblas)\S*\.so",
        "It belongs to ROCm: install ROCm, or the CUDA build if this is an NVIDIA machine",
    ),
    (
        r"lib(?:sycl|ze_loader|svml|intlc)\S*\.so",
        "It belongs to Intel's oneAPI runtime: install the XPU build with its dependencies",
    ),
    (r"libGL\.so", "It is the system's: apt-get install libgl1 (or use opencv-python-headless)"),
    (
        r"libgomp\.so|libstdc\+\+\.so",
        "It is the system's: install libgomp1 and libstdc++6, or activate the conda environment",
    ),
)
_OTHER_TORCH = re.compile(r"_ZN\w*(?:c10|at|torch|caffe2)\d?|^(?:THP|aoti_torch)")


def remedy(probe: LiveProbe, package: str) -> str:
    """What ends a failure of `package` by the name of what is missing; "" where the name does not tell."""
    missing = probe.missing
    if not missing:
        return ""
    if missing.startswith(("GLIBC", "CXXABI")) or re.search(r" (GLIBC|GLIBCXX|CXXABI)_", missing):
        return f"This system is older than what {package} was built for: use a newer system or an older {package}"
    for pattern, words in _LIBRARIES:
        match = re.match(pattern, missing)
        if match:
            return words.format(major=(match.groups() or ("",))[0], package=package)
    if missing.startswith("nccl"):
        return f"The libnccl that is loaded is too old for {package}: unset LD_LIBRARY_PATH, or install it again, with its wheels"
    if missing.startswith("__nvJitLink"):
        return "Two CUDA versions meet: unset LD_LIBRARY_PATH, or install torch again with its dependencies"
    if _OTHER_TORCH.search(missing):
        return f"{package} was built for another torch: install the {package} of this torch, or uninstall it"
    return ""
