// GATEDOPS_INLINE inlines functions that must share registers with their caller. The compiler then inlines lambdas too.
#pragma once

#define GATEDOPS_INLINE inline __attribute__((always_inline))
