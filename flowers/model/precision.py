"""The arithmetic of the network: as asked, or what the hardware is fast at."""

from __future__ import annotations


def resolve_precision(precision: str, gpus: int = 0) -> tuple[str, str]:
    """Returns the arithmetic to use, "float32" or "bfloat16", and why.

    bfloat16 halves the time of a forward pass where the hardware multiplies it (AVX512-BF16, AMX, GPUs from compute
    capability 8.0 on) and is slower than float32 where it does not.

    Args:
        precision: "auto" or a choice already made.
        gpus: GPUs of the cluster; with 0 TensorFlow is not imported.
    """
    if precision != "auto":
        return precision, "as asked"
    if gpus:
        import tensorflow as tf  # only TensorFlow knows the GPUs

        found = tf.config.list_physical_devices("GPU")
        if not found:
            return "float32", "the GPUs are on other nodes, so their kind is unknown; see --precision"
        major, minor = tf.config.experimental.get_device_details(found[0]).get("compute_capability", (0, 0))
        return ("bfloat16" if major >= 8 else "float32"), f"a GPU of compute capability {major}.{minor}"
    wanted = {"avx512_bf16", "amx_bf16"} & _cpu_flags()
    if wanted:
        return "bfloat16", f"the CPU has {' and '.join(sorted(wanted))}"
    return "float32", "the CPU has neither avx512_bf16 nor amx_bf16"


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((set(line.split()) for line in lines if line.startswith("flags")), set())
    except OSError:
        return set()
