/* NVRTC and cuBLASLt without a GPU behind them ($Q4_NVRTC, $Q4_CUBLASLT): compile at once to an ELF file without content,
 * multiply nothing, and ask the faulty driver (driver.cpp) before each call. */
#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

static int (*before)(const char*);
static void (*after)(const char*, int);

EXPORT void libraries_connect(int (*fails)(const char*), void (*done)(const char*, int)) {
  before = fails, after = done;
}

#define CALL(name, parameters, body)                      \
  EXPORT int name parameters {                            \
    const int fault = before ? before(#name) : 0;         \
    if (fault && !strstr(#name, "Destroy")) return fault; \
    body;                                                 \
    if (after) after(#name, 0);                           \
    return fault;                                         \
  }

static const char code[] = "\177ELF\2\1\1", ptx[] = "// Build ID: fake\n";
static char kind; /* of the last program: 'p' for PTX. One kernel differs from another by its source alone. */

EXPORT const char* nvrtcGetErrorString(int result) { return result == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
CALL(nvrtcVersion, (int* major, int* minor), *major = 13; *minor = 0)
CALL(nvrtcCreateProgram,
     (void** program, const char* source, const char* name, int headers, const char* const* texts,
      const char* const* names),
     (void)source;
     (void)name; (void)headers; (void)texts; (void)names; *program = &kind)
CALL(nvrtcDestroyProgram, (void** program), *program = NULL)
CALL(nvrtcCompileProgram, (void* program, int count, const char* const* options), (void)program; (void)count;
     (void)options)
CALL(nvrtcGetProgramLogSize, (void* program, size_t* size), (void)program; *size = 5)
CALL(nvrtcGetProgramLog, (void* program, char* log), (void)program; memcpy(log, "none", 5))
CALL(nvrtcGetCUBINSize, (void* program, size_t* size), (void)program; *size = 64)
CALL(nvrtcGetCUBIN, (void* program, char* out), (void)program; memset(out, 0, 64); memcpy(out, code, sizeof code))
CALL(nvrtcGetPTXSize, (void* program, size_t* size), (void)program; *size = sizeof ptx)
CALL(nvrtcGetPTX, (void* program, char* out), (void)program; memcpy(out, ptx, sizeof ptx))
CALL(nvrtcGetNumSupportedArchs, (int* count), *count = 2)
CALL(nvrtcGetSupportedArchs, (int* archs), archs[0] = 75; archs[1] = 90)

EXPORT size_t cublasLtGetVersion(void) { return 130000; }
CALL(cublasLtCreate, (void** handle), *handle = &kind)
CALL(cublasLtDestroy, (void* handle), (void)handle)
CALL(cublasLtMatmulDescInit_internal, (void* desc, size_t size, int compute, int scale), (void)compute; (void)scale;
     memset(desc, 0, size))
CALL(cublasLtMatmulDescSetAttribute, (void* desc, int attribute, const void* value, size_t size), (void)desc;
     (void)attribute; (void)value; (void)size)
CALL(cublasLtMatrixLayoutInit_internal, (void* layout, size_t size), memset(layout, 0, size))
CALL(cublasLtMatmulPreferenceCreate, (void** preference), *preference = &kind)
CALL(cublasLtMatmulPreferenceSetAttribute, (void* preference), (void)preference)
CALL(cublasLtMatmulPreferenceDestroy, (void* preference), (void)preference)
CALL(cublasLtMatmulAlgoGetHeuristic,
     (void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted, void* results,
      int* found),
     (void)handle;
     (void)desc; (void)a; (void)b; (void)c; (void)d; (void)preference; (void)wanted; memset(results, 0, 96); *found = 1)
CALL(cublasLtMatmul, (void), )
