// What the builds of kernel.cpp offer to library.cpp: one namespace for each set of instructions.
#pragma once

#define QPEFT_DECLARE_KERNEL(isa)  \
    namespace qpeft::isa {         \
    int vector_bytes();            \
    }

#ifdef QPEFT_HAS_AVX512
QPEFT_DECLARE_KERNEL(avx512)
#endif
#ifdef QPEFT_HAS_AVX2
QPEFT_DECLARE_KERNEL(avx2)
#endif
#ifdef QPEFT_HAS_NEON
QPEFT_DECLARE_KERNEL(neon)
#endif
#ifdef QPEFT_HAS_BASELINE
QPEFT_DECLARE_KERNEL(baseline)
#endif
