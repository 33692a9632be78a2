// Everything: `#include <q4/q4.hpp>`.
#pragma once

#if __cplusplus <= 201703L
#error "the C++ headers of q4 need C++20: compile with -std=c++20 (q4.h, the C ABI, needs C99 or any C++)"
#endif

#include <q4/cache.hpp>
#include <q4/checkpoint.hpp>
#include <q4/device.hpp>
#include <q4/error.hpp>
#include <q4/lora.hpp>
#include <q4/matmul.hpp>
#include <q4/matrix.hpp>
#include <q4/moe.hpp>
#include <q4/order.hpp>
#include <q4/runtime.hpp>
#include <q4/tuning.hpp>
#include <q4/version.hpp>
#include <q4/warmup.hpp>
