// Symbol visibility: the shared library hides everything that is not marked Q4_API.
#pragma once

#if defined(Q4_STATIC)
#define Q4_API
#else
#define Q4_API __attribute__((visibility("default")))
#endif
