/* A file that another program shortens or lengthens while it is read: preloaded (LD_PRELOAD), this does it to one file at
 * one chosen moment, behind the n-th call that concerns it, whichever library makes the call.
 *
 * The file CHANGING_FILE names says what: "<n> <device> <inode> <bytes> <path>". A negative number of bytes is cut off, a
 * positive one added. "<CHANGING_FILE>.done" gets a dot when it is done; with n = -2 nothing is done, and each call that
 * concerns the file gives a dot. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pid_t owner;
static long left;
static unsigned long long device, inode;
static long long bytes;
static char path[4096];

static void read_plan(void) {
  owner = getpid();
  left = -1;
  const char* plan = getenv("CHANGING_FILE");
  FILE* file = plan ? fopen(plan, "re") : NULL;
  if (!file) return;
  if (fscanf(file, "%ld %llu %llu %lld %4095[^\n]", &left, &device, &inode, &bytes, path) != 5) left = -1;
  fclose(file);
}

static void note(void) {
  char done[4200];
  snprintf(done, sizeof done, "%s.done", getenv("CHANGING_FILE"));
  long file = syscall(SYS_openat, AT_FDCWD, done, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
  syscall(SYS_write, file, ".", 1);
  syscall(SYS_close, file);
}

static void change(void) {
  long file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
  struct stat now;
  syscall(SYS_fstat, file, &now);
  long long size = now.st_size + bytes;
  if (size < 0) size = 0;
  syscall(SYS_ftruncate, file, size);
  if (bytes > 0) syscall(SYS_pwrite64, file, "\xff more", 6, now.st_size);
  syscall(SYS_close, file);
}

static void seen(int descriptor) {
  if (owner != getpid()) read_plan();
  if (left == -1 || descriptor < 0) return;
  struct stat status;
  if (syscall(SYS_fstat, descriptor, &status) || status.st_ino != inode || status.st_dev != device) return;
  if (left == 0) change();
  if (left <= 0) note();
  if (left >= 0) left--;
}

#define NEXT(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

#define READS(name, offset_type, ...)                                \
  ssize_t name(int fd, void* buffer, size_t count offset_type) {     \
    ssize_t result = NEXT(name, fd, buffer, count __VA_ARGS__);      \
    seen(fd);                                                        \
    return result;                                                   \
  }
#define COMMA_OFFSET , off_t offset
READS(read, , )
READS(pread, COMMA_OFFSET, , offset)
READS(pread64, COMMA_OFFSET, , offset)

#define READS_INTO(name, flags_type, ...)                                             \
  ssize_t name(int fd, const struct iovec* into, int count, off_t offset flags_type) { \
    ssize_t result = NEXT(name, fd, into, count, offset __VA_ARGS__);                  \
    seen(fd);                                                                          \
    return result;                                                                     \
  }
#define COMMA_FLAGS , int flags
READS_INTO(preadv, , )
READS_INTO(preadv64, , )
READS_INTO(preadv2, COMMA_FLAGS, , flags)
READS_INTO(preadv64v2, COMMA_FLAGS, , flags)

#define MAPS(name)                                                                      \
  void* name(void* at, size_t length, int protection, int flags, int fd, off_t offset) { \
    void* result = NEXT(name, at, length, protection, flags, fd, offset);                \
    if (fd >= 0) seen(fd);                                                               \
    return result;                                                                       \
  }
MAPS(mmap)
MAPS(mmap64)

#define STATS(name)                            \
  int name(int fd, struct stat* status) {      \
    int result = NEXT(name, fd, status);       \
    seen(fd);                                  \
    return result;                             \
  }
STATS(fstat)

int fstat64(int fd, struct stat64* status) {
  int result = NEXT(fstat64, fd, status);
  seen(fd);
  return result;
}

#define OPENS(name)                                         \
  int name(const char* place, int flags, ...) {             \
    va_list arguments;                                      \
    va_start(arguments, flags);                             \
    int mode = va_arg(arguments, int);                      \
    va_end(arguments);                                      \
    int result = NEXT(name, place, flags, mode);            \
    seen(result);                                           \
    return result;                                          \
  }
OPENS(open)
OPENS(open64)
