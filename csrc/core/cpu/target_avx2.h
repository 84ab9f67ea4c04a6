// Compiles what follows, up to target_end.h, for AVX2. Include this file after every standard header. Otherwise the
// linker could take inline code of the standard library that was compiled for AVX2 here, and use it on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
