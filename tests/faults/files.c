/* LD_PRELOAD: calls of the C library that work on files below one folder fail on request (file_faults_test.cpp). */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static char folder[4096], call[32];
static int error, nth, seen, failed;
static long type; /* of the file system, 0: what it is */

/* The nth `name` below `below` fails with `code` from now on; 0: none. EINTR and EAGAIN once, -1: half of the bytes. */
EXPORT void file_faults_arm(const char* below, const char* name, int code, int number) {
  snprintf(folder, sizeof folder, "%s", below);
  snprintf(call, sizeof call, "%s", name);
  error = code, nth = number, seen = failed = 0;
}
EXPORT int file_faults_failed(void) { return failed; }
EXPORT void file_faults_type(long magic) { type = magic; }

static void* next(const char* name) { return dlsym(RTLD_NEXT, name); }
static int below(const char* path) { return folder[0] && strncmp(path, folder, strlen(folder)) == 0; }
static int of(int file) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return below(path);
}
/* 0: go on; else errno, or -1 for half. */
static int fault(const char* name, int concerned) {
  if (!nth || !concerned || strcmp(name, call) != 0 || ++seen != nth) return 0;
  return ++failed, error;
}

#define BYTES(result, name, parameters, arguments, count, file) \
  EXPORT result name parameters {                               \
    const int what = fault(KIND, of(file));                     \
    if (what > 0) return errno = what, -1;                      \
    if (what < 0 && count > 1) count /= 2;                      \
    return ((result(*) parameters)next(#name))arguments;        \
  }

#define KIND "read"
BYTES(ssize_t, read, (int file, void* to, size_t count), (file, to, count), count, file)
BYTES(ssize_t, __read_chk, (int file, void* to, size_t count, size_t room), (file, to, count, room), count, file)
BYTES(ssize_t, pread, (int file, void* to, size_t count, off_t at), (file, to, count, at), count, file)
BYTES(ssize_t, pread64, (int file, void* to, size_t count, off64_t at), (file, to, count, at), count, file)
BYTES(ssize_t, __pread_chk, (int file, void* to, size_t count, off_t at, size_t room), (file, to, count, at, room),
      count, file)
BYTES(ssize_t, __pread64_chk, (int file, void* to, size_t count, off64_t at, size_t room), (file, to, count, at, room),
      count, file)
#undef KIND
#define KIND "write"
BYTES(ssize_t, write, (int file, const void* from, size_t count), (file, from, count), count, file)

EXPORT ssize_t writev(int file, const struct iovec* pieces, int count) {
  const int what = fault("write", of(file));
  if (what > 0) return errno = what, -1;
  if (what < 0) { /* half of the first piece that has any */
    while (count > 1 && pieces->iov_len == 0) ++pieces, --count;
    return ((ssize_t(*)(int, const void*, size_t))next("write"))(file, pieces->iov_base, (pieces->iov_len + 1) / 2);
  }
  return ((ssize_t(*)(int, const struct iovec*, int))next("writev"))(file, pieces, count);
}

#define PLAIN(result, name, kind, parameters, arguments, concerned) \
  EXPORT result name parameters {                                   \
    const int what = fault(kind, concerned);                        \
    if (what > 0) return errno = what, -1;                          \
    return ((result(*) parameters)next(#name))arguments;            \
  }
PLAIN(int, fsync, "fsync", (int file), (file), of(file))
PLAIN(int, fchmod, "fchmod", (int file, mode_t mode), (file, mode), of(file))
PLAIN(int, rename, "rename", (const char* from, const char* to), (from, to), below(to))
PLAIN(int, mkostemp, "create", (char* name, int flags), (name, flags), below(name))
PLAIN(int, mkostemp64, "create", (char* name, int flags), (name, flags), below(name))

#define OPEN(name)                                                              \
  EXPORT int name(const char* path, int flags, ...) {                           \
    va_list list;                                                               \
    va_start(list, flags);                                                      \
    const mode_t mode = flags & O_CREAT ? (mode_t)va_arg(list, int) : 0;        \
    va_end(list);                                                               \
    const int what = fault(flags & O_CREAT ? "create" : "open", below(path));   \
    if (what > 0) return errno = what, -1;                                      \
    return ((int (*)(const char*, int, mode_t))next(#name))(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define LOCK(name)                                                           \
  EXPORT int name(int file, int command, ...) {                              \
    va_list list;                                                            \
    va_start(list, command);                                                 \
    void* const argument = va_arg(list, void*);                              \
    va_end(list);                                                            \
    const int what = command == F_OFD_SETLK ? fault("lock", of(file)) : 0;   \
    if (what > 0) return errno = what, -1;                                   \
    return ((int (*)(int, int, void*))next(#name))(file, command, argument); \
  }
LOCK(fcntl)
LOCK(fcntl64)

#define TYPE(name, structure)                                                        \
  EXPORT int name(int file, struct structure* status) {                              \
    const int result = ((int (*)(int, struct structure*))next(#name))(file, status); \
    if (result == 0 && type && of(file)) status->f_type = type;                      \
    return result;                                                                   \
  }
TYPE(fstatfs, statfs)
TYPE(fstatfs64, statfs64)
