// GATEDOPS_INLINE: inlines what must share registers. The compiler then inlines lambdas too.
#pragma once

#define GATEDOPS_INLINE inline __attribute__((always_inline))
