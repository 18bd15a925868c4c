// Compiled once for each set of instructions, with -DQPEFT_ISA=<avx512|avx2|neon|baseline> naming the namespace.
// Whatever is defined here must have a name that no other build of this file has: the linker would keep one of two
// inline functions of one name, and with it instructions that the processor at hand may lack.
#include "kernel.h"

namespace qpeft::QPEFT_ISA {

int vector_bytes() {
#if defined(__AVX512F__)
    return 64;
#elif defined(__AVX2__)
    return 32;
#else
    return 16;
#endif
}

}  // namespace qpeft::QPEFT_ISA
