// Driver of the tests in C++; it ends with a status other than zero when one fails.
#include <cstdio>

extern "C" int qpeft_native_abi();

int main() {
    if (qpeft_native_abi() < 1) {
        std::fprintf(stderr, "qpeft_native_abi() gave %d\n", qpeft_native_abi());
        return 1;
    }
    std::puts("native tests passed");
    return 0;
}
