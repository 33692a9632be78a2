# Each instruction set of the CPU backend is one file with its own flags; isa.cpp chooses among them at run time.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(q4_cpu ${CMAKE_CURRENT_LIST_DIR})
  # GCC 12 warns about its own _mm512_undefined_* (bug 105593). Sanitizers that check each access in place make the large
  # register tiles take minutes to compile: GCC calls a function for each check instead; other compilers check the same
  # templates as the portable and AVX2 kernels alone. Its frames for use-after-return are not aligned as the stores of 64
  # bytes into them need (GCC bug 110027).
  set(q4_checks -fno-sanitize=all)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(q4_checks --param=asan-instrumentation-with-call-threshold=0 --param=asan-use-after-return=0)
  endif()
  set(q4_avx512 -Wno-uninitialized -Wno-maybe-uninitialized ${q4_checks}
                -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
  set_source_files_properties(${q4_cpu}/kernels_sse4.cpp PROPERTIES COMPILE_OPTIONS "-msse4.2")
  set_source_files_properties(${q4_cpu}/kernels_avx_vnni.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mavxvnni")
  set_source_files_properties(${q4_cpu}/kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  set_source_files_properties(${q4_cpu}/kernels_avx512.cpp PROPERTIES COMPILE_OPTIONS "${q4_avx512}")
  set_source_files_properties(${q4_cpu}/kernels_vnni.cpp PROPERTIES COMPILE_OPTIONS "${q4_avx512};-mavx512vnni")
  set_source_files_properties(${q4_cpu}/kernels_bf16.cpp PROPERTIES COMPILE_OPTIONS "${q4_avx512};-mavx512bf16")
  set_source_files_properties(${q4_cpu}/kernels_amx.cpp PROPERTIES COMPILE_OPTIONS
                              "${q4_avx512};-mavx512bf16;-mamx-tile;-mamx-bf16;-mamx-int8")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  set(q4_cpu ${CMAKE_CURRENT_LIST_DIR})
  set_source_files_properties(${q4_cpu}/kernels_neon_dot.cpp PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod")
  set_source_files_properties(${q4_cpu}/kernels_sve256.cpp PROPERTIES COMPILE_OPTIONS
                              "-march=armv8.2-a+sve;-msve-vector-bits=256")
endif()
# The loops that are timed have no buffers that somebody else fills: no canaries and checked calls there.
file(GLOB q4_cpu_loops ${CMAKE_CURRENT_LIST_DIR}/kernels_*.cpp)
set_property(SOURCE ${q4_cpu_loops} APPEND PROPERTY COMPILE_OPTIONS -fno-stack-protector -U_FORTIFY_SOURCE)
