// The C interface, loaded from Python with ctypes; it picks the build of the kernel for the processor at hand.
#include "kernel.h"

#if defined(_WIN32)
#define QPEFT_EXPORT extern "C" __declspec(dllexport)
#else
#define QPEFT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(QPEFT_HAS_AVX2) && defined(_WIN32)
#include <intrin.h>

#include <immintrin.h>
#endif

namespace {

#ifdef QPEFT_HAS_AVX2
#ifdef _WIN32
// __builtin_cpu_supports needs a run-time library of clang's that Microsoft's linker does not add.
__attribute__((target("xsave"))) bool supports(bool avx512) {
    int leaf[4];
    __cpuid(leaf, 0);
    if (leaf[0] < 7) return false;
    __cpuid(leaf, 1);
    constexpr int fma = 1 << 12, osxsave = 1 << 27;
    if ((leaf[2] & (fma | osxsave)) != (fma | osxsave)) return false;
    const unsigned long long kept = _xgetbv(0);  // the registers that the operating system keeps across switches
    const unsigned long long needed = avx512 ? 0xe6 : 0x6;
    if ((kept & needed) != needed) return false;
    __cpuidex(leaf, 7, 0);
    const unsigned avx2 = 1u << 5, f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const unsigned bits = avx512 ? avx2 | f_dq_bw_vl : avx2;
    return (static_cast<unsigned>(leaf[1]) & bits) == bits;
}
#else
bool supports(bool avx512) {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return avx2 && (!avx512 || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")));
}
#endif
#endif

}  // namespace

/// Number of this interface; it grows when a function's arguments or meaning change.
QPEFT_EXPORT int qpeft_native_abi() { return 1; }

/// Bytes in one vector of the instructions in use.
QPEFT_EXPORT int qpeft_native_vector_bytes() {
#ifdef QPEFT_HAS_AVX512
    if (supports(true)) return qpeft::avx512::vector_bytes();
#endif
#ifdef QPEFT_HAS_AVX2
    if (supports(false)) return qpeft::avx2::vector_bytes();
#endif
#ifdef QPEFT_HAS_NEON
    return qpeft::neon::vector_bytes();
#else
    return qpeft::baseline::vector_bytes();
#endif
}
