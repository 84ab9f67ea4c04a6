// Compiles what follows, up to target_end.h, for AVX2. Include after every standard header: inline
// code of the standard library compiled for AVX2 here could be picked up by the linker for all.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
